"""A Ray cluster of one node on this machine, for as long as a command runs, in a network that has nobody else.

    python tests/engines/ray_cluster.py pytest tests/engines

In any other network Ray would listen on the machine's own address, whatever it is told. It needs root, `unshare`
and `ip`, and the package ray.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile

import alone

CPUS = 4
CLIENT_PORT = 20001


def why_not() -> str:
    """What is lacking; empty if nothing is."""
    if importlib.util.find_spec("ray") is None:
        return "the package ray is not installed"
    return alone.why_not()


def run(command: list[str]) -> int:
    """Run the command beside the cluster, within the namespaces."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        options = {
            "port": 26379,
            "num-cpus": CPUS,
            "include-dashboard": "false",
            "object-store-memory": 200_000_000,
            "ray-client-server-port": CLIENT_PORT,
            "temp-dir": folder,
        }
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats"]
        start += [f"--{name}={value}" for name, value in options.items()]
        done = subprocess.run(start, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            print(done.stdout[-2000:], done.stderr[-2000:])
            return 1
        os.environ["FARM_EXECUTOR_TESTS_RAY"] = f"127.0.0.1:{CLIENT_PORT}"
        return subprocess.run(command).returncode  # everything here ends with this process


if __name__ == "__main__":
    sys.exit(alone.run("Ray", why_not, run))
