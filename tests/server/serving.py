"""A server started as a user starts it, from the command line, with a log that tests can read."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from server.processes import DEADLINE, wait_until

from farm_executor.wire.security import write_key

KEY = b"the key of the tests' servers 0123456789"
# On Linux, prctl(PR_SET_PDEATHSIG, SIGKILL): no server outlives tests that were killed.
DIE_WITH_TESTS = "import ctypes, sys; sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, 9)"
TESTS = str(Path(__file__).parents[1])


class Serving:
    """``farm-executor serve``, with its log kept.

    Args:
        arguments: Further ones of the command line.
        at: HOST:PORT; port 0 means a free one.
        before: Python source to run in the server's process first, to make the system refuse something.
        within: A command that runs the command given to it, such as one that changes the network.
        key: What is in its key file.
        ration: Seconds between two lines in its log about strangers; 0 for a line about each.
    """

    def __init__(
        self,
        *arguments: str,
        at: str = "127.0.0.1:0",
        before: str = "",
        workers: int = 2,
        within: Sequence[str] = (),
        key: bytes = KEY,
        ration: float = 0.0,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="serving-")
        self.key_file = Path(self._folder.name) / "key"
        write_key(self.key_file, key)
        self._log = Path(self._folder.name) / "log"
        # Its workers are forked from it, so that none has to import by itself what most tests run.
        boot = [
            DIE_WITH_TESTS,
            "import sys, server.tasks",
            f"import farm_executor.server.log as log; log.RATION_SECONDS = {ration}",
            before,
            "from farm_executor.cli import main; sys.exit(main())",
        ]
        options = ["-v", "--workers", str(workers), "--key-file", str(self.key_file), *arguments]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-c", "\n".join(boot), "serve", at, *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([TESTS, *filter(None, sys.path)])},
                start_new_session=True,
            )
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline()
        match = re.match(r"serving on (\S+):(\d+),", self.greeting)
        assert match, f"it does not serve: {self.greeting!r} {self.log}"
        self.host, self.port = match[1], int(match[2])
        self.address = f"{self.host}:{self.port}"
        self.pid = self.process.pid

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text()

    def lines(self, pattern: str) -> list[str]:
        """The log's lines in which the pattern is found."""
        return [line for line in self.log.splitlines() if re.search(pattern, line)]

    def wait_for_line(self, pattern: str, count: int = 1) -> str:
        """Wait until that many lines of the log fit; return the last."""
        wait_until(lambda: len(self.lines(pattern)) >= count, f"{count} lines like {pattern!r} in the log")
        return self.lines(pattern)[-1]

    def terminate(self) -> None:
        """What SIGTERM does, once."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for its end; return the exit code."""
        return self.process.wait(DEADLINE)

    def __enter__(self) -> "Serving":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Twice, so that it does not wait for its clients; and not at once, for two signals may become one.
            self.terminate()
            if not self._ended_within(0.05):
                self.terminate()
            assert self._ended_within(DEADLINE), self.log
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self._folder.cleanup()

    def _ended_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True
