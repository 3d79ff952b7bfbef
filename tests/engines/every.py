"""The tests on all kinds of clusters, side by side, each beside a cluster of its own.

    python tests/engines/every.py                  dask, ray, slurm and hosts
    python tests/engines/every.py ray slurm        some of them; others are dask-engine and ray-engine
    python tests/engines/every.py dask -- -x       what follows ``--`` is passed on to pytest

Most of each waits for a cluster, so together they take hardly longer than the longest alone. What each prints comes
in one piece, once it has ended; the exit code says whether all have passed, or have said why they cannot be run.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
EVERYWHERE = ("test_everywhere.py", "../contract")
# What starts the cluster, and the tests that are run beside it. Those of the contract run on the row of that name.
PARTS = {
    "ray": ("ray_cluster.py", "test_ray.py", *EVERYWHERE),
    "slurm": ("slurm_cluster.py", "test_slurm.py", *EVERYWHERE),
    "dask": ("dask_cluster.py", "test_dask.py", *EVERYWHERE),
    "hosts": ("two_hosts.py", "test_two_hosts.py"),
    # The contract once more, with all bytes carried by the engine.
    "dask-engine": ("dask_cluster.py", "../contract"),
    "ray-engine": ("ray_cluster.py", "../contract"),
}
BY_DEFAULT = ("ray", "slurm", "dask", "hosts")


class Part:
    """The tests on one kind of cluster, in processes of their own."""

    def __init__(self, name: str, python: str, options: list[str]) -> None:
        self.name = name
        cluster, *tests = PARTS[name]
        rows = ["--rows", f"farm-{name}"] if "../contract" in tests else []
        paths = [os.path.relpath(HERE / test) for test in tests]
        command = [python, HERE / cluster, python, "-m", "pytest", "-p", "no:cacheprovider"]
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._began = time.monotonic()
        # In a group of their own, so that all of them can be ended, by the number of the first.
        self._process = subprocess.Popen(
            [*command, *paths, *rows, *options],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> int:
        """Wait for the end, and print what was printed; return the exit code."""
        code = self._process.wait()
        self._output.seek(0)
        text = self._output.read().decode(errors="replace")
        verdict = f"{self.name}: exit code {code} after {time.monotonic() - self._began:.0f} s"
        print(f"{f' {self.name} ':=^80}\n{text.rstrip()}\n{verdict}", flush=True)
        return code

    def end(self) -> None:
        """End all of its processes, if it has not ended."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)


def main() -> int:
    """Run them; return the exit code."""
    arguments, options = sys.argv[1:], []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, options = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--ray", default=sys.executable, metavar="PYTHON", help="one that has Ray, if this has not")
    given = parser.parse_args(arguments)
    names = given.parts or BY_DEFAULT
    if unknown := set(names) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that all of them are ended
    parts = [Part(name, given.ray if name.startswith("ray") else sys.executable, options) for name in names]
    with ThreadPoolExecutor(len(parts)) as threads:
        try:
            codes = list(threads.map(Part.wait, parts))
        finally:
            for part in parts:
                part.end()
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
