"""A farm's servers: the current set, and what is known of each.

This module owns the servers that are added, found by a name, and removed, how many workers each gives, and which of
them refuse us. It must not know tasks, nor what is said over connections: each server has a `Session` for that, one
after another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # not the builtin one before Python 3.11
from functools import partial
from typing import Any

from farm_executor._record import NamedTuple
from farm_executor.client.farm.discovery import Discovery, Locate, Lookout
from farm_executor.client.farm.kills import Kills
from farm_executor.client.farm.link import ServerLink, Settings
from farm_executor.client.farm.liveness import Liveness
from farm_executor.client.farm.reactor import Reactor
from farm_executor.client.farm.session import Around, Session, SessionCrew, Terms
from farm_executor.client.farm.wording import copy_of
from farm_executor.core.features import MODULES
from farm_executor.core.frames import Buffer
from farm_executor.core.lifecycle import SessionState
from farm_executor.errors import FarmError, WorkerLostError
from farm_executor.wire.address import Address
from farm_executor.wire.connection import Connection

__all__ = ["Servers", "Sources"]

logger = logging.getLogger(__name__)

REPORT_EVERY = 300.0  # seconds between two log lines about the same refusal
LAST_SECONDS = 1.0  # to wait for threads that dial or look up names: a lookup, for one, cannot be interrupted


class Sources(NamedTuple):
    """Where a farm's servers are.

    Attributes:
        addresses: The address of each server as given; None for an embedded one, which does not have its own yet.
        locations: For each server, a function that returns its address, starting it if need be.
        quotas: For each server, the most lanes to open; None for all its slots.
        names: Addresses of servers that come and go, each with all its slots, and where to look for these.
    """

    addresses: list[Address | None]
    locations: list[Locate]
    quotas: list[int | None]
    names: list[tuple[Address, Lookout]]


class Servers:
    """The servers of one farm; see the module.

    Args:
        sources: Where the servers are.
        settings: The settings that all links share.
        reactor: Runs events in the farm's own thread.
        crew: Owns the lanes.
        kills: Told how supervisors answer kill orders.
        seats_gone: Called with the seats that no longer exist, and the reason.
        refused: Called with the error when every server refuses us and trying again is pointless.
        pulse: See `session.Around`.

    Attributes:
        answered: For each server, a future of the number of workers it gives us, set when it first answers.
        named: For each name, a future that is set once the servers behind the name are known.
        counts: The number of workers that each server gives us now.

    Thread safety: `start`, `add`, `remove`, `unanswered`, `await_answers`, `in_reach`, `open_session`, `refused`,
    `sessions` and iteration may be called from any thread, the others from handlers.
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
        pulse: Callable[[int], list[Buffer]],
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
        self._discoveries = {
            Discovery(name, lookout, partial(self._found, name), partial(self._fail, name)): name
            for name, lookout in sources.names
        }
        self._discovered: dict[Address, dict[Address, ServerLink]] = {name: {} for name, _ in sources.names}
        self._aside: dict[ServerLink, Exception] = {}  # the servers that refuse us, and why
        self._failed: dict[Address, Exception] = {}  # the names behind which nothing can come, and why
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
            pulse,
        )
        self.answered: dict[ServerLink, Future[int]] = {link: Future() for link in self._links}
        self.named: dict[Address, Future[None]] = {name: Future() for name, _ in sources.names}
        self.counts: dict[ServerLink, int] = {}

    def __iter__(self) -> Iterator[ServerLink]:
        # A copy, as links are added and removed while other threads iterate.
        return iter(list(self._links))

    def sessions(self) -> list[Session]:
        """Return the current sessions. Any thread may call this."""
        return [session for link in self if (session := link.session) is not None]

    def start(self) -> None:
        """Begin to dial."""
        for source in self._all():
            source.start()

    def _all(self) -> list[ServerLink | Discovery]:
        return [*self._links, *self._discoveries]

    def unanswered(self) -> list[ServerLink | Discovery]:
        """Return the servers, and the names of servers, that have not answered yet."""
        names = [source for source, name in self._discoveries.items() if not self.named[name].done()]
        return [*names, *(link for link, answer in list(self.answered.items()) if not answer.done())]

    def await_answers(self, timeout: float | None) -> list[str]:
        """Wait until every server has answered, at most that many seconds; describe those that have not.

        Raises:
            Exception: The error that broke the farm meanwhile.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        # First the names: only then are the servers behind them known.
        for answers in (self.named, self.answered):
            waited: list[Future[Any]] = list(answers.values())
            for answer in waited:
                # One deadline for all: a farm of many silent servers must not take the timeout once for each.
                try:
                    error = answer.exception(None if deadline is None else max(deadline - time.monotonic(), 0.0))
                except FutureTimeoutError:
                    break
                # A copy, as several threads may wait for the same answer, and raising adds to the traceback.
                if isinstance(error, Exception):
                    raise copy_of(error)
        return [f"{source} ({source.last_error or 'no answer'})" for source in self.unanswered()]

    def in_reach(self) -> bool:
        """Return whether any server is connected, or has yet to fail for the first time."""
        return any(link.up for link in self) or any(not source.last_error for source in self.unanswered())

    def prospects(self) -> int:
        """Return how many workers are expected: from servers that have answered, and from embedded ones."""
        return sum(self.counts.get(link, 0) if link.up else link.prospects for link in self)

    def staying(self) -> dict[ServerLink, Future[int]]:
        """Return the servers that are not being removed, each with the future of its answer."""
        return {link: answer for link, answer in list(self.answered.items()) if link not in self._removed}

    def describe(self) -> str:
        """Return a text for people that names each server and the result of dialling it."""
        return "; ".join(f"{source} ({source.last_error or 'no answer'})" for source in self._all())

    # -- adding and removing -------------------------------------------------------------------------------

    def add(self, address: Address, locate: Locate) -> ServerLink:
        """Dial one more server, for all its slots."""
        link = ServerLink(address, locate, None, self._settings, self)
        # Before the link starts: its first answer looks for this future.
        self.answered[link] = Future()
        self._links.append(link)
        link.start()
        # Checked last. If `close` runs in another thread, either it finds the link in the list or this finds it
        # closed; closing a link twice does no harm.
        if self._closed:
            link.close()
        return link

    def remove(self, address: Address, *, drain: bool) -> Future[None] | None:
        """Send a server no more tasks, and let go of it once its workers have finished what they have begun.

        Returns:
            A future that is set when the server is gone; None if there is no such server.
        """
        link = next((link for link in self if str(link) == str(address)), None)
        return None if link is None else self._begin_to_remove(link, drain=drain)

    def _begin_to_remove(self, link: ServerLink, *, drain: bool) -> Future[None]:
        # Set before the event is posted: `_on_session_over` decides by it whether to dial again.
        gone = self._removed.setdefault(link, Future())
        self._reactor.post(partial(self._remove, link, drain))
        return gone

    def _remove(self, link: ServerLink, drain: bool) -> None:
        if link not in self._links:  # it has been let go of meanwhile
            if (gone := self._removed.pop(link, None)) is not None:
                gone.set_result(None)
            return
        session = link.session
        if session is None or session.state is SessionState.OVER:
            self._let_go(link)
        elif drain:
            session.leave()
        else:
            session.give_up()

    def _let_go(self, link: ServerLink) -> None:
        """Forget a server that is being removed and no longer has a session."""
        link.close()
        self._links.remove(link)
        self._aside.pop(link, None)
        seats: list[Hashable] = [(link, slot) for slot in range(self.counts.pop(link, 0))]
        self._on_seats_gone(seats, f"server {link} has been removed")
        answered = self.answered.pop(link)
        if not answered.done():
            answered.set_exception(WorkerLostError(f"server {link} has been removed"))
        self._removed.pop(link).set_result(None)

    def _found(self, name: Address, servers: list[tuple[Address, Locate]]) -> None:
        """Add and remove servers after `Discovery` has found those that a name stands for."""
        known = self._discovered[name]
        for address, locate in servers:
            if address not in known and not self._closed:
                known[address] = self.add(address, locate)
                logger.info("server found name=%s server=%s", name, address)
        # A server that is connected stays even if the name no longer lists it, because it evidently works.
        found = [address for address, _ in servers]
        for address, link in list(known.items()):
            if address not in found and not link.up:
                del known[address]
                # Not by its address: if it has been removed already, another may have come that has the same.
                self._begin_to_remove(link, drain=False)
                logger.info("server gone name=%s server=%s", name, address)
        if not self.named[name].done():
            self.named[name].set_result(None)

    # -- called by links, in their threads -----------------------------------------------------------------

    def open_session(self, link: ServerLink, terms: Terms) -> Session:
        """See `link.Listener`."""
        if MODULES in terms.features:
            self._around.crew.prepare()
        up, over = partial(self._on_session, link), partial(self._on_session_over, link)
        return Session(link, terms, self._around, up, over)

    def refused(self, link: ServerLink, error: Exception) -> None:
        """See `link.Listener`."""
        self._reactor.post(partial(self._set_aside, link, error))

    def _set_aside(self, link: ServerLink, error: Exception) -> None:
        """Set a server aside that refuses us; report to the engine if no other may ever work."""
        if link not in self._links:
            return
        known = self._aside.setdefault(link, error)
        if self._is_hopeless():
            self._on_refusal(next(iter(self._aside.values())))
        elif known is error or time.monotonic() >= self._next_report[link]:
            self._next_report[link] = time.monotonic() + REPORT_EVERY
            logger.warning("farm_executor: server set aside server=%s error=%s", link, link.last_error)

    def _is_hopeless(self) -> bool:
        """Return whether no server will ever work; a name may bring one at any time, unless it has failed."""
        return self._failed.keys() >= set(self.named) and self._aside.keys() >= set(self._links)

    def _fail(self, name: Address, error: FarmError) -> None:
        """Note, in the thread that looks, that nothing can come of a name any more."""
        self._reactor.post(partial(self._on_failure, name, error))

    def _on_failure(self, name: Address, error: FarmError) -> None:
        # In a handler, like `_set_aside`: together they decide whether any server may ever work.
        self._failed[name] = error
        logger.warning("farm_executor: no servers of=%s error=%s", name, error)
        if self._is_hopeless():
            self._on_refusal(error)
        elif not self.named[name].done():
            self.named[name].set_result(None)  # those who wait for all servers wait for the others

    # -- called by sessions --------------------------------------------------------------------------------

    def _on_session(self, link: ServerLink, session: Session) -> None:
        """Note that a server has opened a session, and so has answered."""
        self._aside.pop(link, None)
        before, self.counts[link] = self.counts.get(link, 0), session.slots
        # Seats outlive sessions. Tasks bound to a seat that the server no longer offers would wait for ever.
        if before > session.slots:
            gone: list[Hashable] = [session.seat(slot) for slot in range(session.slots, before)]
            self._on_seats_gone(gone, f"server {link} has come back with {session.slots} workers only")
        if not self.answered[link].done():
            self.answered[link].set_result(session.slots)

    def _on_session_over(self, link: ServerLink, session: Session) -> None:
        """Dial for the next session, unless the server is being removed."""
        if link in self._removed:
            self._let_go(link)
        else:
            link.control_lost(session)
            for discovery in self._discoveries:  # it may be one that the name has lost
                discovery.look_again()

    # -- the end -------------------------------------------------------------------------------------------

    def close(self, *, hurry: bool) -> None:
        """Stop dialling, and end every session; with ``hurry``, workers get no time to end gracefully."""
        self._closed = True
        for source in self._all():
            source.close()
        for session in self.sessions():
            session.close(hurry=hurry)
        # All are closed before any is waited for, so that they share the time.
        patience = time.monotonic() + LAST_SECONDS
        for source in self._all():
            source.join(max(patience - time.monotonic(), 0.0))

    def answer_no_more(self, error: Callable[[], BaseException]) -> None:
        """Tell the threads that wait for servers that there will be none, each with an error of its own."""
        awaited: list[Future[Any]] = [*self.answered.values(), *self._removed.values(), *self.named.values()]
        for answer in awaited:
            if not answer.done():
                answer.set_exception(error())

    def abandon(self) -> list[Connection]:
        """Return the parent's control connections, for a forked child to let go of."""
        return [session.control for session in self.sessions() if session.control is not None]
