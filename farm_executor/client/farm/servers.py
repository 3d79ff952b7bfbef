"""A farm's servers: which there are, and what is known of each.

This module owns the servers that are added, found by a name, and removed, how many workers each gives, and which of
them refuse us. It must not know tasks, nor what is said over connections: for that each has a `Session`, one after
the other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

from farm_executor.client.farm.discovery import Discovery
from farm_executor.client.farm.kills import Kills
from farm_executor.client.farm.link import ServerLink, Settings, at
from farm_executor.client.farm.liveness import Liveness
from farm_executor.client.farm.reactor import Reactor
from farm_executor.client.farm.session import Around, Session, SessionCrew
from farm_executor.core.lifecycle import SessionState
from farm_executor.errors import WorkerLostError
from farm_executor.wire.address import Address
from farm_executor.wire.connection import Connection

__all__ = ["Servers", "Sources"]

logger = logging.getLogger(__name__)

REPORT_EVERY = 300.0  # seconds between two log lines about the same refusal
LAST_SECONDS = 1.0  # for threads that dial or look up names, which nobody can interrupt in all they do


class Sources(NamedTuple):
    """Where a farm's servers are.

    Attributes:
        addresses: Of each server, as it was given; None for an embedded one, which has yet to get its own.
        locations: For each server a function that gives its address, starting it if need be.
        quotas: For each server the most lanes to open, None for all its slots.
        names: Each stands for servers that come and go, with all their slots.
    """

    addresses: list[Address | None]
    locations: list[Callable[[bool], Address]]
    quotas: list[int | None]
    names: list[Address]


class Servers:
    """See the module.

    Args:
        sources: Where they are.
        settings: What all links share.
        reactor: Runs what is to be done in the farm's own thread.
        crew: Has the lanes.
        kills: Are told what supervisors answer to orders.
        seats_gone: Told of places that there are no more, and why.
        refused: Told why no server wants us, and that it is no use to try again.

    Attributes:
        answered: For each server a future of how many workers it gives us, known when it has answered first.
        named: For each name a future of its servers' being known.
        counts: How many workers each server gives us now.

    Thread safety: `start`, `add`, `remove`, `unanswered`, `in_reach`, `open_session`, `refused`, `sessions` and
    iteration may be called from any thread, the others from handlers.
    """

    def __init__(
        self,
        sources: Sources,
        settings: Settings,
        reactor: Reactor,
        crew: SessionCrew,
        kills: Kills,
        seats_gone: Callable[[list[Hashable], str], None],
        refused: Callable[[Exception], None],
    ) -> None:
        self._settings = settings
        self._reactor = reactor
        self._on_seats_gone = seats_gone
        self._on_refusal = refused
        self._closed = False
        self._links = [
            ServerLink(address, locate, quota, settings, self)
            for address, locate, quota in zip(*sources[:3], strict=True)
        ]
        self._discoveries = {Discovery(name, partial(self._found, name)): name for name in sources.names}
        self._discovered: dict[Address, dict[Address, ServerLink]] = {name: {} for name in sources.names}
        self._aside: dict[ServerLink, Exception] = {}  # that refuse us, and why
        self._next_report: dict[ServerLink, float] = {}
        self._removed: dict[ServerLink, Future[None]] = {}
        self._around = Around(
            settings.heartbeat,
            settings.resume_seconds,
            reactor,
            crew,
            kills,
            Liveness(
                settings.heartbeat, reactor.after, Session.ping, Session.moved, Session.on_silence, crew.on_stuck
            ),
        )
        self.answered: dict[ServerLink, Future[int]] = {link: Future() for link in self._links}
        self.named: dict[Address, Future[None]] = {name: Future() for name in sources.names}
        self.counts: dict[ServerLink, int] = {}

    def __iter__(self) -> Iterator[ServerLink]:
        return iter(list(self._links))

    def sessions(self) -> list[Session]:
        """Those that there are. Any thread may ask."""
        return [session for link in self if (session := link.session) is not None]

    def start(self) -> None:
        """Begin to dial."""
        for source in self._all():
            source.start()

    def _all(self) -> list[ServerLink | Discovery]:
        return [*self._links, *self._discoveries]

    def unanswered(self) -> list[ServerLink | Discovery]:
        """The servers, and the names of some, that have not answered yet."""
        names = [source for source, name in self._discoveries.items() if not self.named[name].done()]
        return [*names, *(link for link, answer in list(self.answered.items()) if not answer.done())]

    def in_reach(self) -> bool:
        """Whether there is a way to one of them, or one has yet to be dialled for the first time."""
        return any(link.up for link in self) or any(not source.last_error for source in self.unanswered())

    def prospects(self) -> int:
        """How many workers are about to come: of servers that have answered, and of those that are sure to."""
        return sum(self.counts.get(link, 0) if link.up else link.prospects for link in self)

    def describe(self) -> str:
        """Each of them, and what came of dialling it, for people."""
        return "; ".join(f"{source} ({source.last_error or 'no answer'})" for source in self._all())

    # -- which there are -----------------------------------------------------------------------------------

    def add(self, address: Address, locate: Callable[[bool], Address]) -> ServerLink:
        """Dial one more server, for all its slots."""
        link = ServerLink(address, locate, None, self._settings, self)
        self.answered[link] = Future()
        self._links.append(link)
        link.start()
        if self._closed:
            link.close()
        return link

    def remove(self, address: Address, *, drain: bool) -> Future[None] | None:
        """Send a server nothing more, and let go of it when its workers have ended what they have begun.

        Returns:
            A future of the moment in which it is gone; None if there is no such server.
        """
        link = next((link for link in self if str(link) == str(address)), None)
        if link is None:
            return None
        gone = self._removed.setdefault(link, Future())
        self._reactor.post(partial(self._remove, link, drain))
        return gone

    def _remove(self, link: ServerLink, drain: bool) -> None:
        if link not in self._links:
            return
        session = link.session
        if session is None or session.state is SessionState.OVER:
            self._let_go(link)
        elif drain:
            session.leave()
        else:
            session.give_up()

    def _let_go(self, link: ServerLink) -> None:
        """A server that is removed has no session any more."""
        link.close()
        self._links.remove(link)
        self._aside.pop(link, None)
        seats: list[Hashable] = [(link, slot) for slot in range(self.counts.pop(link, 0))]
        self._on_seats_gone(seats, f"server {link} has been removed")
        answered = self.answered.pop(link)
        if not answered.done():
            answered.set_exception(WorkerLostError(f"server {link} has been removed"))
        self._removed.pop(link).set_result(None)

    def _found(self, name: Address, addresses: list[Address]) -> None:
        """For `Discovery`: these are the machines that the name stands for."""
        known = self._discovered[name]
        for address in addresses:
            if address not in known and not self._closed:
                known[address] = self.add(address, at(address))
                logger.info("server found name=%s server=%s", name, address)
        for address, link in list(known.items()):
            if address not in addresses and not link.up:
                del known[address]
                self.remove(address, drain=False)
                logger.info("server gone name=%s server=%s", name, address)
        if not self.named[name].done():
            self.named[name].set_result(None)

    # -- what links tell, in their threads -----------------------------------------------------------------

    def open_session(
        self, link: ServerLink, id: str, slots: int, *, resumable: bool, wants_modules: bool, peer: Any
    ) -> Session:
        """See `link.Listener`."""
        up, over = partial(self._on_session, link), partial(self._on_session_over, link)
        return Session(
            *(link, id, slots, self._around, up, over),
            resumable=resumable,
            wants_modules=wants_modules,
            peer=peer,
        )

    def refused(self, link: ServerLink, error: Exception) -> None:
        """See `link.Listener`."""
        self._reactor.post(partial(self._set_aside, link, error))

    def _set_aside(self, link: ServerLink, error: Exception) -> None:
        """One server costs itself alone; if there is none that may ever work, the farm is broken."""
        if link not in self._links:
            return
        known = self._aside.setdefault(link, error)
        if not self._discoveries and self._aside.keys() >= set(self._links):
            self._on_refusal(next(iter(self._aside.values())))
        elif known is error or time.monotonic() >= self._next_report[link]:
            self._next_report[link] = time.monotonic() + REPORT_EVERY
            logger.warning("farm_executor: server set aside server=%s error=%s", link, link.last_error)

    # -- what sessions tell --------------------------------------------------------------------------------

    def _on_session(self, link: ServerLink, session: Session) -> None:
        """A server has opened a session, and so has answered."""
        self._aside.pop(link, None)
        before, self.counts[link] = self.counts.get(link, 0), session.slots
        if before > session.slots:
            gone: list[Hashable] = [session.seat(slot) for slot in range(session.slots, before)]
            self._on_seats_gone(gone, f"server {link} has come back with {session.slots} workers only")
        if not self.answered[link].done():
            self.answered[link].set_result(session.slots)

    def _on_session_over(self, link: ServerLink, session: Session) -> None:
        """Unless the server is removed, another session may come at its address."""
        if link in self._removed:
            self._let_go(link)
        else:
            link.control_lost(session)

    # -- the end -------------------------------------------------------------------------------------------

    def close(self, *, hurry: bool) -> None:
        """Stop dialling, and end every session; with ``hurry`` workers need no time to end well."""
        self._closed = True
        for source in self._all():
            source.close()
        for session in self.sessions():
            session.close(hurry=hurry)
        patience = time.monotonic() + LAST_SECONDS
        for source in self._all():
            source.join(max(patience - time.monotonic(), 0.0))

    def answer_no_more(self, error: Callable[[], BaseException]) -> None:
        """Tell those who wait for servers that there will be none, each with an error of its own."""
        awaited: list[Future[Any]] = [*self.answered.values(), *self._removed.values(), *self.named.values()]
        for answer in awaited:
            if not answer.done():
                answer.set_exception(error())

    def abandon(self) -> list[Connection]:
        """In a forked child: the parent's connections, to let go of."""
        return [session.control for session in self.sessions() if session.control is not None]
