"""A Ray cluster of one node on this machine, for as long as a command runs, in a network that has nobody else.

    python tests/engines/ray_cluster.py pytest tests/engines/test_ray.py

In any other network Ray would listen on the machine's own address, whatever it is told. It needs root, `unshare`
and `ip`, and the package ray.
"""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from engines import alone

CPUS = 4
STARTS = 3  # on a busy machine half a minute may not be enough
CLIENT_PORT = 20001
FOLDER = "FARM_EXECUTOR_TESTS_FOLDER"  # a short one: sockets are in it
CLIENT = f"127.0.0.1:{CLIENT_PORT}"
HEADS = (b"gcs_server", b"raylet", b"ray.util.client.server", b"dashboard/agent.py", b"monitor.py")


def why_not() -> str:
    """What is lacking; empty if nothing is."""
    if importlib.util.find_spec("ray") is None:
        return "the package ray is not installed"
    return alone.why_not()


def start() -> None:
    """Start the cluster, within `run`; once more if Ray has given up, as it does after half a minute.

    Raises:
        RuntimeError: It does not start; the message says what Ray says.
    """
    options = {
        "port": 26379,
        "num-cpus": CPUS,
        "include-dashboard": "false",
        "object-store-memory": 200_000_000,
        "ray-client-server-port": CLIENT_PORT,
        "temp-dir": tempfile.mkdtemp(dir=os.environ[FOLDER]),
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats"]
    command += [f"--{name}={value}" for name, value in options.items()]
    for _ in range(STARTS):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if not done.returncode:
            break
        kill_head()
    else:
        raise RuntimeError(f"ray start ended with {done.returncode}: {done.stdout[-2000:]} {done.stderr[-2000:]}")


def kill_head() -> None:
    """Kill all that `start` has started, as when the head's machine is lost.

    They are found by what they run. In this script's namespace there is no other Ray.
    """
    assert os.environ.get(alone.INSIDE), "here may be others' clusters"
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            line = Path("/proc", entry, "cmdline").read_bytes() if entry.isdigit() else b""
            if any(name in line for name in HEADS):
                os.kill(int(entry), signal.SIGKILL)


def run(command: list[str]) -> int:
    """Run the command beside the cluster, within the namespaces."""
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", alone.ON: "ray://auto"})
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        os.environ[FOLDER] = folder
        start()
        return subprocess.run(command).returncode  # everything here ends with this process


if __name__ == "__main__":
    sys.exit(alone.run("Ray", why_not, run))
