"""What tasks start: it dies with a task that is killed, unless it was to live on."""

import os
import signal
import subprocess
import sys
import time

import pytest
from server.processes import DEADLINE, alive, wait_until
from server.serving import KEY

from farm_executor import FarmExecutor, TaskKilledError, TaskTimeoutError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(params=["embedded", "served"])
def farm(request, serving, no_leaks):
    if request.param == "embedded":
        farm = FarmExecutor(1, max_attempts=1)
    else:
        farm = FarmExecutor(serving.address, key=KEY, max_attempts=1)
    with farm:
        yield farm


def _pids(path, count):
    wait_until(lambda: path.exists() and len(path.read_text().split()) == count, f"{count} pids in {path}")
    return [int(pid) for pid in path.read_text().split()]


def _start_family(path):
    """A shell, and a process that it has started; and one in a session of its own, which is to live on."""
    script = f"sleep 1000 & echo $$ $! >> {path}; wait"
    family = subprocess.Popen(["sh", "-c", script])
    stranger = subprocess.Popen(
        ["sleep", "1000"], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return family, stranger


def _wait_with_family(path):
    family, stranger = _start_family(path)
    with open(f"{path}.stranger", "w") as file:
        file.write(str(stranger.pid))
    family.wait()


def test_what_a_killed_task_has_started_dies_with_it_and_nothing_else(farm, tmp_path):
    path = tmp_path / "pids"
    other = subprocess.Popen(["sleep", "1000"])  # in the same group as an embedded farm's workers
    future = farm.submit(_wait_with_family, str(path))
    members = _pids(path, 2)
    (stranger,) = _pids(tmp_path / "pids.stranger", 1)
    try:
        assert farm.kill(future)
        with pytest.raises(TaskKilledError):
            future.result(DEADLINE)
        for member in members:
            wait_until(lambda pid=member: not alive(pid), f"{member} is dead")
        assert alive(stranger)
        assert other.poll() is None
        assert farm.submit(abs, -1).result(DEADLINE) == 1
    finally:
        os.kill(stranger, signal.SIGKILL)
        other.kill()
        other.wait()


def test_so_does_what_a_task_has_started_whose_time_is_over(farm, tmp_path):
    path = tmp_path / "pids"
    future = farm.with_options(timeout=0.5).submit(_wait_with_family, str(path))
    with pytest.raises(TaskTimeoutError):
        future.result(DEADLINE)
    for member in _pids(path, 2) if path.exists() else []:
        wait_until(lambda pid=member: not alive(pid), f"{member} is dead")
    stranger = tmp_path / "pids.stranger"
    if stranger.exists():
        os.kill(int(stranger.read_text()), signal.SIGKILL)


def _hold_shared_memory(path):
    from multiprocessing.shared_memory import SharedMemory

    memory = SharedMemory(create=True, size=100)
    with open(path, "w") as file:
        file.write(f"{memory.name}\n")
    time.sleep(1000)


def test_a_resource_tracker_lives_to_clean_up(serving, tmp_path):
    path = tmp_path / "name"
    with FarmExecutor(serving.address, key=KEY) as farm:
        future = farm.submit(_hold_shared_memory, str(path))
        wait_until(lambda: path.exists() and path.read_text().endswith("\n"), "there is shared memory")
        segment = "/dev/shm/" + path.read_text().strip().lstrip("/")
        assert os.path.exists(segment)
        assert farm.kill(future)
        with pytest.raises(TaskKilledError):
            future.result(DEADLINE)
    wait_until(lambda: not os.path.exists(segment), "its tracker has removed it")


def _lead_a_session():
    os.setsid()
    return os.getsid(0) == os.getpid() == os.getpgrp()


def test_a_task_may_begin_a_session(farm):
    assert farm.submit(_lead_a_session).result(DEADLINE)
    with pytest.raises(PermissionError):  # it leads one by now
        farm.submit(os.setsid).result(DEADLINE)


def _lead_a_session_in_a_fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0 if _lead_a_session() else 1)
    return os.waitpid(pid, 0)[1]


def test_so_may_a_process_that_it_forks(farm):
    assert farm.submit(_lead_a_session_in_a_fork).result(DEADLINE) == 0


def _lead_a_group():
    os.setpgrp()
    return os.getpgrp() == os.getpid()


def test_a_task_may_begin_a_group(farm):
    assert farm.submit(_lead_a_group).result(DEADLINE)
