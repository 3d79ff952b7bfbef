"""No worker outlives its client or its supervisor, whatever it is in the midst of."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from server import tasks
from server.processes import alive, children, wait_until
from server.serving import KEY, Serving

from farm_executor import FarmExecutor
from farm_executor.server.tether import die_with

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody ends a stopped worker for us"),
    pytest.mark.usefixtures("no_leaks"),
]

WAYS = ["python", "c", "read", "stopped"]

CLIENT = """
import sys, tempfile
from farm_executor import FarmExecutor
from server import tasks
folder, arguments, ways = sys.argv[1], eval(sys.argv[2]), eval(sys.argv[3])
tempfile.tempdir = folder
farm = FarmExecutor(max_workers=len(ways), **arguments)
futures = [farm.submit(tasks.run_for_ever, folder + "/pid-" + way, way) for way in ways]
for future in futures:
    future.result()
"""


def _signed(folder, way):
    path = folder / f"pid-{way}"
    text = path.read_text() if path.exists() else ""
    return int(text.split()[0]) if text.endswith("\n") else 0


def _stopped(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


def _workers(folder):
    """The pids of all, once each is in the midst of what it does."""
    pids = {way: wait_until(lambda: _signed(folder, way), f"the task {way} has begun") for way in WAYS}
    wait_until(lambda: _stopped(pids["stopped"]), "one is stopped")
    return pids


@contextlib.contextmanager
def _client(folder, **arguments):
    command = [sys.executable, "-c", CLIENT, str(folder), repr(arguments), repr(WAYS)]
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL) as client:
        try:
            yield client
        finally:
            client.kill()


def _gone(pids):
    for way, pid in pids.items():
        wait_until(lambda: not alive(pid), f"the worker is gone whose task was: {way}")


def test_a_killed_client_of_a_server_takes_its_workers_along(tmp_path):
    with (
        Serving(workers=len(WAYS)) as server,
        _client(tmp_path, addresses=server.address, key=KEY, resume_timeout=0.2) as client,
    ):
        pids = _workers(tmp_path)
        client.kill()
        _gone(pids)


def test_a_killed_client_takes_its_embedded_farm_along(tmp_path):
    with _client(tmp_path) as client:
        pids = _workers(tmp_path)
        (supervisor,) = children(client.pid)
        client.kill()
        _gone({**pids, "supervisor": supervisor})


def test_a_killed_supervisor_takes_its_workers_along(tmp_path):
    with Serving(workers=len(WAYS)) as server:
        farm = FarmExecutor(server.address, key=KEY)
        for way in WAYS:
            farm.submit(tasks.run_for_ever, str(tmp_path / f"pid-{way}"), way)
        pids = _workers(tmp_path)
        os.kill(server.pid, signal.SIGKILL)
        _gone(pids)
        farm.kill_workers()
        farm._engine.join(30)
        server.process.wait()


def test_a_killed_embedded_supervisor_takes_its_workers_along(tmp_path):
    with _client(tmp_path) as client:
        pids = _workers(tmp_path)
        (supervisor,) = children(client.pid)
        os.kill(supervisor, signal.SIGKILL)
        _gone(pids)


def test_a_worker_that_comes_too_late_ends_at_once():
    """Its supervisor may have died between the fork and the worker's first step."""
    pid = os.fork()
    if pid == 0:
        die_with(1 if os.getppid() != 1 else 2)  # which is not our parent
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
