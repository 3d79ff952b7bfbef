"""A child process of a program's that alone imports Dask or Ray, and has them hold servers.

It reads its configuration, a line of JSON, from standard input, and ends with it. What it says are lines of JSON on
standard output. It is a process of its own so that no thread, signal handler or exit function of the engine's gets
into the user's program.

This module owns which servers are asked for, and when they are asked for again. It must not know how an engine is
spoken to, which `dask` and `ray` do, nor how the servers are reached: they dial the program.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import os
import sys
import threading
from collections.abc import Callable, Collection
from typing import Any, Protocol

from farm_executor._record import NamedTuple
from farm_executor.launch.errand import COMMAND, errand

__all__ = ["ANSWER_SECONDS", "Engine", "Grant", "RefusedError", "Room", "main"]

LOOK_SECONDS = 1.0  # between looks at what the cluster has
ANSWER_SECONDS = 10.0  # for the engine to answer

# This runs in the engine's worker, where farm_executor may be missing: so it is sent as it is written here. It
# holds what the engine has granted until the server ends.
_HOLD = """\
def hold(python, command, errand, mark):
    import base64, json, subprocess, sys
    program = [python or sys.executable, "-u", "-c", command]
    try:
        process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except OSError as error:
        return {"error": "cannot run " + program[0] + ": " + str(error)}
    said = {}
    with process:
        try:
            process.stdin.write(base64.b64decode(errand))
            process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in process.stdout:
            if line.startswith(mark.encode()):
                said.update(json.loads(line[len(mark):]))
    return said if "ready" in said or "error" in said else {"error": "it ended with " + str(process.returncode)}
"""


class RefusedError(Exception):
    """An engine does not let the program in, and will not if it is asked again."""


class Grant(Protocol):
    """What an engine has been asked for: to run `hold`, which lasts as long as the server."""

    def done(self) -> bool:
        """Whether it has returned, or has failed."""

    def outcome(self) -> dict[str, Any]:
        """Once it is done: return what it has returned.

        Raises:
            Exception: It has failed.
        """

    def cancel(self) -> None:
        """Have it no more. What runs need not end by that."""


class Room(NamedTuple):
    """What a cluster has for servers now.

    Attributes:
        free: Where a server may be placed, by name, and how many workers it may have.
        gone: Where one was, and cannot be any more.
        said: What the cluster has, for people.
    """

    free: dict[str, int]
    gone: list[str]
    said: str


class Engine(Protocol):
    """An engine's client."""

    here: str
    """This machine's address, as the cluster sees it."""

    def room(self, taken: Collection[str], most: int | None) -> Room:
        """Look what the cluster has beside the places that are taken.

        Args:
            taken: The places where servers are, or have been asked for.
            most: How many servers are wanted, wherever the cluster has room for them or may make it; None for what
                it has now.
        """

    def place(self, place: str, slots: int, hold: Callable[..., dict[str, Any]], *arguments: str) -> Grant:
        """Ask for what a server with that many workers takes, and have ``hold`` called there, once."""

    def name(self, place: str) -> str:
        """Return what the server there is to be called; empty for its machine's name."""

    def close(self) -> None:
        """End it."""


def say(**word: Any) -> None:
    """Tell the program something."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(word).encode() + b"\n")


def main() -> None:
    """Place servers until standard input ends."""
    config = json.loads(sys.stdin.buffer.readline())
    word = threading.Event()  # something has been said
    said: dict[str, Any] = {"most": config["most"], "ended": False}
    threading.Thread(target=_listen, args=(said, word), daemon=True).start()
    try:
        engine = importlib.import_module(f"farm_executor.launch.{config['engine']}").connect(config)
    except ImportError as error:
        say(lacking=str(error.name))
        return
    except RefusedError as error:
        say(refused=str(error))
        return
    except Exception as error:
        say(unreachable=f"{type(error).__name__}: {error}")
        return
    placing = Placing(engine, config)
    try:
        while not said["ended"]:
            word.clear()
            placing.look(said["most"])
            word.wait(LOOK_SECONDS)
    except Exception as error:
        say(unreachable=f"{type(error).__name__}: {error}")
    with contextlib.suppress(Exception):
        engine.close()


def _listen(said: dict[str, Any], word: threading.Event) -> None:
    for line in sys.stdin.buffer:
        with contextlib.suppress(ValueError):  # the program was killed amid a line
            said.update(json.loads(line))
        word.set()
    said["ended"] = True
    word.set()
    threading.Event().wait(2 * ANSWER_SECONDS)  # whatever the engine still does, this process does not stay
    os._exit(0)


class Placing:
    """One server at each place that the cluster has, as many as are wanted.

    Args:
        engine: The engine's client.
        config: What the program wants.
    """

    def __init__(self, engine: Engine, config: dict[str, Any]) -> None:
        names: dict[str, Any] = {"__name__": "__main__"}  # so that it travels by value
        exec(_HOLD, names)
        self._hold = names["hold"]
        self._engine = engine
        self._config = config
        self._workers: int = config["wanted"]["workers"]
        self._placed: dict[str, tuple[Grant, int]] = {}  # by place: what was asked for, the server's workers

    def look(self, most: int | None) -> None:
        """Place servers where there are none yet, and again where they have ended; with ``most``, so many."""
        for place, (grant, _) in list(self._placed.items()):
            if grant.done():
                del self._placed[place]
                try:
                    word = grant.outcome()
                except Exception as error:
                    word = {"error": str(error)}
                say(ended=place, **{name: word[name] for name in ("error", "missing") if name in word})
        room = self._engine.room(self._placed, most)
        for place in room.gone:
            self._placed.pop(place)[0].cancel()
        for place, workers in room.free.items():
            slots = min(workers, self._workers - self._asked()) if self._workers else workers
            if slots > 0:
                self._place(place, slots)
        said = f"{room.said}, and {len(self._placed)} servers have been asked for"
        say(said=said, servers=len(self._placed), lacks=self._workers > self._asked())

    def _asked(self) -> int:
        return sum(workers for _, workers in self._placed.values())

    def _place(self, place: str, slots: int) -> None:
        job = self._config["job"]
        lines = errand(**job, host=self._engine.here, slots=slots, name=self._engine.name(place))
        arguments = (self._config["wanted"]["python"], COMMAND, base64.b64encode(lines).decode(), job["mark"])
        self._placed[place] = self._engine.place(place, slots, self._hold, *arguments), slots
