"""A child process of a program's that alone imports Dask or Ray, and has them hold servers.

It reads its configuration, lines of JSON, from standard input, and ends with it. What it says are lines of JSON on
standard output. It is a process of its own so that no thread, signal handler or exit function of the engine's gets
into the user's program.

This module owns which servers are asked for, and when they are asked for again. It must not know how an engine is
spoken to, which `dask` and `ray` do, nor how bytes pass to the servers and back, where no other way leads there.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Collection
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

from farm_executor._record import NamedTuple
from farm_executor.launch.ends import Loop
from farm_executor.launch.errand import COMMAND, errand, is_sent, sent
from farm_executor.launch.near import Near
from farm_executor.launch.probing import PROBE_SECONDS, probe
from farm_executor.wire.sockets import dial_at_once, dial_local

__all__ = ["ANSWER_SECONDS", "END_SECONDS", "Engine", "Grant", "RefusedError", "Room", "main"]

LOOK_SECONDS = 1.0  # between looks at what the cluster has
ANSWER_SECONDS = 10.0  # for the engine to answer
END_SECONDS = 2.0  # for servers to end
REASONS = ("error", "missing", "python", "version")  # of a server's end, in what is said of it


class RefusedError(Exception):
    """An engine does not let the program in, and will not if it is asked again."""


class Grant(Protocol):
    """What an engine has been asked for: a `far.Far`, and to run its `hold`, which lasts as long as the server."""

    def done(self) -> bool:
        """Whether it has returned, or has failed."""

    def outcome(self) -> dict[str, Any]:
        """Once it is done: return what it has returned.

        Raises:
            Exception: It has failed.
        """

    def call(self, piece: bytes | memoryview) -> Future[Any]:
        """Bring a piece to its `far.Far`, once it runs, and one from there, as `exchange` does.

        It is called by one thread. What comes is a buffer; it may be empty, or of an epoch that is over.
        The memory of the piece is used again as soon as nobody has a view of it.
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

    def place(self, place: str, slots: int, *arguments: str) -> Grant:
        """Ask for what a server with that many workers takes, and have `far.Far.hold` called there, once."""

    def name(self, place: str) -> str:
        """Return what the server there is to be called; empty for its machine's name."""

    def close(self) -> None:
        """End it."""


def say(**word: Any) -> None:
    """Tell the program something."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(word).encode() + b"\n")


def main() -> None:
    """Place servers until standard input ends.

    Its first line says which engine, the next what to start there, and those after it how many servers are wanted.
    """
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
    gc.freeze()  # what has been imported stays
    gc.enable()
    while "job" not in said and not said["ended"]:
        word.wait()
        word.clear()
    placing = Placing(engine, {**config, **said})
    try:
        while not said["ended"]:
            word.clear()
            placing.look(said["most"])
            word.wait(LOOK_SECONDS)
        placing.end()
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


class Placed(NamedTuple):
    """A server that has been asked for."""

    grant: Grant
    slots: int
    near: Near


class Placing:
    """One server at each place that the cluster has, as many as are wanted.

    Args:
        engine: The engine's client.
        config: What the program wants.
    """

    def __init__(self, engine: Engine, config: dict[str, Any]) -> None:
        self._engine = engine
        self._config = config
        self._workers: int = config["wanted"]["workers"]
        self._placed: dict[str, Placed] = {}  # by place
        self._failed: dict[str, dict[str, str]] = {}  # by place: why ways to its server do not lead there
        beside, port = config["job"].pop("beside"), config["job"]["port"]
        self._dial = (
            partial(dial_local, beside) if beside else partial(dial_at_once, "127.0.0.1", port, PROBE_SECONDS)
        )
        self._sends = False  # whether farm_executor is sent along
        self._loop = Loop()
        self._loop.start()

    def look(self, most: int | None) -> None:
        """Place servers where there are none yet, and again where they have ended; with ``most``, so many."""
        for place, placed in list(self._placed.items()):
            if placed.grant.done():
                self._forget(place)
                try:
                    word = placed.grant.outcome()
                except Exception as error:
                    word = {"error": str(error)}
                if is_sent(word) and not self._sends:
                    self._sends = True
                    word = {}
                say(ended=place, **{name: word[name] for name in REASONS if name in word})
        room = self._engine.room(self._placed, most)
        for place in room.gone:
            self._forget(place).grant.cancel()
            say(ended=place)
        for place, workers in room.free.items():
            slots = min(workers, self._workers - self._asked()) if self._workers else workers
            if slots > 0:
                self._place(place, slots)
        said = f"{room.said}, and {len(self._placed)} servers have been asked for"
        say(said=said + self._why(), servers=len(self._placed), lacks=self._workers > self._asked())

    def end(self) -> None:
        """End all servers, and wait for those that can be told."""
        for placed in self._placed.values():
            placed.near.end()
        until = time.monotonic() + END_SECONDS
        for placed in self._placed.values():
            while placed.near.answered and not placed.grant.done() and time.monotonic() < until:
                time.sleep(END_SECONDS / 100)

    def _asked(self) -> int:
        return sum(placed.slots for placed in self._placed.values())

    def _place(self, place: str, slots: int) -> None:
        job = self._config["job"]
        carried = {"sent": sent()} if self._sends else {}
        lines = errand(**job, **carried, host=self._engine.here, slots=slots, name=self._engine.name(place))
        arguments = (self._config["wanted"]["python"], COMMAND, base64.b64encode(lines).decode(), job["mark"])
        grant = self._engine.place(place, slots, *arguments)
        near = Near(self._loop, grant.call, self._dial, partial(self._hear, place))
        self._placed[place] = Placed(grant, slots, near)
        self._failed[place] = {}
        near.start()

    def _forget(self, place: str) -> Placed:
        del self._failed[place]
        placed = self._placed.pop(place)
        placed.near.close()
        return placed

    def _hear(self, place: str, word: dict[str, Any]) -> None:
        """Hear what a server says, in the loop's thread."""
        failed = self._failed.get(place, {})
        if "tried" in word:
            failed[str(word["tried"])] = str(word["error"])
        elif "ready" in word:
            met = {"met": place, "server": word["server"], "name": word["name"]}
            say(**met, at=None)
            if not word["at"]:
                return
            host, port = word["at"]

            def told(why: str) -> None:
                if why:
                    failed["direct"] = f"{host}:{port}: {why}"
                else:
                    say(**met, at=[host, port])

            probe(host, port, told)

    def _why(self) -> str:
        """Say for one server, of those that no way may lead to, why that is."""
        for place, failed in list(self._failed.items()):
            carried = self._placed[place].near.failure
            found = {**failed, **({"engine": carried} if carried else {})}
            if found:
                listed = "; ".join(f"{way}: {why}" for way, why in found.items())
                return f"; one of them cannot be reached, or could not at first: {listed}"
        return ""
