"""Memory of workers: who holds too much is killed for it, and who was killed by the system is said to have been."""

import os
import signal
import sys
from pathlib import Path

import pytest
from contract.gate import Gate
from contract.tasks import pass_gate
from server import tasks
from server.peers import SessionPeer
from server.processes import DEADLINE, alive, wait_until
from server.serving import KEY, Serving

from farm_executor import BrokenFarmError, FarmExecutor, WorkerLostError
from farm_executor.client.farm.wording import describe_death, in_units
from farm_executor.core.handshake import MIN_MEMORY_LIMIT
from farm_executor.core.messages import ControlHello, WorkerDied, from_json
from farm_executor.errors import RemoteProtocolError
from farm_executor.server import memory
from farm_executor.server.memory import OomCounter, held_by
from farm_executor.wire import memfd
from farm_executor.wire.memory_objects import MemoryObject
from farm_executor.wire.versions import local_versions

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("no_leaks"),
]
MIB = 1024 * 1024


# -- what the system says ---------------------------------------------------------------------------------------


def test_what_a_process_holds_is_its_own_memory_and_no_file_s():
    before = held_by([os.getpid()])[os.getpid()]
    mine = tasks.hold(64)
    after = held_by([os.getpid()])[os.getpid()]
    assert abs(after - before - len(mine)) < 16 * MIB


def test_neither_a_ring_nor_what_is_only_read_of_a_shared_object_is_held():
    before = held_by([os.getpid()])[os.getpid()]
    descriptor = memfd.create("farm-test", 32 * MIB)
    with memfd.map_shared(descriptor, 32 * MIB) as ring:
        ring.write(b"\1" * (32 * MIB))
        assert held_by([os.getpid()])[os.getpid()] - before < 8 * MIB
    shared = MemoryObject(descriptor, 32 * MIB)
    view = shared.view(private=True)
    assert sum(view[::4096]) == 8 * 1024
    assert held_by([os.getpid()])[os.getpid()] - before < 8 * MIB
    view[: 16 * MIB] = bytes(16 * MIB)  # what is written to is the process's own
    assert held_by([os.getpid()])[os.getpid()] - before > 8 * MIB


def test_who_has_ended_holds_nothing():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert held_by([pid]).get(pid, 0) == 0
    os.waitpid(pid, 0)
    assert held_by([pid]) == {}


def test_where_there_is_no_proc_ps_is_asked(monkeypatch, tmp_path):
    program = tmp_path / "ps"
    program.write_text("#!/bin/sh\necho '  12   1024'\necho '7 3'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(memory, "STATM", tmp_path / "nothing")
    assert held_by([12, 7, 8]) == {12: MIB, 7: 3072}
    program.unlink()
    assert held_by([12, 7, 8]) == {}


GROUPS = {
    "v2": ("0::/a/b\n", "a/b/memory.events", "low 0\noom 9\noom_kill 3\n"),
    "v2 in a container": ("0::/of/the/host\n", "memory.events", "oom_kill 3\noom_group_kill 0\n"),
    "v1": ("9:cpu:/\n4:memory:/a\n0::/\n", "memory/a/memory.oom_control", "under_oom 0\noom_kill 3\n"),
    "v1 in a container": ("4:hugetlb,memory:/of/the/host\n", "memory/memory.oom_control", "oom_kill 3\n"),
    "v2 without the controller": ("0::/a\n", "a/memory.events.local", "oom_kill 5\n"),
}


@pytest.mark.parametrize(("groups", "path", "text"), GROUPS.values(), ids=GROUPS)
def test_the_group_s_count_goes_before_the_machine_s(tmp_path, groups, path, text):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (cgroups / path).parent.mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(groups)
    (cgroups / path).write_text(text)
    counter = OomCounter(proc, cgroups)
    assert counter.read() == (3 if text.count("oom_kill 3") else None)
    (proc / "vmstat").write_text("pgfault 7\noom_kill 70\n")
    assert counter.read() == (3 if text.count("oom_kill 3") else 70)


def test_no_count_is_none(tmp_path):
    assert OomCounter(tmp_path, tmp_path).read() is None


def _limited_group(size):
    """Python source that puts a process into a group with so much memory; and the group's folder. Or None."""
    name = f"farm-test-{os.getpid()}"
    v2, v1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
    for root, limit, swap in (
        (v1, "memory.limit_in_bytes", "memory.swappiness"),
        (v2, "memory.max", "memory.swap.max"),
    ):
        folder = root / name
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit).write_text(str(size))
            if (folder / swap).exists():
                (folder / swap).write_text("0")
        except OSError:
            folder.rmdir()
            continue
        return f"import os; open('{folder}/cgroup.procs', 'w').write(str(os.getpid()))", folder
    return None


def test_a_worker_that_the_system_has_killed_for_want_of_memory_is_said_to_have_been():
    group = _limited_group(128 * MIB)
    if group is None:
        pytest.skip("no control group can be made here")
    enter, folder = group
    try:
        with (
            Serving(before=enter, workers=1) as server,
            FarmExecutor(server.address, key=KEY, max_attempts=1) as farm,
        ):
            pid = farm.submit(tasks.pid).result(DEADLINE)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not alive(pid), "the worker is gone")
            error = farm.submit(tasks.die, "kill").exception(DEADLINE)
            assert "out-of-memory" not in str(error)
            error = farm.submit(tasks.hold, 1024).exception(DEADLINE)
            assert isinstance(error, WorkerLostError)
            assert error.exit_code == -signal.SIGKILL
            assert "out-of-memory killer was at work" in str(error)
            error = farm.submit(tasks.die, "kill").exception(DEADLINE)
            assert "out-of-memory" not in str(error), "that was before it was started"
            assert "oom=True" in server.wait_for_line("worker ended .* oom=True")
    finally:
        wait_until(lambda: not (folder / "cgroup.procs").read_text(), "the group is empty")
        folder.rmdir()


# -- the limit --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["embedded", "server"])
def limited(request, serving):
    where = {} if request.param == "embedded" else {"addresses": serving.address, "key": KEY}
    with FarmExecutor(**where, max_workers=1, max_memory_per_worker=100 * MIB) as farm:
        yield farm


def test_a_task_that_holds_too_much_is_ended_and_the_error_says_so(limited, tmp_path):
    path = tmp_path / "pids"
    error = limited.submit(tasks.sign_and_hold_for_ever, str(path), 200).exception(DEADLINE)
    assert isinstance(error, WorkerLostError)
    assert "more than max_memory_per_worker=100.0 MiB" in str(error)
    assert "in each of 3 attempts" in str(error)
    assert error.exit_code == -signal.SIGKILL
    assert len(set(path.read_text().split())) == 3
    assert limited.submit(abs, -1).result(DEADLINE) == 1


def test_what_waits_behind_it_is_moved_free_of_charge(limited):
    once = limited.with_options(max_attempts=1)
    warm = [once.submit(abs, -n) for n in range(1000)]
    assert [future.result(DEADLINE) for future in warm] == list(range(1000))
    before = [once.submit(abs, -n) for n in range(20)]
    with Gate() as gate:
        victim = once.submit(tasks.hold_and_pass_gate, 200, gate.address)
        behind = [once.submit(abs, -n) for n in range(20)]
        assert isinstance(victim.exception(DEADLINE), WorkerLostError)
        assert [future.result(DEADLINE) for future in before + behind] == list(range(20)) * 2


def test_a_task_below_the_limit_runs_on(limited):
    with Gate() as gate:
        future = limited.with_options(max_attempts=1).submit(tasks.hold_and_pass_gate, 40, gate.address)
        gate.wait_for_arrivals()
        gate.open()
        assert future.exception(DEADLINE) is None


def test_shared_memory_is_nobody_s_own(limited):
    assert limited.with_options(max_attempts=1).submit(tasks.share, 200).result(DEADLINE)


def test_workers_that_keep_something_of_each_task_are_replaced_and_no_task_is_lost(limited):
    pids = [limited.submit(tasks.keep, 20).result(DEADLINE) for _ in range(60)]
    assert len(set(pids)) > 1
    assert limited.statistics().lost == 0


def test_an_initializer_that_holds_too_much_breaks_the_farm_with_the_reason(tmp_path):
    farm = FarmExecutor(
        1,
        max_memory_per_worker=100 * MIB,
        initializer=tasks.sign_and_hold_for_ever,
        initargs=(str(tmp_path / "pids"), 200),
    )
    with farm, pytest.raises(BrokenFarmError, match=r"3 workers in a row .* max_memory_per_worker=100.0 MiB"):
        farm.submit(abs, -1).result(DEADLINE)


def test_another_client_s_workers_may_hold_what_they_like(serving):
    with (
        Gate() as gate,
        FarmExecutor(serving.address, key=KEY, max_workers=1, max_attempts=1) as free,
        FarmExecutor(
            serving.address, key=KEY, max_workers=1, max_attempts=1, max_memory_per_worker=100 * MIB
        ) as limited,
    ):
        other = free.submit(tasks.hold_and_pass_gate, 200, gate.address)
        gate.wait_for_arrivals()
        assert isinstance(
            limited.submit(tasks.hold_and_pass_gate, 200, gate.address).exception(DEADLINE), WorkerLostError
        )
        assert not other.done()
        gate.open()
        assert other.exception(DEADLINE) is None


def test_the_report_has_both_figures_and_the_peak(serving):
    with SessionPeer(serving.address, max_memory=100 * MIB) as session, Gate() as gate:
        lane = session.open_lane()
        lane.start()
        lane.teach(1, tasks.hold_and_pass_gate)
        lane.submit(0, (1, 200, gate.address))
        report = session.wait_for_death()
        assert report["limit"] == 100 * MIB < report["held"] <= report["peak"] + 16 * MIB
        assert (report["code"], report["begun"]) == (-signal.SIGKILL, 0)
        assert not {"oom", "killed"} & report.keys()
        death = from_json(WorkerDied, report)
        assert (death.held, death.limit, death.oom) == (report["held"], 100 * MIB, None)


def test_nobody_looks_at_the_memory_of_a_worker_that_has_run_nothing_since():
    """Nor at all where there is no limit: an idle farm costs nothing."""
    before = (
        "import farm_executor.server.workers as s; real = s.held_by\n"
        "def held_by(pids):\n"
        "    pids = list(pids)\n"
        "    print('look at', *pids, file=sys.stderr, flush=True)\n"
        "    return real(pids)\n"
        "s.held_by = held_by"
    )
    limit = {"key": KEY, "max_memory_per_worker": 100 * MIB}
    with (
        Serving(before=before, workers=1) as server,
        FarmExecutor(server.address, key=KEY) as free,
        FarmExecutor(server.address, **limit) as idle,
        FarmExecutor(server.address, **limit) as other,
        Gate() as gate,
    ):
        pids = [farm.submit(tasks.pid).result(DEADLINE) for farm in (free, idle, other)]
        looks = [rf"look at .*\b{pid}\b" for pid in pids]
        held = other.submit(pass_gate, gate.address)
        gate.wait_for_arrivals()
        server.wait_for_line(looks[2], count=3)  # so that the idle one has been looked at, after its task
        before = len(server.lines(looks[1]))
        server.wait_for_line(looks[2], count=len(server.lines(looks[2])) + 3)
        assert len(server.lines(looks[1])) == before
        assert not server.lines(looks[0])
        gate.open()
        held.result(DEADLINE)


@pytest.mark.parametrize("limit", [0, -1, MIN_MEMORY_LIMIT - 1, "2GiB", 2.5, True, None, [1]])
def test_a_malformed_limit_is_refused(serving, limit):
    with pytest.raises(RemoteProtocolError):
        from_json(ControlHello, {"versions": local_versions()._asdict(), "max_memory": limit})
    with pytest.raises((EOFError, OSError)):
        SessionPeer(serving.address, max_memory=limit)


def test_the_limit_is_checked_where_it_is_given():
    for wrong in ("2GiB", 2.5, True):
        with pytest.raises(TypeError, match="must be an integer, a number of bytes"):
            FarmExecutor(1, max_memory_per_worker=wrong)
    with pytest.raises(ValueError, match=">= 1048576 bytes, which is 1 MiB"):
        FarmExecutor(1, max_memory_per_worker=2)


# -- words ------------------------------------------------------------------------------------------------------


def test_a_server_that_says_less_is_understood():
    death = from_json(WorkerDied, {"lane": 1, "slot": 0, "pid": 2, "code": -9, "begun": -1})
    assert death == WorkerDied(1, 0, 2, -9, -1)
    assert describe_death(death) == "was killed by signal 9 (SIGKILL, perhaps by the system for want of memory)"


@pytest.mark.parametrize("wrong", [{"oom": 1}, {"stderr": 7}, {"peak": "x"}, {"held": True}, {"killed": None}])
def test_a_malformed_report_is_refused(wrong):
    with pytest.raises(RemoteProtocolError):
        from_json(WorkerDied, {"lane": 1, "slot": 0, "pid": 2, "code": -9, "begun": -1, **wrong})


@pytest.mark.parametrize(
    ("size", "text"),
    [(512, "0.5 KiB"), (20 * MIB, "20.0 MiB"), (int(2.1 * 1024**3), "2.1 GiB"), (5 * 1024**5, "5120.0 TiB")],
)
def test_sizes_in_units(size, text):
    assert in_units(size) == text
