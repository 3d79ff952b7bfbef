"""Servers that an engine holds, Dask or Ray: each by a task of the engine's that lasts as long as the server.

This module owns the near end: the gateway, which talks to the engine, and what becomes of its failures. It must not
import an engine, which only the gateway does, nor know how a server is reached, see `cluster`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from typing import Any, Protocol

from farm_executor.client.launching import FindKey
from farm_executor.core.messages import MAX_MESSAGE
from farm_executor.core.text import one_line
from farm_executor.errors import AuthenticationError, BrokenFarmError, FarmError
from farm_executor.launch import errand
from farm_executor.launch.cluster import ClusterServers, Home
from farm_executor.launch.errand import explained
from farm_executor.launch.forms import WAYS
from farm_executor.launch.path import PACKAGE_ROOT
from farm_executor.wire.address import Address
from farm_executor.wire.sockets import beside

__all__ = ["Gateway", "source_of"]

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 10.0  # without us, until a server ends: nothing else tells it that this program was killed
GATEWAY_SECONDS = 15.0  # for the gateway to end

_GATEWAY = (
    f"import gc; gc.disable(); import sys; sys.path[:] = [*filter(None, sys.path), {PACKAGE_ROOT!r}]; "
    "from farm_executor.launch.gateway import main; main(); import os; os._exit(0)"
)


class Form(Protocol):
    """What an address says of an engine; see `forms`."""

    @property
    def scheme(self) -> str:
        """The engine's name, which is that of the extra, too."""

    @property
    def host(self) -> str:
        """Where it is."""

    @property
    def cluster(self) -> str:
        """What the engine itself calls that."""

    @property
    def python(self) -> str:
        """The interpreter of the servers; empty for the engine's."""

    @property
    def gpus(self) -> int:
        """GPUs of each worker."""

    @property
    def via(self) -> str:
        """The one of `WAYS` that is used; empty for any."""

    @property
    def env(self) -> tuple[tuple[str, str], ...]:
        """Variables of each worker."""

    def _asdict(self) -> dict[str, Any]: ...


def source_of(address: Address, find_key: FindKey) -> ClusterServers:
    """Return the servers of an address whose ``grant`` is such a form."""
    return ClusterServers(address, find_key, Gateway(address.grant))


class Gateway:
    """The process that talks to the engine, started again if it ends; a `cluster.Asker`."""

    told = True

    def __init__(self, form: Form) -> None:
        self._form = form
        self._child: _Child | None = None
        # Nobody but this user's programs is passed through there: see docs/explanation/security.md.
        engine = form.via in ("", "engine") and sys.platform == "linux"
        self._beside = beside(secrets.token_hex(16)) if engine else None
        self._said = f"{form.scheme} has been asked, and says nothing so far"
        self._servers = 0  # how many have been asked for
        self._lacks = False  # whether the cluster has no room for all that is wanted
        self._failure = ""
        self._kind: type[FarmError] = BrokenFarmError
        self._home: Home | None = None  # since servers were asked for
        self._met: dict[str, str] = {}  # by place: the word of the server there, see `Rendezvous.meet`

    @property
    def listen(self) -> list[Address]:
        """See `cluster.Asker`."""
        # What the engine carries is passed on by the gateway, on this machine.
        port = Address(errand.LISTEN if self._form.via in ("", "back") else "127.0.0.1", 0)
        return [port, self._beside] if self._beside else [port]

    def ask(self, home: Home, most: int | None) -> None:
        """See `cluster.Asker`."""
        self._home = home
        if self._child is None or self._child.ended:
            self._failure, self._kind = "", BrokenFarmError
            for server in self._met.values():  # nobody would tell of their ends
                home.part(server)
            self._met.clear()
            self._child = _Child(self._order(most), self._hear, home.changed)
            try:
                job = self._job(*home.meeting())  # while it imports the engine, which takes longer
            except BaseException:
                self._child.let_go()
                raise
            self._child.tell({"job": job})
        elif most is not None:
            self._child.tell({"most": most})

    def see(self, names: Collection[str]) -> None:
        """See `cluster.Asker`. The engine says what it has lost."""

    def release(self, name: str) -> None:
        """See `cluster.Asker`."""

    @property
    def failure(self) -> FarmError | None:
        """See `cluster.Asker`."""
        return self._kind(self._failure) if self._failure else None

    def why(self) -> str:
        """See `cluster.Asker`."""
        return self._said

    def lacks(self, have: int) -> bool:
        """See `cluster.Asker`."""
        return have < self._servers or self._lacks

    def let_go(self) -> None:
        """See `cluster.Asker`."""
        if self._child is not None:
            self._child.let_go()

    def end(self) -> None:
        """See `cluster.Asker`."""
        self.let_go()
        if self._child is not None:
            self._child.end()

    def abandon(self) -> None:
        """See `cluster.Asker`."""
        if self._child is not None:
            self._child.abandon()

    def _order(self, most: int | None) -> dict[str, Any]:
        form = self._form
        return {"engine": form.scheme, "cluster": form.cluster, "wanted": form._asdict(), "most": most}

    def _job(self, secret: str, port: int) -> dict[str, Any]:
        form = self._form
        return {
            "mark": secrets.token_hex(16),
            "key": secret,
            "port": port,
            "beside": self._beside.path if self._beside else "",
            "gpus": form.gpus,
            "env": list(form.env),
            "via": [form.via] if form.via else list(WAYS),
            "patience": PATIENCE_SECONDS,
        }

    def _hear(self, word: dict[str, Any]) -> None:
        """Hear what the gateway says, in its thread."""
        form, home = self._form, self._home
        assert home is not None
        place = word.get("ended") or word.get("met")
        # Another in its place makes an end of it, too.
        if place in self._met and self._met[place] != word.get("server"):
            home.part(self._met.pop(place))
        if "met" in word:
            self._met[word["met"]] = word["server"]
            home.meet(word["server"], one_line(word["name"], MAX_MESSAGE), word["at"] and tuple(word["at"]))
        elif "ended" in word and "error" in word:
            error = explained(str(form), form.python, word)
            self._kind, self._failure = type(error), str(error)
            home.changed()
        elif "ended" in word:
            logger.info("server ended of=%s place=%s", form, one_line(str(word["ended"]), MAX_MESSAGE))
        elif "indirect" in word:
            where, why = (one_line(str(word[name]), MAX_MESSAGE) for name in ("indirect", "why"))
            logger.info("bytes go through the scheduler of=%s worker=%s reason=%s", form, where, why)
        elif "lacking" in word:
            self._failure = (
                f"cannot ask {form}: the package {word['lacking']} is not installed here: "
                f"python -m pip install 'farm_executor[{form.scheme},tls]'"
            )
        elif "refused" in word:
            said = one_line(str(word["refused"]), MAX_MESSAGE)
            self._kind, self._failure = AuthenticationError, f"{form} does not let this program in: {said}"
        elif "unreachable" in word:
            self._said = one_line(str(word["unreachable"]), MAX_MESSAGE)
        elif "said" in word:
            self._said = one_line(str(word["said"]), MAX_MESSAGE)
            self._servers = int(word["servers"])
            self._lacks = bool(word["lacks"])


class _Child:
    """The process, and the thread that hears it.

    Attributes:
        ended: Whether the process has ended.
    """

    def __init__(
        self, order: dict[str, Any], hear: Callable[[dict[str, Any]], None], changed: Callable[[], None]
    ) -> None:
        self._hear = hear
        self._changed = changed
        self.ended = False
        self._process = subprocess.Popen(
            [sys.executable, "-c", _GATEWAY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self.tell(order)
        self._thread = threading.Thread(target=self._read, name="farm-gateway", daemon=True)
        self._thread.start()

    def tell(self, word: dict[str, Any]) -> None:
        """Send it a line, if it is there."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # its end has been closed, or ours
            self._process.stdin.write(json.dumps(word).encode() + b"\n")

    def let_go(self) -> None:
        """Make it end, without waiting for that."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def end(self) -> None:
        """Make it end, and wait."""
        self.let_go()
        self._thread.join(GATEWAY_SECONDS)
        if self._thread.is_alive():
            self._process.kill()
            self._thread.join()

    def abandon(self) -> None:
        """In a forked child: close our ends of the pipes."""
        self.let_go()
        if self._process.stdout is not None:
            self._process.stdout.close()  # not buffered: no lock of it is held by a thread of the parent's
        self._process.returncode = 0  # so that its destructor does not wait for a process that is not our child

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            while line := lines.readline():
                with contextlib.suppress(ValueError, TypeError):  # something else has printed there
                    self._hear(json.loads(line))
        self._process.wait()
        self.let_go()
        self.ended = True
        self._changed()
