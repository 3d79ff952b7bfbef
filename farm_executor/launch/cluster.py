"""Servers that a cluster grants: what is the same for all kinds of clusters.

This module owns the key that is made for one address's servers, the place where they are waited for, what a wait
and a failure mean, and the end. It must not know how a cluster is asked, which an `Asker` does: `slurm` by srun,
`engine` by a child process that speaks with Dask or Ray. Another kind of cluster is another asker.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from farm_executor._record import NamedTuple
from farm_executor.client.launching import FindKey, Locate
from farm_executor.core.elastic import Elastic
from farm_executor.core.messages import AdminHello, to_json
from farm_executor.errors import FarmError
from farm_executor.launch.attending import Attending
from farm_executor.launch.back import Rendezvous
from farm_executor.launch.errand import check_keys, fresh_key, read_content
from farm_executor.wire.address import Address
from farm_executor.wire.dialling import connect
from farm_executor.wire.security import Key

if TYPE_CHECKING:
    from farm_executor.client.farm.observer import View

__all__ = ["Asker", "ClusterServers", "Home"]

logger = logging.getLogger(__name__)

FIRST_REPORT = 5.0  # seconds of waiting until that is worth a line in the log
REPORT_EVERY = 30.0  # seconds between two log lines about the same wait
END_SECONDS = 2.0  # for a server to answer that it ends


class Home(NamedTuple):
    """What servers need to dial this program.

    Attributes:
        meeting: Returns the content of their key file, and the port where they are waited for. The first call makes
            the key, which takes as long as some imports: begin what takes time before it.
        changed: To be called, in any thread, when it is worth looking again.
        meet: To be called, in any thread, with a server whose end will be told; see `Rendezvous.meet`.
        part: To be called when it has ended.
    """

    meeting: Callable[[], tuple[str, int]]
    changed: Callable[[], None]
    meet: Callable[[str, str, tuple[str, int] | None], None]
    part: Callable[[str], None]


class Asker(Protocol):
    """Asks a cluster for the servers of one address.

    Attributes:
        told: Whether its servers end by being told to. Others end with what holds them, and need not be dialled.

    Thread safety: `ask` is never called by two threads at once; the others may be called from any.
    """

    told: bool

    @property
    def listen(self) -> list[Address]:
        """Where on this machine its servers are waited for; the first has a port, any free one."""

    def ask(self, home: Home, most: int | None) -> None:
        """Have as many servers asked for as are wanted, without waiting for them. Called with each look.

        Args:
            home: Where they are to dial.
            most: How many are wanted; None for as many as the address says. Those that are too many and have not
                come may be taken back; those that have come are left alone.

        Raises:
            BrokenFarmError: This program lacks what it takes to ask.
        """

    @property
    def failure(self) -> FarmError | None:
        """Why no server can be had, as an error to be raised once; None if one may come yet."""

    def why(self) -> str:
        """Return why there is no further server so far, for people. It may ask, and take seconds."""

    def lacks(self, have: int) -> bool:
        """Return whether more is wanted than these servers."""

    def see(self, names: Collection[str]) -> None:
        """Hear which servers can be reached, of all that have come. Called with each look."""

    def release(self, name: str) -> None:
        """Ask for none in place of the server of that name, which is about to be told to end."""

    def let_go(self) -> None:
        """Ask for no more, and make all servers end that end with this, without waiting."""

    def end(self) -> None:
        """Wait for that. May be called twice."""

    def abandon(self) -> None:
        """In a forked child: release everything without ending it, as it is the parent's."""


class ClusterServers:
    """The servers of one address; a `client.launching.Source`.

    Args:
        address: The address that they are called by.
        find_key: Not used: the servers get a key of their own.
        asker: Asks for them.

    Attributes:
        key: The content of the key file that the servers get, if that is not to be made for them. Set it before the
            first look.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(self, address: Address, find_key: FindKey, asker: Asker) -> None:
        self._target = address
        self._find_key = find_key
        self._asker = asker
        form = address.grant
        self._rule = Elastic(form.min, form.max, form.idle, form.per or 1) if form.max else None
        self._wanted = None if self._rule is None else self._rule.wanted
        self._attending: Attending | None = None
        self.key = ""
        self._lock = threading.Lock()
        self._place: Rendezvous | None = None
        self._key: Key | None = None
        self._meets_at = ("", 0)  # the content of the servers' key file, and the port, since there is a place
        self._home: Home | None = None
        self._changed: Callable[[], None] = lambda: None
        self._was_up = False  # whether any server has dialled in
        self._next_report = 0.0
        self._ended = False

    def __str__(self) -> str:
        return str(self._target)

    def look(self) -> list[tuple[Address, Locate]]:
        """See `client.launching.Source`.

        Raises:
            AuthenticationError: The cluster does not let this program in.
            BrokenFarmError: The cluster, or this machine, lacks what it takes, or the cluster refuses.
            OSError: There is no server so far.
        """
        with self._lock:
            if self._ended:
                return []
            if self._home is None:
                if not self.key:
                    check_keys()
                self._next_report = time.monotonic() + FIRST_REPORT
                self._home = Home(self._meeting, lambda: self._changed(), self._meet, self._part)
            failure = self._asker.failure
            # Once there has been a server, what keeps the next from starting may pass, such as a limit.
            if failure and not self._was_up:
                raise failure
            try:
                self._asker.ask(self._home, self._wanted)
            except FarmError:
                if not self._was_up:
                    raise
            place = self._open()
        try:
            found = place.look()
        except ConnectionError:
            self._asker.see(())
            if self._wanted == 0:
                return []
            raise ConnectionError(str(failure or self._asker.why())) from None
        self._was_up = True
        self._asker.see([address.grant.name for address, _ in found if address.grant.answers])
        if self._asker.lacks(len(found)) and self._next_report <= time.monotonic():
            self._next_report = time.monotonic() + REPORT_EVERY
            logger.warning(
                "farm_executor: waiting for more servers of=%s have=%d reason=%s",
                *(self._target, len(found), self._asker.why()),
            )
        return found

    def watch(self, changed: Callable[[], None]) -> None:
        """See `client.launching.Source`."""
        self._changed = changed

    def attend(self, view: Callable[[], View], remove: Callable[[Address], Future[None] | None]) -> None:
        """See `client.launching.Source`."""
        if self._rule is not None:
            self._attending = Attending(self, self._rule, view, remove)

    def there(self) -> list[Address]:
        """See `attending.Attended`."""
        place = self._place
        try:
            return [] if place is None else [address for address, _ in place.look()]
        except ConnectionError:
            return []

    def want(self, servers: int) -> None:
        """See `attending.Attended`."""
        with self._lock:
            self._wanted = servers
            if self._home is not None and not self._ended:
                # The next look asks again, and can tell the farm; an error here would end the thread that attends.
                with contextlib.suppress(FarmError, OSError):
                    self._asker.ask(self._home, servers)
        self._changed()

    def release(self, address: Address) -> None:
        """See `attending.Attended`."""
        self._asker.release(address.grant.name)
        self._tell(address)

    def let_go(self) -> None:
        """See `client.launching.Source`."""
        self._ended = True
        if self._attending is not None:
            self._attending.close()
        self._asker.let_go()

    def end(self) -> None:
        """End the servers, and wait for what has asked for them. May be called twice."""
        with self._lock:  # after this, nobody asks
            self.let_go()
            place, self._place = self._place, None
        if self._attending is not None:
            self._attending.join()
        if place is not None:
            if self._asker.told:
                self._tell_all(place)
            place.end()
        self._asker.end()

    def abandon(self) -> None:
        """In a forked child: release everything without ending it, as it is the parent's."""
        self._ended = True
        self._asker.abandon()
        if self._place is not None:
            self._place.abandon()

    def _open(self) -> Rendezvous:
        """Return where servers are waited for, and begin to. The lock is held."""
        if self._place is None:
            secret = self.key or fresh_key()
            self._key = read_content(secret)
            place = Rendezvous(self._target, self._find_key, where=self._asker.listen, key=self._key)
            place.watch(lambda: self._changed())
            self._meets_at = secret, place.listen()
            self._place = place
        return self._place

    def _meeting(self) -> tuple[str, int]:
        """See `Home`. The lock is held the first time."""
        if not self._meets_at[1]:  # once it has been opened, it may be gone while somebody still asks for a server
            self._open()
        return self._meets_at

    def _meet(self, word: str, name: str, at: tuple[str, int] | None) -> None:
        if (place := self._place) is not None:
            place.meet(word, name, at)

    def _part(self, word: str) -> None:
        if (place := self._place) is not None:
            place.part(word)

    def _tell_all(self, place: Rendezvous) -> None:
        """Tell all servers to end. Otherwise each would wait for us in vain, and hold what it has been granted."""
        with contextlib.suppress(OSError):  # none is there
            for address, _ in place.look():
                self._tell(address)

    def _tell(self, address: Address) -> None:
        assert self._key is not None
        with contextlib.suppress(OSError, EOFError, FarmError):
            connect(address, self._key, to_json(AdminHello("end")), END_SECONDS)[0].close()
