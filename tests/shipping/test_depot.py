"""Where modules are put on a server, and that nothing of it stays."""

import fcntl
import os
import signal
import sys
from pathlib import Path

import pytest
from server.processes import wait_until
from shipping.elsewhere import Elsewhere, Program

from farm_executor.server import depot


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def _folders(temporary: Path) -> list[str]:
    return [name for name in os.listdir(temporary) if name.startswith("farm-modules-")]


CODE = """
    import helpers
    print(farm.submit(helpers.f).result())
    farm.shutdown()
"""


def test_the_folder_goes_with_the_session_and_the_servers_with_the_server(tmp_path, temporary):
    folder = tmp_path / "program"
    folder.mkdir()
    with Elsewhere(folder) as server:
        program = Program(folder, server)
        assert program.script("print(farm.submit(abs, -1).result())") == "1"
        (only,) = _folders(temporary)
        assert os.listdir(temporary / only) == [], "nothing was to be put there"
        program.write({"helpers.py": "import os\ndef f(): return os.path.dirname(__file__)"})
        where = Path(program.script(CODE))
        assert where.is_relative_to(temporary)
        wait_until(lambda: not where.exists(), "the session's folder is gone")
        assert where.parent.stat().st_mode & 0o777 == 0o700
    assert _folders(temporary) == []


def test_what_a_killed_server_leaves_is_removed_by_the_next(tmp_path, temporary):
    folder = tmp_path / "program"
    folder.mkdir()
    code = f"""
        import helpers
        print(farm.submit(helpers.f).result())
        os.kill(int(os.environ["SERVER"]), {int(signal.SIGKILL)})
        os._exit(0)
    """
    with Elsewhere(folder) as first:
        program = Program(folder, first)
        program.write({"helpers.py": "def f(): return 1"})
        os.environ["SERVER"] = str(first.pid)
        assert (
            program.script(code.replace("print(", "print(flush=True, *[").replace(".result())", ".result()])"))
            == "1"
        )
        first.wait()
        (left,) = _folders(temporary)
    alive = temporary / f"{left.rpartition('-')[0]}-0123"
    alive.mkdir()
    descriptor = os.open(alive, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    elsewhere = temporary / f"farm-modules-another-{left.rpartition('-')[2]}"
    elsewhere.mkdir()
    with Elsewhere(folder) as second:
        assert Program(folder, second).script("print(farm.submit(abs, -1).result())") == "1"
        assert not (temporary / left).exists()
        assert {alive.name, elsewhere.name} < set(_folders(temporary))
    os.close(descriptor)
    assert sorted(_folders(temporary)) == sorted([alive.name, elsewhere.name])


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are looked up in /proc")
def test_no_process_of_a_task_keeps_a_killed_servers_folder(tmp_path, temporary):
    """A daemon that a task has left must not hold the lock: it would keep the folder for ever."""
    folder = tmp_path / "program"
    folder.mkdir()
    code = """
        def task():
            import os
            start = os.environ["TMPDIR"] + "/farm-modules-"
            links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
            return [os.readlink(link) for link in links if os.path.lexists(link)
                    and os.readlink(link).startswith(start)]
        print(farm.submit(task).result())
    """
    with Elsewhere(folder) as server:
        assert Program(folder, server).script(code) == "[]"


NO_LOCKS = """
import types
import farm_executor.server.depot as depot
def no(*arguments): raise OSError(95, "Operation not supported")
depot.fcntl = types.SimpleNamespace(flock=no, LOCK_EX=0, LOCK_NB=0)
"""


def test_a_file_system_without_locks_is_good_enough(tmp_path, temporary):
    folder = tmp_path / "program"
    folder.mkdir()
    with Elsewhere(folder, before=NO_LOCKS) as server:
        program = Program(folder, server)
        program.write({"helpers.py": "def f(): return 1"})
        assert program.script(CODE) == "1"
    assert _folders(temporary) == []


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_folder_that_another_server_removes_before_it_is_locked_is_made_again(temporary, monkeypatch, when):
    """The other one takes it for what a killed server has left behind."""
    real, removed = depot._lock, []

    def lock(folder):
        locked = real(folder) if when == "while" else None
        if not removed:
            removed.append(folder)
            os.rmdir(folder)
        return locked or real(folder)

    monkeypatch.setattr(depot, "_lock", lock)
    folder, locked = depot._make(str(temporary))
    assert folder not in removed
    assert _folders(temporary) == [os.path.basename(folder)]
    assert locked is not None
    os.close(locked)
