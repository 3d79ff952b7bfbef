"""The far end of a server that an engine holds: in the engine's worker, beside the server.

This module owns the server's process, what it says, and the far end of the tunnel to it. It must not know the
engine, whose words are in `dask` and `ray`, nor what the bytes mean.

It has nothing but the standard library, `core.tunnel`, `ends` and `place`: `text` returns all of them as a program
to be run where farm_executor may be missing, so that both ends of a tunnel are always of one version.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.abc import InspectLoader
from typing import Any

from farm_executor.core.tunnel import CHUNK, Flight, TunnelError, heading, request
from farm_executor.launch.ends import Ends, Loop
from farm_executor.launch.place import SOCKET, private_directory

__all__ = ["CALLS", "GONE_SECONDS", "Far", "text"]

POLL_SECONDS = 5.0  # that a call waits for something to come
GONE_SECONDS = 15.0  # without a call, until the near end is taken for gone
CALLS = 16  # at once: more than the near end makes


class Far:
    """One server, for as long as `hold` runs. `exchange` is called meanwhile, by several threads."""

    def __init__(self) -> None:
        self._loop = Loop()
        self._ends = Ends(self._loop, self._refuse)
        self._listener: socket.socket | None = None
        self._folder = ""  # where the listener has a file
        self._listens = False  # since the near end is there: before that, who dials waits
        self._flight = Flight()  # of pieces from here, where the engine tells when they have arrived
        self._lock = threading.Lock()
        self._words: dict[str, bytes] = {}  # the last of each kind, for a near end that begins again
        self._heard = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        self._alone = False  # whether the server is dialled, and does not dial
        self.closed = False
        """Whether the server has ended."""
        self.threads = ThreadPoolExecutor(CALLS, thread_name_prefix="farm-far")
        """For engines whose calls have no threads."""

    def hold(self, python: str, command: str, config: str, mark: str) -> dict[str, Any]:
        """Run the server until it ends; return what it has said.

        Args:
            python: The interpreter; empty for this one.
            command: What it runs.
            config: In base64, the lines that it reads: see `errand`.
            mark: What its words begin with.
        """
        boot, line = base64.b64decode(config).splitlines()
        wanted = json.loads(line)
        program = [python or sys.executable, "-u", "-c", command]
        said: dict[str, Any] = {}
        try:
            if "engine" in wanted["via"]:
                listener, wanted["tunnel"] = self._open()
                with self._lock:
                    self._listener = listener
                    self._listen()
            self._alone = wanted["via"] == ["direct"]
            self._loop.ticks.append(self._tick)
            self._loop.start()
            process = self._process = subprocess.Popen(
                program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
            )
            with process:
                assert process.stdin is not None
                assert process.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(boot + b"\n" + json.dumps(wanted).encode() + b"\n")
                    process.stdin.flush()
                for word in process.stdout:
                    if word.startswith(mark.encode()) and len(word) < CHUNK:
                        told = json.loads(word[len(mark) :])
                        said.update({} if "tried" in told else told)
                        self._say(str(told.get("tried") or next(iter(told), "")), word[len(mark) :])
        except OSError as error:
            return {"error": f"cannot run {program[0]}: {error}"}
        finally:
            self._close()
        return said if "ready" in said or "error" in said else {"error": f"it ended with {process.returncode}"}

    def exchange(self, piece: bytes | memoryview) -> bytes | memoryview:
        """Take a piece, and return one; wait for one if the call brings none. See `core.tunnel`."""
        epoch, number = heading(piece)
        return self.give(piece) or self._ends.take(0.0 if number else POLL_SECONDS, epoch=epoch) or request(epoch)

    def give(self, piece: bytes | memoryview) -> bytes:
        """Take in a piece; return what is to be said to a near end that has to begin again."""
        self._heard = time.monotonic()
        epoch, number = heading(piece)
        with self._lock:
            if epoch > self._ends.tunnel.epoch:
                self._ends.begin(epoch)
                for word in self._words.values():
                    self._ends.say(word)
            elif epoch < self._ends.tunnel.epoch:
                return request(self._ends.tunnel.epoch)
            self._listen()
        if number:
            try:
                self._ends.give(piece)
            except TunnelError:
                self.begin_again(epoch)
                return request(self.epoch)
            self._obey()
        return b""

    def take(self, epoch: int, seconds: float = POLL_SECONDS) -> memoryview:
        """Return the next piece of an epoch, once it is to be sent; empty if there is none in time.

        If another epoch has begun, there is none. Once it has been sent, call `landed`.
        """
        return self._ends.take(seconds, self._flight, epoch)

    def landed(self, size: int) -> None:
        """Hear that a piece of that size, which `take` has returned, has arrived at the near end, or is lost."""
        self._ends.landed(self._flight, size)

    @property
    def epoch(self) -> int:
        """The current epoch; 0 before the near end has been heard of."""
        return self._ends.tunnel.epoch

    def begin_again(self, epoch: int) -> None:
        """Close all connections of an epoch, as what was on its way may be lost. The near end will hear of it."""
        with self._lock:
            if self.epoch == epoch:
                self._ends.begin(epoch + 1)

    def _open(self) -> tuple[socket.socket, str]:
        """Return a unix socket that listens, and its path: nobody else on this machine can read what is said there.

        On Linux it is an abstract one, of which nothing is left if this process is killed; the server sees to it
        that it is this user's.
        """
        path = f"\0farm-executor-{secrets.token_hex(16)}"
        if sys.platform != "linux":
            self._folder = private_directory()
            path = os.path.join(self._folder, SOCKET)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(path)
            listener.listen()
        except BaseException:
            listener.close()
            raise
        return listener, path

    def _listen(self) -> None:
        """Let those in who dial, once there is somebody at the near end. The lock is held."""
        if self._listener is not None and self._ends.tunnel.epoch and not self._listens:
            self._listens = True
            self._ends.listen(self._listener)

    def _obey(self) -> None:
        """End the server if the near end has said so, the only word that it has."""
        with self._lock:
            process = self._process
            if not self._ends.tunnel.words or process is None or process.stdin is None:
                return
            self._ends.tunnel.words.clear()
            with contextlib.suppress(OSError):
                process.stdin.close()

    def _say(self, kind: str, word: bytes) -> None:
        with self._lock:
            self._words[kind] = word
            if self.epoch and time.monotonic() - self._heard < GONE_SECONDS:
                self._ends.say(word)
            elif (
                self.epoch
            ):  # nothing is to pile up for a near end that has gone; if it comes back, it begins again
                self._ends.begin(self.epoch + 1)

    def _refuse(self) -> socket.socket:
        raise OSError("connections are opened here alone")

    def _tick(self, now: float) -> None:
        """Once nobody asks any more, close what nobody would hear of.

        A server that dials finds out by that. One that is dialled alone has no other way to know, and is told.
        """
        self._ends.rest(now)
        if now - self._heard < GONE_SECONDS:
            return
        if self._ends.tunnel.connections:
            self.begin_again(self.epoch)
        if self._alone and self._process is not None:
            self._alone = False
            self._process.terminate()

    def _close(self) -> None:
        self.closed = True
        self._ends.begin(1 << 63)
        self._loop.close()
        if self._listener is not None:
            self._listener.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


def environment() -> dict[str, str]:
    """Return the server's, without what Dask has set for its own worker.

    With that all that is freed is given back at once, and the system provides each page of each piece again.
    """
    environment = dict(os.environ)
    if environment.get("MALLOC_TRIM_THRESHOLD_") == "65536":
        del environment["MALLOC_TRIM_THRESHOLD_"]
    return environment


def text() -> str:
    """Return the program whose namespace has `Far`."""
    lines: list[str] = []
    for name in ("core.tunnel", "launch.ends", "launch.place", "launch.far"):
        spec = importlib.util.find_spec(f"farm_executor.{name}")
        assert spec is not None
        assert isinstance(spec.loader, InspectLoader)
        source = spec.loader.get_source(spec.name)
        assert source is not None
        lines += [line for line in source.splitlines() if not line.startswith(("from __future__", "from farm_"))]
    return "\n".join(["from __future__ import annotations", *lines])
