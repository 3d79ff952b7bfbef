"""A farm's servers: which there are, the session with each, and what becomes of it.

This module owns the control connections, from when a `ServerLink` has dialled one until its session is over, and
the servers that are added, found by a name, and removed. It must not know tasks, nor what is said on lanes: of
those it tells the `Crew`, which is the engine.

A session is over when its server knows it no more, breaks the protocol, or was not reached for too long; then its
lanes are lost, and the server is dialled for a new one. Or it ends as it should, because the server was told to
end, or is removed: then its lanes are drained, and it is over when they have gone.
"""

from __future__ import annotations

import logging
import selectors
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, Protocol

from farm_executor.client.farm.discovery import Discovery
from farm_executor.client.farm.lane import Lane
from farm_executor.client.farm.link import LaneListener, ServerLink, Settings, at
from farm_executor.client.farm.liveness import Liveness
from farm_executor.client.farm.reactor import Reactor
from farm_executor.core.frames import FrameType, encode_frame
from farm_executor.core.liveness import MAX_MISSED
from farm_executor.core.messages import Draining, KillOrder, Pong, Spared, WorkerDied, decode, encode
from farm_executor.errors import RemoteProtocolError, WorkerLostError
from farm_executor.wire.address import Address
from farm_executor.wire.transport import Connection

__all__ = ["Crew", "Servers", "Sources"]

logger = logging.getLogger(__name__)

PROBE_SECONDS = 1.0  # in which what was sent on a lane must have moved, when there is doubt
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


class Crew(LaneListener, Protocol):
    """Who has the lanes. Beyond `LaneListener`, every method is called in a handler of the reactor's."""

    def lanes_of(self, link: ServerLink, session: str) -> list[Lane]:
        """Those of that session that have not been lost."""

    def drain_lane(self, lane: Lane) -> None:
        """Let it end with what it has begun."""

    def sending(self) -> AbstractContextManager[None]:
        """To be held while something is sent on a lane."""

    def lose_lane(self, lane: Lane, *, given_up: bool = False) -> None:
        """It is no more; ``given_up`` because nobody wants its server any more."""

    def on_stuck(self, lane: int) -> None:
        """Nothing moves on it."""

    def on_death(self, death: WorkerDied) -> None:
        """A supervisor's report of the end of a lane's worker."""

    def on_spared(self, spared: Spared) -> None:
        """A supervisor has killed nobody, as it was asked."""

    def on_return(self) -> None:
        """A server is back that may not have heard what it was told."""

    def on_seats_gone(self, seats: list[Hashable], why: str) -> None:
        """There are no such places any more."""

    def on_refusal(self, error: Exception) -> None:
        """No server wants us, and it is no use to try again."""


class Servers:
    """See the module.

    Args:
        sources: Where they are.
        settings: What all links share.
        reactor: Runs what is to be done in the farm's own thread.
        crew: See there.

    Attributes:
        answered: For each server a future of how many workers it gives us, known when it has answered first.
        named: For each name a future of its servers' being known.
        counts: How many workers each server gives us now.

    Thread safety: `start`, `add`, `remove`, `unanswered`, `in_reach`, iteration and the methods of
    `server.SessionListener` may be called from any thread, the others from handlers.
    """

    def __init__(self, sources: Sources, settings: Settings, reactor: Reactor, crew: Crew) -> None:
        self._settings = settings
        self._reactor = reactor
        self._crew = crew
        self._closed = False
        self._links = [
            ServerLink(address, locate, quota, settings, self, crew)
            for address, locate, quota in zip(*sources[:3], strict=True)
        ]
        self._discoveries = {Discovery(name, partial(self._found, name)): name for name in sources.names}
        self._discovered: dict[Address, dict[Address, ServerLink]] = {name: {} for name in sources.names}
        self._controls: dict[ServerLink, Connection] = {}
        self._cuts: Counter[ServerLink] = Counter()  # how often each control connection has broken
        self._aside: dict[ServerLink, Exception] = {}  # that refuse us, and why
        self._next_report: dict[ServerLink, float] = {}
        self._parting: set[ServerLink] = set()  # whose sessions end when their lanes have
        self._removed: dict[ServerLink, Future[None]] = {}
        self._liveness: Liveness[ServerLink] = Liveness(
            settings.heartbeat, reactor.after, self._ping, self._moved, self._on_silence, crew.on_stuck
        )
        self.answered: dict[ServerLink, Future[int]] = {link: Future() for link in self._links}
        self.named: dict[Address, Future[None]] = {name: Future() for name in sources.names}
        self.counts: dict[ServerLink, int] = {}

    def __iter__(self) -> Iterator[ServerLink]:
        return iter(list(self._links))

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
        link = ServerLink(address, locate, None, self._settings, self, self._crew)
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
        if drain and link.session:
            self._leave(link, link.session)
            return
        for lane in self._crew.lanes_of(link, link.session):
            self._crew.lose_lane(lane, given_up=True)
        self._part(link, link.session)

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

    def control_up(self, link: ServerLink, connection: Connection, session: str, lanes: int) -> None:
        """See `server.SessionListener`."""
        self._reactor.post(partial(self._adopt, link, connection, session, lanes))

    def control_resumed(self, link: ServerLink, connection: Connection, session: str) -> None:
        """See `server.SessionListener`."""
        self._reactor.post(partial(self._adopt, link, connection, session, None))

    def session_gone(self, link: ServerLink, session: str, why: str) -> None:
        """See `server.SessionListener`."""
        self._reactor.post(partial(self._lose, link, session, why))

    def refused(self, link: ServerLink, error: Exception) -> None:
        """See `server.SessionListener`."""
        self._reactor.post(partial(self._set_aside, link, error))

    def _set_aside(self, link: ServerLink, error: Exception) -> None:
        """One server costs itself alone; if there is none that may ever work, the farm is broken."""
        if link not in self._links:
            return
        known = self._aside.setdefault(link, error)
        if not self._discoveries and self._aside.keys() >= set(self._links):
            self._crew.on_refusal(next(iter(self._aside.values())))
        elif known is error or time.monotonic() >= self._next_report[link]:
            self._next_report[link] = time.monotonic() + REPORT_EVERY
            logger.warning("farm_executor: server set aside server=%s error=%s", link, link.last_error)

    # -- sessions ------------------------------------------------------------------------------------------

    def _adopt(self, link: ServerLink, connection: Connection, session: str, lanes: int | None) -> None:
        """A session has a control connection: a new one with so many lanes, or one that was cut."""
        if self._closed or session != link.session:
            connection.close()
            return
        connection.socket.setblocking(False)
        self._aside.pop(link, None)
        self._controls[link] = connection
        self._reactor.register(connection, partial(self._on_events, link, session, connection))
        self._liveness.watch(link)
        if lanes is None:
            self._doubt_lanes(link, session, connection)
            self._crew.on_return()
            return
        before, self.counts[link] = self.counts.get(link, 0), lanes
        if before > lanes:
            gone: list[Hashable] = [(link, slot) for slot in range(lanes, before)]
            self._crew.on_seats_gone(gone, f"server {link} has come back with {lanes} workers only")
        if not self.answered[link].done():
            self.answered[link].set_result(lanes)

    def _doubt_lanes(self, link: ServerLink, session: str, connection: Connection) -> None:
        """The server had to be dialled again: ask whether what is sent over its lanes arrives."""
        lanes = [lane for lane in self._crew.lanes_of(link, session) if lane.state.ready and lane.state.connected]
        with self._crew.sending():
            for lane in lanes:
                lane.probe()
        self._liveness.doubt({lane.id: lane.connection for lane in lanes})

        def ask() -> None:
            if self._controls.get(link) is connection:
                self._ping(link, 0)

        ask()  # the answer tells how far what was sent has come by now, and the next one whether it moves
        self._reactor.after(min(self._settings.heartbeat, PROBE_SECONDS), ask)

    def _on_events(self, link: ServerLink, session: str, connection: Connection, events: int) -> None:
        if self._controls.get(link) is not connection:
            return  # by an event of this same round
        if events & selectors.EVENT_WRITE:
            connection.flush()
            self._reactor.want_to_write(connection, connection.unsent)
        if not events & selectors.EVENT_READ:
            return
        try:
            for frame in connection.receive():
                self._liveness.heard(link)
                if frame.type is FrameType.PONG:
                    lanes = self._crew.lanes_of(link, session)
                    watched = {lane.id: lane.connection for lane in lanes if lane.state.connected}
                    self._liveness.answered(decode(Pong, frame), watched)
                elif frame.type is FrameType.WORKER_DIED:
                    self._crew.on_death(decode(WorkerDied, frame))
                elif frame.type is FrameType.SPARED:
                    self._crew.on_spared(decode(Spared, frame))
                elif frame.type is FrameType.BYE:
                    self._on_goodbye(link, session)
                    return
                elif frame.type is FrameType.DRAINING:
                    logger.info("draining server=%s", link)
                    if decode(Draining, frame).leave:
                        self._leave(link, session)
                else:
                    raise RemoteProtocolError(f"{frame.type.name} frame on a control connection")
        except EOFError as error:
            self._on_end(link, session, str(error))
        except RemoteProtocolError as error:
            self._lose(link, session, str(error))

    def send(self, link: ServerLink, order: KillOrder) -> bool:
        """Tell a server whom to kill; say whether there is a way to it."""
        connection = self._controls.get(link)
        if connection is None:
            return False
        connection.send(encode(order))
        self._reactor.want_to_write(connection, connection.unsent)
        return True

    def _ping(self, link: ServerLink, beat: int) -> None:
        """For `Liveness`."""
        connection = self._controls[link]
        if not connection.unsent:  # else it does not listen, which the silence will tell
            connection.send(encode_frame(FrameType.PING, seq=beat))
            self._reactor.want_to_write(connection, connection.unsent)

    def _moved(self, link: ServerLink) -> int:
        """For `Liveness`."""
        lanes = self._crew.lanes_of(link, link.session)
        return sum(
            lane.connection.bytes_received + lane.connection.bytes_sent for lane in lanes if lane.state.connected
        )

    def _on_silence(self, link: ServerLink) -> None:
        """For `Liveness`."""
        seconds = MAX_MISSED * self._settings.heartbeat
        self._on_end(link, link.session, f"nothing heard for {seconds:g} s")

    def _on_end(self, link: ServerLink, session: str, why: str) -> None:
        """The way to a server is broken: look for another, for a while."""
        if not link.resumable or link in self._parting or link not in self._controls:
            self._lose(link, session, why)
            return
        logger.warning("connection lost server=%s reason=%s", link, why)
        self._drop(link)
        self._cuts[link] += 1
        self._reactor.after(self._settings.resume_seconds, partial(self._give_up, link, session, self._cuts[link]))
        link.control_cut(session)

    def _give_up(self, link: ServerLink, session: str, cuts: int) -> None:
        if link not in self._controls and self._cuts[link] == cuts:
            self._lose(link, session, f"not reached for {self._settings.resume_seconds:g} s")

    def _drop(self, link: ServerLink) -> None:
        connection = self._controls.pop(link, None)
        self._liveness.forget(link)
        if connection is not None:
            self._reactor.unregister(connection)
            connection.close()

    def _on_goodbye(self, link: ServerLink, session: str) -> None:
        """The server ends the session of its own accord: it is no use to look for it."""
        if self._crew.lanes_of(link, session):
            self._lose(link, session, "the server has ended it")
        else:
            self._part(link, session)

    def _lose(self, link: ServerLink, session: str, why: str) -> None:
        """A session is over, and its lanes with it."""
        if session != link.session:
            return
        logger.warning("session lost server=%s reason=%s", link, why)
        self._drop(link)
        for lane in self._crew.lanes_of(link, session):
            self._crew.lose_lane(lane)
        if link in self._removed:
            self._part(link, session)
        else:
            self._parting.discard(link)
            link.control_lost(session)

    def _leave(self, link: ServerLink, session: str) -> None:
        """A session is to end: what its lanes have begun is finished, the rest goes elsewhere."""
        if session != link.session:
            return
        self._parting.add(link)
        link.leave(session)
        for lane in self._crew.lanes_of(link, session):
            if lane.state.ready:
                self._crew.drain_lane(lane)
            else:
                self._crew.lose_lane(lane)
        if not self._crew.lanes_of(link, session):
            self._part(link, session)

    def is_parting(self, link: ServerLink) -> bool:
        """Whether its session is to end, so that no lane is wanted any more."""
        return link in self._parting

    def lane_lost(self, link: ServerLink, session: str, lane: Lane, *, failed: bool) -> None:
        """A lane is no more: another one is dialled, or, if it was the last of a session that is to end, none.

        With ``failed`` it was never ready.
        """
        self._liveness.forget_lane(lane.id)
        link.lane_gone(session, lane.id, lane.slot, failed=failed)
        if link in self._parting and not self._crew.lanes_of(link, session):
            self._part(link, session)

    def _part(self, link: ServerLink, session: str) -> None:
        """A session has ended as it should. Unless the server is removed, another one may come at its address."""
        if link in self._controls:
            self._controls[link].send(encode_frame(FrameType.BYE))
            self._drop(link)
        self._parting.discard(link)
        logger.info("session ended server=%s", link)
        if link not in self._removed:
            link.control_lost(session)
            return
        link.close()
        self._links.remove(link)
        self._aside.pop(link, None)
        seats: list[Hashable] = [(link, slot) for slot in range(self.counts.pop(link, 0))]
        self._crew.on_seats_gone(seats, f"server {link} has been removed")
        answered = self.answered.pop(link)
        if not answered.done():
            answered.set_exception(WorkerLostError(f"server {link} has been removed"))
        self._removed.pop(link).set_result(None)

    # -- the end -------------------------------------------------------------------------------------------

    def close(self, *, hurry: bool) -> None:
        """Stop dialling, and end every session; with ``hurry`` workers need no time to end well."""
        self._closed = True
        for source in self._all():
            source.close()
        for connection in self._controls.values():
            connection.send(encode_frame(FrameType.BYE, count=hurry))
            connection.close()
        self._controls.clear()
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
        return list(self._controls.values())
