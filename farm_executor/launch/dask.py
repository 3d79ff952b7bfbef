"""Servers beside the workers of a Dask cluster, each held by a task of Dask's that takes one of its threads.

This module owns the near end: the gateway, which talks to Dask, and what becomes of its failures. It must not
import dask, which only the gateway does, nor know how a server is reached: it dials us, see `back`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from farm_executor.client.launching import FindKey, Locate
from farm_executor.core.messages import MAX_MESSAGE, AdminHello, to_json
from farm_executor.core.text import one_line
from farm_executor.errors import BrokenFarmError, FarmError
from farm_executor.launch import errand
from farm_executor.launch.back import Rendezvous
from farm_executor.launch.errand import explained, fresh_key
from farm_executor.launch.forms import Dask
from farm_executor.launch.path import PACKAGE_ROOT
from farm_executor.wire.address import Address
from farm_executor.wire.dialling import connect
from farm_executor.wire.security import Key

__all__ = ["DaskServers"]

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 10.0  # without us, until a server ends: nothing else tells it that this program was killed
END_SECONDS = 2.0  # for a server to answer that it ends
GATEWAY_SECONDS = 15.0  # for the gateway to end

_GATEWAY = (
    f"import sys; sys.path[:] = [*filter(None, sys.path), {PACKAGE_ROOT!r}]; "
    "from farm_executor.launch.gateway import main; main()"
)


class DaskServers:
    """The servers of one address; a `client.launching.Source`.

    Args:
        address: An address whose ``grant`` is a `forms.Dask`.
        find_key: Not used: the servers get a key of their own.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(self, address: Address, find_key: FindKey) -> None:
        self._target = address
        self._dask: Dask = address.grant
        self._find_key = find_key
        self._lock = threading.Lock()
        self._place: Rendezvous | None = None
        self._secret = ""
        self._key: Key | None = None
        self._gateway: _Gateway | None = None
        self._changed: Callable[[], None] = lambda: None
        self._was_up = False
        self._ended = False

    def __str__(self) -> str:
        return str(self._target)

    def look(self) -> list[tuple[Address, Locate]]:
        """See `client.launching.Source`.

        Raises:
            BrokenFarmError: There is no dask here, or no farm_executor there.
            OSError: There is no server so far.
        """
        with self._lock:
            if self._ended:
                return []
            if self._place is None:
                self._secret, self._key = fresh_key()
                place = Rendezvous(self._target, self._find_key, where=Address(errand.LISTEN, 0), key=self._key)
                place.watch(lambda: self._changed())
                place.listen()
                self._place = place
            place, gateway = self._place, self._gateway
            if gateway is None or (gateway.ended and not gateway.failure):
                last = gateway
                gateway = self._gateway = _Gateway(self._dask, self._order(place), lambda: self._changed())
                if last is not None:
                    gateway.said = last.said
        # Once there has been a server, what keeps the next from starting may pass.
        if gateway.failure and not self._was_up:
            raise BrokenFarmError(gateway.failure)
        try:
            found = place.look()
        except ConnectionError:
            raise ConnectionError(gateway.failure or gateway.said) from None
        self._was_up = True
        return found

    def watch(self, changed: Callable[[], None]) -> None:
        """See `client.launching.Source`."""
        self._changed = changed

    def let_go(self) -> None:
        """See `client.launching.Source`."""
        self._ended = True
        if self._gateway is not None:
            self._gateway.let_go()

    def end(self) -> None:
        """End the servers, and wait for the gateway. May be called twice."""
        self.let_go()
        with self._lock:
            place, self._place = self._place, None
        if place is not None and self._key is not None:
            with contextlib.suppress(OSError):  # none is there
                for address, _ in place.look():
                    # Otherwise it would wait for us in vain, and hold its thread.
                    with contextlib.suppress(OSError, EOFError, FarmError):
                        connect(address, self._key, to_json(AdminHello("end")), END_SECONDS)[0].close()
            place.end()
        if self._gateway is not None:
            self._gateway.end()

    def abandon(self) -> None:
        """In a forked child: release everything without ending it, as it is the parent's."""
        self._ended = True
        if self._place is not None:
            self._place.abandon()
        if self._gateway is not None:
            self._gateway.abandon()

    def _order(self, place: Rendezvous) -> dict[str, Any]:
        return {
            "scheduler": self._dask.scheduler,
            "host": self._dask.host,
            "workers": self._dask.workers,
            "per": self._dask.per,
            "job": {
                "mark": secrets.token_hex(16),
                "key": self._secret,
                "port": place.port,
                "gpus": 0,
                "env": list(self._dask.env),
                "patience": PATIENCE_SECONDS,
            },
        }


class _Gateway:
    """The process that talks to Dask, and the thread that hears it.

    Attributes:
        said: What the cluster is like, for people.
        failure: Why no server can ever come; empty if one may.
        ended: Whether the process has ended.
    """

    def __init__(self, dask: Dask, order: dict[str, Any], changed: Callable[[], None]) -> None:
        self._dask = dask
        self._changed = changed
        self.said = "dask has been asked, and says nothing so far"
        self.failure = ""
        self.ended = False
        self._process = subprocess.Popen(
            [sys.executable, "-c", _GATEWAY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._thread = threading.Thread(target=self._read, name="farm-gateway", daemon=True)
        self._thread.start()

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

    def _hear(self, word: dict[str, Any]) -> None:
        if "ended" in word and "error" in word:
            self.failure = explained(str(self._dask), "", word)
            self._changed()
        elif "ended" in word:
            logger.info("server ended of=%s beside=%s", self._dask, one_line(str(word["ended"]), MAX_MESSAGE))
        elif "missing" in word:
            self.failure = (
                f"cannot ask {self._dask}: the package {word['missing']} is not installed here: "
                "python -m pip install 'farm_executor[dask,tls]'"
            )
        elif "unreachable" in word:
            self.said = one_line(str(word["unreachable"]), MAX_MESSAGE)
        elif "threads" in word:
            self.said = f"dask has {word['threads']} threads, and {word['servers']} servers have been asked for"
