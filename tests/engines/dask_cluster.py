"""A Dask cluster on this machine, two workers with four threads each, for as long as a command runs.

    python tests/engines/dask_cluster.py pytest tests/engines/test_dask.py

It listens on loopback only, and needs the package distributed.
"""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from engines.alone import ON, skip

HOST = "127.0.0.1"
DEADLINE = 60.0
QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


class Cluster:
    """A scheduler and its workers, as their commands start them."""

    def __init__(self) -> None:
        with socket.create_server((HOST, 0)) as free:
            self.port = free.getsockname()[1]
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        return f"dask://{HOST}:{self.port}"

    def start(self) -> None:
        """Start them, and wait until the scheduler knows the workers."""
        options = ["--host", HOST, "--no-dashboard"]
        scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", *options, "--port", str(self.port)]
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://{HOST}:{self.port}", *options]
        self._processes.append(subprocess.Popen(scheduler, **QUIET))
        self._processes.append(subprocess.Popen([*worker, "--nworkers", "2", "--nthreads", "4"], **QUIET))
        code = f"from distributed import Client; Client('tcp://{HOST}:{self.port}').wait_for_workers(2, {DEADLINE})"
        subprocess.run([sys.executable, "-c", code], check=True, **QUIET)

    def kill_scheduler(self) -> None:
        """As the system does that runs out of memory."""
        self._processes[0].kill()

    def end(self) -> None:
        """End what is left of them, the scheduler last."""
        while self._processes:
            process = self._processes.pop()
            process.terminate()
            process.wait(DEADLINE)

    def __enter__(self) -> "Cluster":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def main(command: list[str]) -> int:
    """Run the command beside the cluster; return its exit code."""
    if importlib.util.find_spec("distributed") is None:
        return skip("Dask", "the package distributed is not installed")
    with Cluster() as cluster:
        return subprocess.run(command, env={**os.environ, ON: cluster.address}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
