"""Rings of shared memory for lanes that carry large data within one machine.

This module owns which lanes get one, and the connections that are dialled for that. It must not know how a ring
works, nor what travels through it.

A lane asks for a ring when the first large segment goes over it, in either direction. That one still takes the
socket, as do all until the ring is there. If there can be none, the socket goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from farm_executor.client.farm.lane import Home, Lane
from farm_executor.client.farm.reactor import Reactor
from farm_executor.core.frames import FrameType, encode_frame
from farm_executor.core.messages import LaneHello
from farm_executor.errors import RemoteProtocolError
from farm_executor.wire.connection import Connection
from farm_executor.wire.dialling import RefusedError
from farm_executor.wire.sockets import Socket, hang_up

__all__ = ["Rings"]

logger = logging.getLogger(__name__)

MOST = 32  # rings of one farm, of 8 MiB each: more lanes do not transfer at the same time on one machine
LAST_SECONDS = 1.0  # to wait for threads that dial, at the end


class Rings:
    """The rings of one farm; see the module.

    Args:
        reactor: Reports when a worker has sent its ring.
        sending: The context to hold while something is sent on a lane.
        none: Called with a session whose lanes can have no rings.

    Thread safety: `connections` may be called from any thread, the other methods from handlers of the reactor.
    """

    def __init__(self, reactor: Reactor, sending: AbstractContextManager[Any], none: Callable[[Any], None]) -> None:
        self._reactor = reactor
        self._sending = sending
        self._none = none
        # By lane, the connection for which a ring was asked: once it is resumed, there may be another.
        self._asked: dict[int, Connection] = {}
        self._offers: dict[int, Connection] = {}  # by lane, where the worker's ring is to come
        self._lock = threading.Lock()  # for the next three
        self._dialled: set[Socket] = set()
        self._threads: set[threading.Thread] = set()
        self._closed = False

    def want(self, lane: Lane) -> None:
        """Have a lane get a ring, unless it has one, is about to, or cannot have any."""
        if lane.session.dial_ring is None or self._asked.get(lane.id) is lane.connection or not lane.state.ready:
            return
        if len(self._asked) >= MOST and lane.id not in self._asked:
            return
        self._asked[lane.id] = lane.connection
        thread = threading.Thread(target=self._dial, args=(lane, lane.connection), name="farm-ring", daemon=True)
        with self._lock:
            if self._closed:
                return
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError:  # the program is ending
                self._threads.discard(thread)

    def forget(self, lane: int) -> None:
        """Drop what was asked for a lane that is lost."""
        self._asked.pop(lane, None)
        self._drop(lane)

    def close(self) -> None:
        """Dial no more, and drop every offer."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
            for sock in self._dialled:
                hang_up(sock)
        deadline = time.monotonic() + LAST_SECONDS
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        for lane in list(self._offers):
            self._drop(lane)

    def connections(self) -> list[Connection]:
        """Return the connections over which rings are to come."""
        return list(self._offers.values())

    # -- in a thread of its own ------------------------------------------------------------------------------

    def _dial(self, lane: Lane, connection: Connection) -> None:
        session = lane.session
        mine: list[Socket] = []

        def note(sock: Socket) -> None:
            # In one hold: either `close` finds the socket and hangs it up, or this finds that the farm is closing.
            with self._lock:
                self._dialled.add(sock)
                mine.append(sock)
                if self._closed:
                    raise ConnectionAbortedError("the farm is closing")

        try:
            if session.dial_ring is not None:
                offer = session.dial_ring(LaneHello(session.id, lane.id, ring=True), note)
                self._reactor.post(partial(self._await_offer, lane, connection, offer))
        except Exception as error:  # whatever it is, the lane does without
            if not isinstance(error, RefusedError):  # said of this lane alone
                self._reactor.post(partial(self._give_up, session, error))
        finally:
            with self._lock:
                self._dialled.difference_update(mine)
                self._threads.discard(threading.current_thread())

    # -- in handlers -----------------------------------------------------------------------------------------

    def _give_up(self, session: Home, error: Exception) -> None:
        if session.dial_ring is not None:
            session.dial_ring = None  # the next lane would fare no better
            # Its server is elsewhere, and what repeats need not be sent there again.
            self._none(session)
            logger.debug("no ring, so the socket goes on server=%s reason=%s", session, error)

    def _await_offer(self, lane: Lane, connection: Connection, offer: Connection) -> None:
        # It may have been resumed, or lost, since the ring was asked for.
        if self._closed or self._asked.get(lane.id) is not connection or lane.connection is not connection:
            offer.close()
            return
        offer.socket.setblocking(False)
        self._drop(lane.id)
        self._offers[lane.id] = offer
        self._reactor.register(offer, partial(self._on_offer, lane, connection, offer))

    def _drop(self, lane: int) -> None:
        offer = self._offers.pop(lane, None)
        if offer is not None:
            self._reactor.unregister(offer)
            offer.close()

    def _on_offer(self, lane: Lane, connection: Connection, offer: Connection, events: int) -> None:
        from farm_executor.wire.ring import accept  # late: most programs never need it

        if self._offers.get(lane.id) is not offer:
            return  # an earlier event of the same round has dropped it
        del self._offers[lane.id]
        self._reactor.unregister(offer)
        assert isinstance(offer.socket, Socket), "what comes over a unix socket is neither sealed nor encrypted"
        try:
            ring = accept(offer.socket)
        except (OSError, RemoteProtocolError) as error:
            offer.close()
            self._give_up(lane.session, error)
            return
        with self._sending:
            # Both at once: the worker may use it as soon as it has read the frame, and not before.
            if lane.connection is connection and lane.state.connected:
                connection.expect_ring(ring)
                connection.use_ring()
                connection.send(encode_frame(FrameType.RINGED))
            else:
                ring.close()
        logger.debug("ring lane=%d server=%s", lane.id, lane.session)
