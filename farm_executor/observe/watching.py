"""Many servers, each asked over a connection that stays.

This module owns who is dialled and asked when. It must not know what the answers mean.

Threads dial, as that may take seconds; one thread, the caller's, asks and reads. A server that is slow to answer
keeps nobody waiting: what it said last stays until it says something else.
"""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections.abc import Iterable
from queue import Empty, SimpleQueue

from farm_executor.admin import Watch
from farm_executor.core.text import one_line
from farm_executor.errors import FarmError
from farm_executor.observe.model import Server
from farm_executor.wire.address import Address
from farm_executor.wire.advice import explained
from farm_executor.wire.security import client_key

__all__ = ["Watching"]

DIALLERS = 32
SILENT_SECONDS = 10.0  # without an answer, after which a server is dialled again
MAX_ERROR = 300  # characters


class Watching:
    """Watches servers; see the module. Not thread-safe.

    Args:
        addresses: The servers.
        key_file: See `client_key`.
        timeout: Seconds for a connection to be made.

    Attributes:
        servers: What is known of each, in the order given.
    """

    def __init__(
        self, addresses: Iterable[Address], key_file: str | os.PathLike[str] | None = None, timeout: float = 3.0
    ) -> None:
        self._addresses = {str(address): address for address in addresses}
        self.servers = {name: Server(name) for name in self._addresses}
        self._key_file = key_file
        self._timeout = timeout
        self._watches: dict[str, Watch] = {}
        self._heard: dict[str, float] = {}
        self._dialling: set[str] = set()
        self._wanted: SimpleQueue[str | None] = SimpleQueue()
        self._dialled: SimpleQueue[tuple[str, Watch | str]] = SimpleQueue()
        self._selector = selectors.DefaultSelector()
        # Daemons: who wants to leave does not wait for a server that is down.
        self._threads = [threading.Thread(target=self._dial, daemon=True) for _ in self._addresses][:DIALLERS]
        for thread in self._threads:
            thread.start()

    def tick(self, wait: float) -> None:
        """Ask every server, and wait for their answers, but no longer than that many seconds."""
        for name in self._addresses:
            if name not in self._watches and name not in self._dialling:
                self._dialling.add(name)
                self._wanted.put(name)
        due = set(self._watches)
        for name in list(due):
            self._watches[name].ask()
        end = time.monotonic() + wait
        while (due or self._dialling) and (left := end - time.monotonic()) > 0:
            due |= self._take_dialled(0.0 if due else left)
            if due:
                # In short steps while somebody is being dialled, whose end no selector knows of.
                for key, _ in self._selector.select(min(left, 0.02) if self._dialling else left):
                    if self._take(key.data):
                        due.discard(key.data)
        now = time.monotonic()
        for name in [name for name, heard in self._heard.items() if now - heard > SILENT_SECONDS]:
            self._lose(name, f"no answer for {SILENT_SECONDS:.0f} s")

    def close(self) -> None:
        """Hang up."""
        for _ in self._threads:
            self._wanted.put(None)
        for name in list(self._watches):
            self._lose(name, "closed")
        self._selector.close()

    def _take(self, name: str) -> bool:
        """Take what a server says; return whether nothing more is due from it."""
        watch = self._watches.get(name)
        if watch is None:
            return True
        try:
            status = watch.take()
        except (EOFError, OSError, FarmError) as error:
            self._lose(name, f"{type(error).__name__}: {error}")
            return True
        if status is None:
            return False
        self._heard[name] = now = time.monotonic()
        self.servers[name].take(status, now)
        return True

    def _take_dialled(self, wait: float) -> set[str]:
        """Take the connections that threads have made; return those servers, which have been asked."""
        asked: set[str] = set()
        while True:
            try:
                name, found = self._dialled.get(wait > 0, wait or None)
            except Empty:
                return asked
            wait = 0.0
            self._dialling.discard(name)
            if isinstance(found, str):
                self.servers[name].lose(found)
                continue
            self._watches[name] = found
            self._heard[name] = time.monotonic()
            self._selector.register(found, selectors.EVENT_READ, name)
            found.ask()
            asked.add(name)

    def _lose(self, name: str, why: str) -> None:
        watch = self._watches.pop(name)
        del self._heard[name]
        self._selector.unregister(watch)
        watch.close()
        self.servers[name].lose(one_line(why, MAX_ERROR))

    def _dial(self) -> None:
        while (name := self._wanted.get()) is not None:
            address = self._addresses[name]
            try:
                key = client_key(None, self._key_file, address, make=False)
                found: Watch | str = Watch(address, key, self._timeout)
            except (OSError, FarmError) as error:
                found = one_line(explained(error, address), MAX_ERROR)
            except Exception as error:  # a thread must not end of it: nobody would dial the server again
                found = one_line(f"{type(error).__name__}: {error}", MAX_ERROR)
            self._dialled.put((name, found))
