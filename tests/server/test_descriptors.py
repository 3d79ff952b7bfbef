"""The limit of descriptors: servers have all that they may, tasks what there was."""

import os
import resource

import pytest
from server.processes import DEADLINE
from server.serving import KEY, Serving

from farm_executor import FarmExecutor, SharedMemoryError

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/limits"), reason="looks into /proc")


def _limits(pid):
    with open(f"/proc/{pid}/limits") as file:
        (line,) = (line for line in file if line.startswith("Max open files"))
    return tuple(map(int, line.split()[3:5]))


def test_a_server_raises_its_limit_and_tasks_find_it_as_it_was():
    low = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (50, 500))"
    with Serving(before=low, workers=40) as server, FarmExecutor(server.address, key=KEY) as farm:
        assert _limits(server.pid) == (500, 500)
        assert farm.submit(resource.getrlimit, resource.RLIMIT_NOFILE).result(DEADLINE) == (50, 500)
        assert len(farm.broadcast(os.getpid)) == 40
        assert not server.lines("too few descriptors")


def test_a_server_whose_limit_is_too_low_for_its_slots_says_so():
    low = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))"
    with Serving(before=low, workers=40) as server:
        assert "slots=40 workers=6:" in server.wait_for_line("too few descriptors")


def test_shared_objects_leave_descriptors_for_workers_and_other_clients():
    low = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))"
    with Serving(before=low, workers=1) as server, FarmExecutor(server.address, key=KEY) as farm:
        shared = [farm.share(number) for number in range(60)]
        kept = [farm.submit(abs, each) for each in shared]
        errors = [future.exception(DEADLINE) for future in kept]
        assert errors[:20] == [None] * 20
        assert type(errors[-1]) is SharedMemoryError
        with FarmExecutor(server.address, key=KEY) as other:
            assert other.submit(abs, -1).result(DEADLINE) == 1
