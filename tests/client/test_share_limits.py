"""Shared objects where the system has no more to give, and where processes are killed meanwhile."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
from client import share_tasks as tasks
from client.test_repeated import hosts
from client.test_resume import LANE, proxied
from client.test_share import KEY, PATH, Plain, data, until
from faults.proxy import TO_SERVER
from server.processes import DEADLINE, alive, children, wait_until
from server.serving import KEY as KEY_OF_SERVING
from server.serving import Serving

from farm_executor import FarmExecutor, SharedMemoryError, start_server
from farm_executor.server.shared import MOST_OPEN

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, and sets limits of processes")

SIZE = 3 * 1024 * 1024 + 17
LARGE = 64 << 20


@pytest.fixture
def farm():
    with FarmExecutor(1) as executor:
        yield executor


@pytest.fixture(autouse=True)
def nothing_stays_in_the_folder_for_shared_memory():
    before = set(os.listdir("/dev/shm"))
    yield
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "farm" in name]


def program(source, *arguments, within=()):
    """Run a program to its end; return what it has written."""
    done = subprocess.run(
        [*within, sys.executable, "-c", source, *arguments],
        env={**os.environ, "PYTHONPATH": PATH},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


# -- a worker ----------------------------------------------------------------------------------------


def test_a_worker_without_addresses_fails_the_calls_that_need_it_and_no_others(farm):
    shared = farm.share(Plain(data(size=LARGE)))
    until(lambda: all(host.deliveries._held for host in hosts(farm)))
    worker = farm.submit(tasks.limit_memory, 32 << 20).result(DEADLINE)

    with pytest.raises(SharedMemoryError, match=rf"of {shared.nbytes} bytes cannot be mapped in worker {worker}"):
        farm.submit(tasks.first, shared).result(DEADLINE)
    assert farm.submit(tasks.pid_of).result(DEADLINE) == worker
    farm.submit(tasks.limit_memory, 4 * LARGE).result(DEADLINE)
    assert farm.submit(tasks.first, shared).result(DEADLINE) == 7


def test_a_worker_without_descriptors_brings_it_and_says_so_where_it_needs_one(farm):
    worker = farm.submit(tasks.open_all_files).result(DEADLINE)
    shared = farm.share(Plain(data()))
    until(lambda: all(host.deliveries._held for host in hosts(farm)))

    with pytest.raises(
        SharedMemoryError, match=rf"object 1 cannot be had: worker {worker} has too many files open"
    ):
        farm.submit(tasks.first, shared).result(DEADLINE)
    # It was refused to that call alone.
    assert farm.submit(tasks.close_all_files).result(DEADLINE) == worker
    assert farm.submit(tasks.first, shared).result(DEADLINE) == 7


def test_memory_that_no_worker_may_make_is_refused_with_the_reason(farm):
    worker = farm.submit(tasks.limit_files, 1 << 20).result(DEADLINE)
    shared = farm.share(Plain(data()))

    why = os.strerror(errno.EFBIG)
    with pytest.raises(SharedMemoryError, match=rf"{shared.nbytes} bytes cannot be held by this server: .*{why}"):
        farm.submit(tasks.first, shared).result(DEADLINE)
    assert farm.submit(tasks.first, farm.share(Plain(data(size=1000)))).result(DEADLINE) == 7
    assert farm.submit(tasks.pid_of).result(DEADLINE) == worker


def test_a_worker_keeps_descriptors_of_some_objects_only(farm):
    handles = [farm.share([number]) for number in range(MOST_OPEN + 20)]
    for _ in range(2):
        values = [farm.submit(lambda value: value[0], handle).result(DEADLINE) for handle in handles]
        assert values == list(range(len(handles)))
    assert farm.submit(tasks.open_descriptors).result(DEADLINE) <= MOST_OPEN


def test_a_frozen_object_needs_no_descriptor_once_it_is_there(farm):
    with farm.share([1, 2], frozen=True) as shared:
        assert farm.submit(lambda value: sum(value), shared).result(DEADLINE) == 3
        assert farm.submit(tasks.open_descriptors).result(DEADLINE) == 0
        assert farm.submit(lambda value: sum(value), shared).result(DEADLINE) == 3


def test_a_process_that_a_task_forks_has_what_its_task_has(farm):
    with farm.share(Plain(data())) as shared:
        assert farm.submit(tasks.in_a_child, shared).result(DEADLINE) == (8, 7)
        assert farm.submit(tasks.first, shared).result(DEADLINE) == 7


# -- a server ----------------------------------------------------------------------------------------


def test_a_server_without_descriptors_fails_the_calls_that_need_it_and_no_others():
    with Serving(workers=1) as server, FarmExecutor(server.address, key=KEY_OF_SERVING) as executor:
        worker = executor.submit(tasks.pid_of).result(DEADLINE)
        before = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        # One more than the highest in use: none is free below it, as descriptors are given out from below.
        highest = max(map(int, os.listdir(f"/proc/{server.pid}/fd")))
        gaps = set(range(highest)) - set(map(int, os.listdir(f"/proc/{server.pid}/fd")))
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (min(gaps, default=highest + 1), before[1]))
        shared = executor.share(Plain(data()))

        with pytest.raises(SharedMemoryError, match="Too many open files|too many files open"):
            executor.submit(tasks.first, shared).result(DEADLINE)
        assert executor.submit(tasks.pid_of).result(DEADLINE) == worker
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)
        assert executor.submit(tasks.first, executor.share(Plain(data()))).result(DEADLINE) == 7


# -- the program -------------------------------------------------------------------------------------

LIMITED = """
import errno, os, resource, sys
from client.test_share import Plain, data, tasks
from farm_executor import FarmExecutor

kind = sys.argv[1]
with FarmExecutor(1) as farm:
    farm.submit(tasks.pid_of).result()
    plain = Plain(data(size=64 << 20))
    # A farm that has begun needs none.
    if kind == "files":
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, 4096))
    elif kind == "addresses":
        tasks.limit_memory(8 << 20)
    else:
        tasks.limit_files(1 << 20)
    try:
        farm.share(plain)
    except OSError as error:
        print(errno.errorcode[error.errno])
    print(farm.submit(tasks.kinds, 1).result())
"""


@pytest.mark.parametrize(("kind", "why"), [("files", "EMFILE"), ("addresses", "ENOMEM"), ("size", "EFBIG")])
def test_a_program_at_a_limit_is_told_so_where_it_shares_and_its_farm_goes_on(kind, why):
    assert program(LIMITED, kind) == [why, "int"]


FULL = """
import errno
from client.test_share import Plain, data, tasks
from farm_executor.wire import memfd
memfd.AVAILABLE = False
from farm_executor import FarmExecutor
with FarmExecutor(1) as farm:
    fits = farm.share(Plain(data(size=3 << 20)))
    try:
        farm.share(Plain(data(size=6 << 20)))
    except OSError as error:
        print(errno.errorcode[error.errno])
    print(farm.submit(tasks.first, fits).result())
del fits
print(8 * 1024 * 1024 - tasks.free_in_folder())
"""


def why_no_mounts():
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return "it mounts a small file system, which takes root and unshare"
    done = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return "file systems cannot be mounted here" if done.returncode else ""


def in_small_folder(path):
    """A command that runs another one, whose temporary files are in a file system of 8 MiB."""
    return [
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'mount -t tmpfs -o size=8m none {path} && TMPDIR={path} exec "$@"',
        "sh",
    ]


# Where there is no memfd, as on macOS, memory is a file without a name in the folder for temporary files.
@pytest.mark.skipif(bool(why_no_mounts()), reason=why_no_mounts() or "it can")
def test_a_program_with_a_full_file_system_is_told_so_where_it_shares(tmp_path):
    assert program(FULL, within=in_small_folder(tmp_path)) == ["ENOSPC", "7", "0"]


@pytest.mark.skipif(bool(why_no_mounts()), reason=why_no_mounts() or "it can")
def test_a_server_with_a_full_file_system_fails_the_calls_that_need_it_and_no_others(tmp_path):
    before = "from farm_executor.wire import memfd; memfd.AVAILABLE = False"
    with (
        Serving(before=before, workers=1, within=in_small_folder(tmp_path)) as server,
        FarmExecutor(server.address, key=KEY_OF_SERVING) as farm,
    ):
        empty = farm.submit(tasks.free_in_folder).result(DEADLINE)
        fits = farm.share(Plain(data(size=3 << 20)))
        assert farm.submit(tasks.first, fits).result(DEADLINE) == 7
        farm.submit(tasks.fill_folder, 1 << 20).result(DEADLINE)
        large = farm.share(Plain(data(size=3 << 20)))

        with pytest.raises(SharedMemoryError, match="cannot be held by this server: .*No space left on device"):
            farm.submit(tasks.first, large).result(DEADLINE)
        assert farm.submit(tasks.first, fits).result(DEADLINE) == 7
        fits.close()
        farm.submit(os.unlink, str(tmp_path / "filler")).result(DEADLINE)
        until(lambda: farm.submit(tasks.free_in_folder).result(DEADLINE) == empty)


# -- killed on the way -------------------------------------------------------------------------------


def journeys(farm):
    """How far the objects are that are on their way, in bytes."""
    return [journey.done for journey in list(farm._engine.sharing._journeys.values())]


def test_a_worker_that_is_killed_while_it_takes_an_object_in_is_replaced_by_another():
    with proxied(workers=2) as (proxy, farm):
        pids = farm.broadcast(tasks.pid_of)
        proxy.stall(TO_SERVER, numbers=[LANE, LANE + 1])
        shared = farm.share(Plain(data(size=LARGE)))
        future = farm.submit(tasks.first, shared)
        wait_until(lambda: any(journeys(farm)), "some of it has left")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        proxy.flow()

        assert future.result(DEADLINE) == 7


def test_a_server_that_is_killed_while_it_takes_an_object_in_leaves_it_to_the_others():
    with (
        Serving(workers=1) as lost,
        Serving(workers=1) as other,
        FarmExecutor([lost.address, other.address], key=KEY_OF_SERVING) as farm,
    ):
        farm.broadcast(tasks.pid_of)
        workers = children(lost.pid)
        os.kill(next(iter(workers)), signal.SIGSTOP)  # so that it is amid the object
        shared = farm.share(Plain(data(size=LARGE)))
        wait_until(lambda: any(0 < done < LARGE for done in journeys(farm)), "some of it has left")
        lost.process.kill()

        assert [farm.submit(tasks.first, shared, number).result(DEADLINE) for number in range(4)] == [*range(7, 11)]
        wait_until(lambda: not any(map(alive, workers)), "its worker, and with it what it had, is gone")


SHARES = """
import os, signal, sys
from client.test_share import KEY, Plain, data, tasks
from farm_executor import FarmExecutor
farm = FarmExecutor([sys.argv[1]], key=KEY, resume_timeout=0)
farm.submit(tasks.pid_of).result()
shared = farm.share(Plain(data(size=256 << 20)))
journeys = farm._engine.sharing._journeys
while not any(journey.done for journey in list(journeys.values())):
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_client_that_is_killed_while_it_sends_an_object_leaves_nothing_behind():
    with start_server("127.0.0.1", 0, background=True, workers=1, key=KEY) as server:
        command = [sys.executable, "-c", SHARES, server.address]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": PATH}, capture_output=True, timeout=60)
        assert done.returncode == -signal.SIGKILL, done.stderr

        wait_until(lambda: tasks.count(server.pid) == 0, "the server has nothing of it")
        wait_until(lambda: not any(map(tasks.count, children(server.pid))), "nor has any worker")
        with FarmExecutor(server.address, key=KEY) as farm:
            assert farm.submit(tasks.first, farm.share(Plain(data()))).result(DEADLINE) == 7
