"""Where modules are put on a server, and that nothing of it stays."""

import os
import signal
from pathlib import Path

import pytest
from server.processes import wait_until
from shipping.elsewhere import Elsewhere, Program


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
        assert _folders(temporary) == [], "nothing was to be put there"
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
    others = temporary / left.rpartition("-")[0].rpartition("-")[0]
    alive = Path(f"{others}-{os.getpid()}-0123")
    alive.mkdir()
    with Elsewhere(folder) as second:
        assert Program(folder, second).script("print(farm.submit(abs, -1).result())") == "1"
        assert _folders(temporary) == [alive.name]
