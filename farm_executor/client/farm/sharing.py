"""Brings shared objects to servers.

This module owns the list of a farm's shared objects, and how each gets to each server: it is offered over the
control connection, and sent over one lane if the server wants it. It must not know tasks: whoever needs an object
waits for it on the server.

Every server is offered every object, whether or not a task there needs it by then, so that it is there when the
first one does. All but `share` and `drop` runs in handlers of the reactor.
"""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol, TypeVar

from farm_executor.client.farm.functions import Function, FunctionTable
from farm_executor.client.farm.reactor import Reactor
from farm_executor.client.farm.repeated import Repeated, is_far
from farm_executor.client.farm.shared import Pickling, Record, Shared, record_of
from farm_executor.client.farm.spreading import Common, size_of
from farm_executor.core.deliveries import Deliveries, Send
from farm_executor.core.features import FUNCTIONS, SHARING
from farm_executor.core.frames import Buffer, Frame, FrameType, Payload, encode_frame, size_and_kind
from farm_executor.core.sharing import (
    PIECE,
    State,
    decode_answer,
    encode_offer,
    encode_piece,
    layout_of,
)
from farm_executor.core.spread import Spread
from farm_executor.data import payload
from farm_executor.wire.connection import Connection
from farm_executor.wire.memory_objects import MemoryObject

__all__ = ["Sharing"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
PIECES_EACH = 4  # that one lane gets before others have their turn
MAX_GONE = 65_536  # dropped objects that are named again after a cut: their frames fill the buffers of a socket


class Way(Protocol):
    """A lane, as far as it carries shared objects."""

    id: int
    connection: Connection
    carrying: bool

    @property
    def session(self) -> Any:
        """The session that it belongs to: a `Host`."""


class Host(Protocol):
    """A session, as far as objects are shared in it."""

    features: frozenset[str]
    deliveries: Deliveries | None
    spread: Spread | None
    dial_ring: Any
    lanes: dict[int, Any]
    slots: int

    @property
    def wants_lanes(self) -> bool:
        """Whether it goes on."""

    def tell(self, buffers: list[Buffer]) -> None:
        """Send buffers over the control connection, if there is one."""


class _Journey:
    """An object on its way over a lane."""

    def __init__(self, number: int, view: memoryview) -> None:
        self.number = number
        self.view = view  # lasts while anything of it is unsent, whoever closes what
        self.done = 0

    def next_piece(self) -> list[Buffer]:
        begin, self.done = self.done, min(self.done + PIECE, len(self.view))
        return encode_piece(self.number, begin, len(self.view), self.view[begin : self.done])


class Sharing:
    """The shared objects of one farm; see the module.

    Args:
        reactor: Runs the handlers.
        sending: Returns the context to hold while something is sent on a lane.
        watch: Called with a lane after something has been sent on it.
        shut_down: Whether the farm takes no more calls.

    Attributes:
        live: The objects that anybody needs, by number. Empty for most farms, which is looked at for each call.
        repeated: What calls have been given again and again.

    Thread safety: `share`, `pickling` and `live` are for any thread.
    """

    def __init__(
        self,
        reactor: Reactor,
        sending: Callable[[], AbstractContextManager[None]],
        watch: Callable[[Any], None],
        shut_down: Callable[[], bool],
    ) -> None:
        self._reactor = reactor
        self._sending = sending
        self._watch = watch
        self._shut_down = shut_down
        self._numbers = itertools.count(1)
        self.live: dict[int, weakref.ref[Record]] = {}
        self._gone: deque[int] = deque(maxlen=MAX_GONE)  # numbers that servers and workers were told to forget
        self._hosts: list[Host] = []
        self._journeys: dict[int, _Journey] = {}  # by lane
        # Guards that objects are offered in the order of their numbers; reentrant, as a destructor may submit.
        self._lock = threading.RLock()
        self._common: dict[int, weakref.ref[Common]] = {}  # the buffers of large functions, likewise by number
        self._closed = False
        self.repeated = Repeated(self.copy, self._any_far)

    def pickling(self) -> Pickling:
        """Return the context in which handles of this farm may be pickled."""
        return Pickling(self)

    def pickled(
        self,
        functions: FunctionTable,
        fn: Callable[..., Any] | Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        plain: bool = False,
    ) -> tuple[Function, Payload]:
        """Pickle a call, which may refer to objects shared here; if its arguments are ``plain``, only the function.

        Returns:
            The function, with what the call refers to, and the arguments.

        Raises:
            Exception: Something cannot be pickled.
        """
        with self.pickling() as pickling:
            function = fn if isinstance(fn, Function) else functions.find(fn)
            arguments = () if plain else payload.dumps_call(args, kwargs)
        # Not in the table, which keeps functions for longer than anybody needs what they refer to.
        if pickling.found:
            function = function._replace(records=(*function.records, *pickling.found.values()))
        return function, arguments

    def share(self, value: T, *, frozen: bool) -> Shared[T]:
        """Take a copy of an object as it is now, and begin to send it to the servers; see `FarmExecutor.share`."""
        if self._shut_down():
            raise RuntimeError("cannot share objects after shutdown")
        if isinstance(value, Shared):
            if record_of(value).farm is not self:
                raise ValueError("this is the handle of an object shared with another farm: share its .value")
            return value
        # What is within it may be shared, too: then it holds that for as long as it lives itself.
        with self.pickling() as pickling:
            parts = payload.dumps(value)
        record = self._take(parts, tuple(pickling.found.values()), frozen=frozen)
        return Shared(value, record, frozen=frozen)

    def copy(self, buffer: Buffer) -> Record:
        """Take a copy of a buffer alone, which calls refer to where a server has it; see `repeated`.

        Raises:
            OSError: There is no room for it.
        """
        return self._take((b"", buffer), (), frozen=False, quiet=True)

    def common(self, data: Payload) -> Common | None:
        """Return what stands for the buffers of a function on servers; None if each worker is to get its own."""
        # Before the first server has answered, nobody knows: then it is most likely one with several workers.
        hosts = self._hosts
        size = size_of(data) if not hosts or any(host.spread is not None for host in hosts) else 0
        if not size:
            return None
        with self._lock:
            number = next(self._numbers)
            common = Common(number, size, self._drop_common)
            self._common[number] = weakref.ref(common)
            self._reactor.post(partial(self._offer, number))
        return common

    def _take(self, parts: Payload, inner: tuple[Record, ...], *, frozen: bool, quiet: bool = False) -> Record:
        layout = layout_of([memoryview(parts[0]).nbytes, *map(size_and_kind, parts[1:])], frozen=frozen)
        memory = MemoryObject.create("farm-shared", layout.size)
        memory.write(0, layout.head)
        for part, place in zip(parts, layout.parts, strict=True):
            memory.write(place.begin, part)
        memory.seal()
        # Mapped here, where it can be refused to the caller: a handler has nobody to tell.
        view = memory.view(private=False)
        memory.close()
        # Offered in the order of their numbers, whichever threads share them.
        with self._lock:
            number = next(self._numbers)
            record = Record(self, number, view, inner, self._drop, quiet=quiet)
            self.live[number] = weakref.ref(record)
            self._reactor.post(partial(self._offer, number))
        return record

    def _drop(self, number: int) -> None:
        # Called by the garbage collector, at any point of any thread: so this only leaves word.
        self.live.pop(number, None)
        if not self._closed:
            self._reactor.post(partial(self._forget, number))

    def _drop_common(self, number: int) -> None:
        # Likewise.
        self._common.pop(number, None)
        if not self._closed:
            self._reactor.post(partial(self._forget_common, number))

    def _record(self, number: int) -> Record | None:
        reference = self.live.get(number)
        return None if reference is None else reference()

    def _offered(self, number: int, host: Host) -> list[Buffer]:
        """Return what to say to a server of what is there under a number; empty if that is nothing to it."""
        record = self._record(number)
        if record is not None:
            return encode_offer(number, record.size, record.quiet) if _is_for(record, host) else []
        reference = self._common.get(number)
        common = None if reference is None else reference()
        if common is None or host.spread is None:
            return []
        # The word for what was given up may have been lost with a connection, and workers be waiting for it.
        if host.spread.gave_up(number):
            return encode_frame(FrameType.UNSHARE, seq=number)
        return encode_offer(number, common.size, True)

    # -- handlers ------------------------------------------------------------------------------------------

    def _offer(self, number: int) -> None:
        # It may have been dropped since: then the word for that comes next, and names what nobody has heard of.
        for host in self._hosts:
            host.tell(self._offered(number, host))

    def found_far(self, host: Host) -> None:
        """Note that a server is not on this machine, as there can be no ring."""
        self._offer_all(host, quiet_only=True)

    def _offer_all(self, host: Host, *, quiet_only: bool = False) -> None:
        # In the order of their numbers, as before: what is needed first is most likely first.
        for number in sorted((*self.live, *(() if quiet_only else self._common))):
            record = self._record(number)
            if not quiet_only or (record is not None and record.quiet):
                host.tell(self._offered(number, host))

    def _any_far(self) -> bool:
        """Return whether there are servers to which a copy of an argument is worth its while."""
        return any(map(is_far, self._hosts))

    def _forget(self, number: int) -> None:
        """Tell everybody that nobody needs an object any more."""
        # Whoever is cut off now has to be told once it is back.
        self._gone.append(number)
        word = encode_frame(FrameType.UNSHARE, seq=number)
        for host in self._hosts:
            host.tell(word)
            for lane in list(host.lanes.values()):
                if lane.state.connected:
                    self._send(lane, word)
            self._stop(host, number)

    def _forget_common(self, number: int) -> None:
        """Tell servers that nobody needs the buffers of a function any more; workers hear that of the function."""
        self._gone.append(number)
        for host in self._hosts:
            if host.spread is not None:
                host.tell(encode_frame(FrameType.UNSHARE, seq=number))
                with self._sending():
                    host.spread.drop(number)

    def connected(self, host: Host, *, first: bool) -> None:
        """Note that a session has a control connection, for the first time or again."""
        if SHARING not in host.features:
            return
        if first:
            host.deliveries = Deliveries()
            if FUNCTIONS in host.features and host.slots > 1:
                host.spread = Spread()
            self._hosts = [*(known for known in self._hosts if known.wants_lanes), host]
        else:  # what was said before may not have arrived
            host.tell(self._say_again())
        self._offer_all(host)

    def on_answer(self, host: Host, frame: Frame) -> None:
        """Take a server's answer to an offer."""
        number, state, reason = decode_answer(frame)
        if number in self._common:
            if host.spread is not None:
                with self._sending():
                    host.spread.answered(number, state)
        elif state is State.REFUSED:
            self._stop(host, number)
            record = self._record(number)
            if record is None:  # nobody needs it any more
                return
            if not record.quiet:
                logger.warning("shared object refused server=%s error=%s", host, reason)
                return
            if host.deliveries is not None:
                host.deliveries.refused.add(number)
            # Of one server alone this says nothing: another may not have answered yet.
            if all(map(partial(_has_refused, number), self._hosts)):
                self.repeated.leave(record)
        elif host.deliveries is not None and number in self.live:
            self._carry_out(host, host.deliveries.answered(number, state))

    def lane_ready(self, lane: Way) -> None:
        """Note that a lane's worker is there, or there again, and takes what it is sent."""
        host: Host = lane.session
        if host.deliveries is not None:
            self._carry_out(host, host.deliveries.lane_ready(lane.id))

    def lane_resumed(self, lane: Way) -> None:
        """Note that a lane has another connection; what was said over the one before may not have arrived."""
        if lane.session.deliveries is not None:
            self._send(lane, self._say_again())
            self.lane_ready(lane)

    def _say_again(self) -> list[Buffer]:
        return [buffer for number in self._gone for buffer in encode_frame(FrameType.UNSHARE, seq=number)]

    def lane_gone(self, lane: Way) -> None:
        """Note that a lane is lost, or cut off."""
        self._journeys.pop(lane.id, None)
        lane.carrying = False
        host: Host = lane.session
        if host.deliveries is not None:
            self._carry_out(host, host.deliveries.lane_gone(lane.id))
        if host.spread is not None:
            with self._sending():
                lost = host.spread.lane_gone(lane.id)
            for number in lost:  # workers that wait for it are told, and ask for their functions whole
                host.tell(encode_frame(FrameType.UNSHARE, seq=number))

    def go_on(self, lane: Way) -> None:
        """Send more of what a lane carries, as its socket takes more."""
        if lane.carrying:  # else its server may be one that knows nothing of shared objects
            self._carry_out(lane.session, self._advance(lane))

    def close(self) -> None:
        """Let go of all contents, as the farm ends or this is a forked child. Servers do so with their sessions."""
        # Before the contents go: a handle that is collected from now on has nobody to tell.
        self._closed = True
        self.repeated.forget_all()
        self._journeys.clear()
        self._hosts.clear()
        for number in list(self.live):
            record = self._record(number)
            if record is not None:
                record.view = None

    def _carry_out(self, host: Host, decisions: list[Send]) -> None:
        assert host.deliveries is not None
        due = deque(decisions)
        while due:
            number, lane = due[0].number, host.lanes.get(due.popleft().lane)
            # The lane carries what was decided before, which may have been given up since.
            record = self._record(number)
            if record is None or record.view is None or lane is None:  # about to be forgotten, as is said soon
                continue
            self._journeys[lane.id] = _Journey(number, record.view)
            lane.carrying = True
            due += self._advance(lane)

    def _advance(self, lane: Way) -> list[Send]:
        """Send more of what a lane carries, if its socket takes more; return what is to be sent next."""
        journey = self._journeys.get(lane.id)
        if journey is None:
            return []
        for _ in range(PIECES_EACH):
            # Never queued behind what the socket has not taken: whatever is sent next would wait for all of it.
            if lane.connection.backlog:
                break
            with self._sending():
                lane.connection.send(journey.next_piece())
            if journey.done == len(journey.view):
                del self._journeys[lane.id]
                lane.carrying = False
                self._watch(lane)
                left: list[Send] = lane.session.deliveries.left(lane.id)
                return left
        self._watch(lane)
        return []

    def _stop(self, host: Host, number: int) -> None:
        """Send no more of an object."""
        # The lane is free for another at once: its worker takes what begins anew for the end of what it has.
        for lane in list(host.lanes.values()):
            journey = self._journeys.get(lane.id)
            if journey is not None and journey.number == number:
                del self._journeys[lane.id]
                lane.carrying = False
        if host.deliveries is not None:
            self._carry_out(host, host.deliveries.drop(number))

    def _send(self, lane: Way, buffers: list[Buffer]) -> None:
        with self._sending():
            lane.connection.send(buffers)
        self._watch(lane)


def _has_refused(number: int, host: Host) -> bool:
    """Return whether a host does without a copy, as it has refused it, has ended, or is never offered one."""
    return not is_far(host) or not host.wants_lanes or host.deliveries is None or number in host.deliveries.refused


def _is_for(record: Record, host: Host) -> bool:
    # A server of this machine gets the contents with each call, which is as fast.
    return not record.quiet or is_far(host)
