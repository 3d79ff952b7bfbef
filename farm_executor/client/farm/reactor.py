"""The event loop: the farm's own thread waits for the sockets, or a caller that has to wait anyway.

This module owns the I/O thread, the selector, timers, the inbox, and the rules by which a caller *leads*. It must
not know what is said over the sockets, nor what a future is.

Handing an answer from the I/O thread to the thread that waits for it takes a third of the time of a call. So the
waiting thread takes the I/O thread's place for as long as it waits: it *leads*, and the I/O thread stands by.

* All sockets are in one selector. The I/O thread does not wait on the selector itself but on its descriptor, which
  is readable while any of the sockets is. A leader disarms that second wait while it leads.
* ``_turn`` is held by the thread that handles events: by a leader as long as it leads, by the I/O thread while it
  is awake. So handlers, timers and posted actions never run at the same time.
* Only one thread leads, and only if no other thread waits: with several, handing over the lead would cost more than
  it saves. For some time after two threads have waited at once, no thread leads, because threads that call in turns
  would keep passing the lead to each other.
* An answer may be there before the caller has begun to lead. So the I/O thread gives way for a moment to a caller
  that has led twice in a row: it naps, and only the waker ends that early.
* A leader polls before it sleeps, while that pays (see `core.patience`). The I/O thread does not: what it waits for
  is awaited by several threads, and polling takes the interpreter from them.
* A leader handles sockets and nothing else. Anything else rings the waker; the leader then stops leading and waits
  like any other thread. Events that it leaves behind are still in the selector, and so wake the I/O thread.
* A leader that is interrupted must not leave a handler half-way: see `interrupt`.
* A signal handler or a destructor may run on top of a leader and want to wait itself. If the leader is asleep, it
  stops leading first, for good; if it is in the middle of a handler, waiting is impossible, and `may_wait` says so.

Where selectors have no descriptor, no thread leads: on Windows, and where gevent or similar has replaced them.
"""

from __future__ import annotations

import heapq
import itertools
import select
import selectors
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

from farm_executor.client.farm.interrupt import HeldBack
from farm_executor.client.farm.locks import OwnedLock
from farm_executor.wire.connection import Connection
from farm_executor.wire.polling import Poller
from farm_executor.wire.trace import pending, tell
from farm_executor.wire.waker import Waker

__all__ = ["Reactor"]

LONGEST_SLEEP = 86_400.0  # seconds; selectors need the milliseconds to fit in 32 bits
CROWDED = 0.002  # seconds without a leader after two threads have waited at once
GIVE_WAY = 0.005  # seconds between the I/O thread's checks whether a caller still does its work, or still sleeps
NAP = 0.001  # seconds within which a caller that has led leads again, or else answers are the I/O thread's again

_Handler = Callable[[int], None]  # gets the selector's event mask


class Reactor:
    """The event loop of one farm; see the module.

    Args:
        finished: Called after each turn, in the I/O thread; returns whether the loop should end.
        failed: Called in the I/O thread with the exception of a handler, which is a bug; the loop then ends.
        ended: Called last, in the I/O thread, or in the thread that could not start it.
        may_lead: Whether callers may lead.

    Attributes:
        may_lead: Whether a caller may begin to lead now.

    Thread safety: `post`, `lead`, `waiting`, `glance`, `join`, `is_own_thread` and `may_wait` may be called from
    any thread, the others from handlers.
    """

    def __init__(
        self,
        finished: Callable[[], bool],
        failed: Callable[[BaseException], None],
        ended: Callable[[], None],
        *,
        may_lead: bool,
    ) -> None:
        self._finished = finished
        self._failed = failed
        self._ended = ended
        self._selector = selectors.DefaultSelector()
        self._poller = Poller()  # the leader's
        self._look = partial(self._selector.select, 0)
        self._waker = Waker()
        self._selector.register(self._waker, selectors.EVENT_READ, lambda events: self._waker.drain())
        self._standby = _standby(self._selector) if may_lead else None
        self.may_lead = self._standby is not None
        self._nap = None if self._standby is None else select.poll()
        if self._nap is not None:
            self._nap.register(self._waker, select.POLLIN)
        self._inbox: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_ids = itertools.count()
        self._turn = OwnedLock()
        # The leader's context, if a thread leads. A flag would not do: a leader that wakes up must find out whether
        # it still leads, or another thread that has begun since.
        self._leading: HeldBack | None = None
        self._asleep = False  # whether that leader polls or is in `select`, where it can be made to stop leading
        self._sleepers: set[HeldBack] = set()  # leaders that were stopped, and may still be asleep
        # The threads that wait without leading, each with a function that tells whether its wait is over. A thread
        # whose wait is over may not have run yet; if it still counted, nobody could lead the next time either.
        self._waiting: dict[int, Callable[[], bool]] = {}
        self._crowded_until = 0.0  # on the monotonic clock
        self._last_visit = 0.0  # when a caller has last done the I/O thread's work
        self._visits_end = 0.0  # unless there is another before
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="farm-engine", daemon=True)
        self._ident: int | None = None  # the thread's, which that tells by a property

    def start(self) -> None:
        """Start the I/O thread.

        Raises:
            RuntimeError: No thread can be started, as from Python 3.12 on when the main thread has ended.
        """
        try:
            self._thread.start()
        except RuntimeError:
            self._close()
            raise

    def is_own_thread(self) -> bool:
        """Return whether the caller is the I/O thread."""
        return threading.get_ident() == self._ident

    def may_wait(self) -> bool:
        """Return whether the caller may wait for something that comes over the sockets.

        The I/O thread may not, nor may code that has interrupted its own thread in the middle of a handler. A
        leader that was interrupted in its sleep stops leading, so that other threads can handle events meanwhile.
        """
        if threading.get_ident() == self._ident:
            return False
        if not self._turn.is_mine():
            return True
        if not self._asleep or self._standby is None:
            return False
        with HeldBack() as interrupt:
            # The leader's frame is below this one. Once it returns from `select`, it sees that it leads no more and
            # handles nothing: by then another thread may hold the turn.
            self._sleepers.add(self._leading or interrupt)
            self._stop_leading(self._standby)
            self.post(self._wake_sleepers)
        return True

    def _wake_sleepers(self) -> None:
        """Make stopped leaders notice that they lead no more, once the code that interrupted them returns.

        Their system call then resumes its sleep, although what they wait for may have come. Each wake-up is seen
        either by them or by the I/O thread, which drains the waker, so it is repeated until they have all left.
        """
        if self._sleepers:
            self._waker.wake()
            self.after(GIVE_WAY, self._wake_sleepers)

    def _stop_leading(self, standby: _Standby) -> None:
        self._leading, self._asleep = None, False
        # Arm before releasing the turn: after that, another thread may lead at once and disarm, and must have the
        # last word.
        if not self._closed:
            standby.arm()
        self._turn.release()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the loop to end; return whether it has. Does not wait if called in the I/O thread itself."""
        if not self.is_own_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def post(self, action: Callable[[], None]) -> None:
        """Have the I/O thread call something. Takes no lock."""
        # An interrupt between these two would leave an action in the inbox that no thread is woken for.
        with HeldBack():
            self._inbox.append(action)
            self._waker.wake()
        # Looked at after appending: `_close` sets it before it runs the inbox for the last time. So an action that
        # came too late for that is run here, and none is lost.
        if self._closed:
            self._run_inbox()

    # -- for handlers --------------------------------------------------------------------------------------

    def register(self, connection: Connection, handler: _Handler) -> None:
        """Call the handler whenever the connection is readable, and once if data from it is buffered already."""
        self._selector.register(connection, selectors.EVENT_READ, handler)
        # The selector knows nothing of bytes that were read along with the handshake, and would never report them.
        if connection.pending:
            self.post(partial(handler, selectors.EVENT_READ))

    def want_to_write(self, connection: Connection, wanted: bool) -> None:
        """Start or stop calling the handler when the connection is writable, too, or its ring has room."""
        key = self._selector.get_key(connection)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
        if key.events != events:
            self._selector.modify(connection, events, key.data)
        # What waits for room in a ring is not helped by a socket that takes more: such a socket is always ready.
        bell = connection.bell
        if bell is not None and connection.starved != (bell in self._selector.get_map()):
            if connection.starved:
                handler = partial(_on_bell, key.data)
                self._selector.register(bell, selectors.EVENT_READ, handler)
            else:
                self._selector.unregister(bell)

    def unregister(self, connection: Connection) -> None:
        """Stop watching the connection."""
        self._selector.unregister(connection)
        if connection.bell is not None and connection.bell in self._selector.get_map():
            self._selector.unregister(connection.bell)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Call something in the I/O thread after that many seconds."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._timer_ids), action))
        if not self.is_own_thread():
            self._waker.wake()  # it may be asleep until a later timer

    # -- the I/O thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._ident = threading.get_ident()
        self._turn.acquire()
        try:
            while not self._finished() or self._inbox:
                self._wait()
                self._run_inbox()
                if pending:  # frames that handlers have sent
                    tell()
                while self._timers and self._timers[0][0] <= time.monotonic():
                    heapq.heappop(self._timers)[2]()
        except BaseException as error:  # the last resort: no thread must wait for one that has died
            self._failed(error)
        finally:
            self._close()
            self._turn.release()

    def _wait(self) -> None:
        """Wait for a socket or a timer, and call the handlers of the sockets that are ready."""
        timeout = self._until_timer()
        # If other threads wait without leading, no caller can lead now. So the turn is kept, and one system call
        # waits for the sockets and reports them, instead of one on the standby and another on the selector.
        if self._standby is not None and not self._somebody_waits():
            self._turn.release()
            ours = False
            try:
                self._standby.wait(timeout)
                self._give_way()
                while not (ours := self._turn.acquire(False)):  # a caller leads
                    timeout = self._until_timer()
                    # Only this thread runs timers, and it needs the turn for that: the waker makes the leader stop.
                    if timeout == 0.0:
                        self._waker.wake()
                        break
                    self._standby.wait(timeout)
            finally:
                if not ours:
                    self._turn.acquire()
            timeout = 0.0
        for key, events in self._selector.select(timeout):
            self._last_visit = 0.0  # no caller came for it, so the next one is not expected to
            key.data(events)

    def _give_way(self) -> None:
        """Leave the sockets to a caller that sees to them again and again."""
        assert self._nap is not None
        while (left := self._visits_end - time.monotonic()) > 0.0 and self._until_timer() != 0.0:
            if self._nap.poll(left * 1000):
                return

    def _visited(self, again: float) -> None:
        """Note that a caller has done the I/O thread's work, and may do so again within that many seconds."""
        now = time.monotonic()
        self._visits_end = now + again if now - self._last_visit < again else 0.0
        self._last_visit = now

    def _until_timer(self) -> float | None:
        return min(max(self._timers[0][0] - time.monotonic(), 0.0), LONGEST_SLEEP) if self._timers else None

    def _run_inbox(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    def _close(self) -> None:
        self._ended()
        # In this order: see `post`.
        self._closed = True
        self._run_inbox()  # closes connections that were made at the last moment
        if pending:
            tell()
        self._selector.close()
        if self._standby is not None:
            self._standby.close()
        self._waker.close()

    # -- a leading caller ----------------------------------------------------------------------------------

    def _somebody_waits(self) -> bool:
        if time.monotonic() < self._crowded_until:
            return True
        return bool(self._waiting) and not all(done() for done in list(self._waiting.values()))

    def waiting(self, done: Callable[[], bool]) -> AbstractContextManager[None]:
        """Return a context that marks this thread as one that waits without leading."""
        if self._waiting:
            self._crowded_until = time.monotonic() + CROWDED
        if self._visits_end:
            self._visits_end = 0.0
            self._waker.wake()  # the I/O thread may nap, which nobody else would end
        return _Waiting(self._waiting, done)

    def lead(self, done: Callable[[], bool], timeout: float | None) -> float | None:
        """Handle events in this thread until ``done()``, the timeout, or anything that the I/O thread must handle.

        Only for a thread that `may_wait`.

        Returns:
            What is left of the timeout, in seconds.
        """
        standby = self._standby
        if not self.may_lead or standby is None or self._leading is not None:
            return timeout
        if (self._waiting or self._crowded_until) and self._somebody_waits():
            return timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        with HeldBack() as interrupt:
            # Never wait for the turn: its holder is reading the sockets already, and this thread can wait for what
            # it needs in the ordinary way.
            if self._turn.acquire(False):
                try:
                    self._leading = interrupt
                    if not self._closed:
                        standby.disarm()
                        self._handle_until(done, deadline, interrupt)
                finally:
                    self._sleepers.discard(interrupt)
                    # If `may_wait` has stopped it, the turn is released already, and may be another thread's.
                    if self._leading is interrupt:
                        self._stop_leading(standby)
        return None if deadline is None else max(deadline - time.monotonic(), 0.0)

    def glance(self) -> None:
        """Handle in this thread the events that have come, without waiting.

        A caller that does this every few milliseconds keeps the I/O thread from running anyway, and may do its work
        for it, except for what only that thread may do, for which it needs the turn.
        """
        if self.may_lead and not self._inbox and self._until_timer() != 0.0 and not self._turn.is_mine():
            with HeldBack():
                if self._turn.acquire(False):
                    try:
                        if not self._closed:
                            self._visited(GIVE_WAY)
                            self._handle(self._selector.select(0))
                    finally:
                        self._turn.release()

    def _handle_until(self, done: Callable[[], bool], deadline: float | None, interrupt: HeldBack) -> None:
        timeout = None
        while not done():
            if deadline is not None:
                timeout = deadline - time.monotonic()
                if timeout <= 0.0:
                    return
            # Here, and only here, no state is half-changed: Ctrl-C may come through, and `may_wait` may take over.
            interrupt.passing = self._asleep = True
            events = self._poller.poll(self._look)
            if not events:
                events = self._selector.select(None if timeout is None else min(timeout, LONGEST_SLEEP))
            self._asleep = interrupt.passing = False
            if self._leading is not interrupt:  # a signal handler has waited meanwhile: the sockets are others' now
                return
            if not self._handle(events):
                return
        self._visited(NAP)

    def _handle(self, events: list[tuple[selectors.SelectorKey, int]]) -> bool:
        """Call the handlers in a caller's thread; return False, leaving the rest, if the I/O thread is needed."""
        for key, mask in events:
            if key.fileobj is self._waker:  # not drained here: it must stay readable, to wake the I/O thread
                return False
            try:
                key.data(mask)
            except BaseException as error:  # a bug, or another signal's handler raised in the middle of it
                self.post(partial(_raise, error))
                raise
        return True

    # -- fork ----------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """In a forked child: close the parent's selectors without changing anything in them.

        An epoll is shared with the parent: to unregister sockets here would unregister them there, too.
        """
        self._waker.close()
        self._selector.close()
        if self._standby is not None:
            self._standby.close()


class _Waiting(AbstractContextManager[None]):  # a generator-based one would take three times as long
    __slots__ = ("_done", "_waiting")

    def __init__(self, waiting: dict[int, Callable[[], bool]], done: Callable[[], bool]) -> None:
        self._waiting = waiting
        self._done = done

    def __enter__(self) -> None:
        self._waiting[threading.get_ident()] = self._done

    def __exit__(self, *error: object) -> None:
        self._waiting.pop(threading.get_ident(), None)


def _on_bell(handler: _Handler, events: int) -> None:
    handler(selectors.EVENT_WRITE)


def _raise(error: BaseException) -> None:
    raise error


class _Standby(Protocol):
    """Something that waits until a selector has events, except while it is disarmed."""

    arm: Callable[[], object]
    disarm: Callable[[], object]

    def wait(self, timeout: float | None) -> None: ...
    def close(self) -> None: ...


def _standby(selector: selectors.BaseSelector) -> _Standby | None:
    if sys.platform == "linux":
        if hasattr(selectors, "EpollSelector") and isinstance(selector, selectors.EpollSelector):
            return _EpollStandby(selector.fileno())
    elif sys.platform != "win32":
        if hasattr(selectors, "KqueueSelector") and isinstance(selector, selectors.KqueueSelector):
            return _KqueueStandby(selector.fileno())
    return None


if sys.platform == "linux":

    class _EpollStandby:
        def __init__(self, descriptor: int) -> None:
            self._epoll = select.epoll()
            self._epoll.register(descriptor, select.EPOLLIN)
            self.arm: Callable[[], object] = partial(self._epoll.modify, descriptor, select.EPOLLIN)
            self.disarm: Callable[[], object] = partial(self._epoll.modify, descriptor, 0)

        def wait(self, timeout: float | None) -> None:
            self._epoll.poll(timeout)

        def close(self) -> None:
            self._epoll.close()

elif sys.platform != "win32":

    class _KqueueStandby:
        def __init__(self, descriptor: int) -> None:
            self._descriptor = descriptor
            self._kqueue = select.kqueue()
            self._change(select.KQ_EV_ADD)
            self.arm: Callable[[], object] = partial(self._change, select.KQ_EV_ENABLE)
            self.disarm: Callable[[], object] = partial(self._change, select.KQ_EV_DISABLE)

        def _change(self, action: int) -> None:
            self._kqueue.control([select.kevent(self._descriptor, select.KQ_FILTER_READ, action)], 0)

        def wait(self, timeout: float | None) -> None:
            self._kqueue.control(None, 1, timeout)

        def close(self) -> None:
            self._kqueue.close()
