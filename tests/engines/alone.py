"""A network and processes of one's own, for a cluster that is to be seen by nobody and to leave nothing.

Network and process ids are namespaces: there is loopback alone, no port is seen outside, and all processes end with
the command.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable

INSIDE = "FARM_EXECUTOR_TESTS_INSIDE"
ON = "FARM_EXECUTOR_TESTS_ON"  # the address of the cluster that has been started for the tests, without options
NAMESPACES = ("unshare", "-n", "-p", "-f", "--mount-proc", "--kill-child")


def why_not() -> str:
    """What is lacking; empty if nothing is."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "it needs root on Linux"
    if not shutil.which("unshare") or not shutil.which("ip"):
        return "it needs unshare and ip"
    if subprocess.run([*NAMESPACES, "true"], stderr=subprocess.DEVNULL).returncode:
        return "no namespaces can be made"
    return ""


def skip(what: str, reason: str) -> int:
    """Say that the tests are left out, and why; return the exit code of that, which is no fault of the project."""
    print(f"SKIPPED, the tests with a real {what}: {reason}", flush=True)
    return 0


def run(what: str, why_not: Callable[[], str], command: Callable[[list[str]], int]) -> int:
    """Run this script once more, in namespaces of its own, and there the command; return the exit code."""
    if os.environ.get(INSIDE):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return command(sys.argv[1:])
    if reason := why_not():
        return skip(what, reason)
    return subprocess.run([*NAMESPACES, sys.executable, *sys.argv], env={**os.environ, INSIDE: "1"}).returncode
