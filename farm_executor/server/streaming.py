"""The items of streams on their way out of a worker.

This module owns which items travel together, how far a task may be ahead of its consumer, and what has to be sent
again over another connection. It must not know sockets, nor which thread reads them.

An item that follows the last sending by a millisecond or more goes at once; those that come sooner wait for one
another, for a millisecond, and the helper sees to it that none waits much longer.

Locks: an `Outgoing`'s own (held while items are put together and sent, so that they stay in order), then the lane's
for sending, which guards what has been sent.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from farm_executor.core.frames import MAX_COUNT, Buffer, Frame, Payload, is_bulk, payload_size
from farm_executor.core.streams import (
    MAX_AHEAD,
    MAX_BYTES_AHEAD,
    decode_credit,
    encode_items,
    encode_items_together,
)
from farm_executor.data import payload
from farm_executor.errors import RemoteProtocolError
from farm_executor.server.keeping import kept

__all__ = ["Outgoing", "Streams", "UnsendableItemError"]

TOGETHER_SECONDS = 0.001
MAX_BYTES = 64 * 1024  # of items that travel together
MAX_TEXT = 16  # what a plain item is counted with, in bytes, but for the length of a text

Send = Callable[["Outgoing", "list[Buffer]", int], None]
Wait = Callable[[Callable[[], bool], threading.Event], None]


class UnsendableItemError(Exception):
    """An item of a stream cannot be pickled."""

    def __init__(self, why: BaseException, number: int, item: Any) -> None:
        self.why = why
        self.number = number
        self.item = item


class Outgoing:
    """The items of one task; see the module.

    Args:
        seq: The task's number.
        send: Sends frames of so many bytes, or keeps them until that is possible; calls `add_sent` before.
        wait: Waits until a condition holds that may change whenever the event is set.
        is_unwanted: Returns whether the consumer is gone.
        changed: The event.
        wake: Has another thread flush soon.
        keep: Whether what has been sent may have to be sent again.

    Attributes:
        items: How many have been put.
        whole: Entered while frames are numbered and sent, which must not be interrupted halfway.

    Thread safety: `put` and `finish` are for the thread that runs the task, `flush` for any; `add_sent`, `credit`
    and `unheard` are called as the lane's lock for sending, or for reading, has it.
    """

    def __init__(
        self,
        seq: int,
        send: Send,
        wait: Wait,
        is_unwanted: Callable[[], bool],
        changed: threading.Event,
        wake: Callable[[], None],
        *,
        keep: bool,
    ) -> None:
        self._wake = wake
        self.seq = seq
        self._send = send
        self._wait = wait
        self._is_unwanted = is_unwanted
        self._changed = changed
        self._keep = keep
        self._lock = threading.Lock()
        self._plain: list[Any] = []
        self._pickled: list[Payload] = []
        self._size = 0  # of both, roughly; only one of them ever has items
        self._flushed = 0.0
        self._number = 0  # of the next frame
        self.items = 0
        self.whole: AbstractContextManager[None] = nullcontext()
        self._sent: deque[tuple[int, list[Buffer]]] = deque()  # those not taken: their sizes, and they, if kept
        self._taken = 0
        self._ahead = 0  # bytes

    @property
    def pending(self) -> bool:
        """Whether items wait for company."""
        return bool(self._plain or self._pickled)

    def put(self, held: list[Any]) -> bool:
        """Send an item, now or soon, once the consumer is near enough; return whether it wants more.

        Args:
            held: A list of the item alone, which is emptied. Nothing else of the caller's may refer to the item: it
                would look as if the task could still change its memory, which would then be copied.

        Raises:
            UnsendableItemError: The item cannot be pickled.
        """
        is_plain = payload.is_plain(held[0])
        try:
            data = () if is_plain else payload.dumps(held[0])
        except Exception as error:  # it runs user code
            raise UnsendableItemError(error, self.items + 1, held[0]) from None
        self.items += 1
        now = time.perf_counter()
        with self._lock:
            if is_plain:
                if self._pickled:
                    self._flush()
                item = held.pop()
                self._plain.append(item)
                self._size += MAX_TEXT + (len(item) if isinstance(item, (str, bytes)) else 0)
            else:
                bulk = is_bulk(data)
                if self._plain or (bulk and self._pickled):
                    self._flush()
                # Its memory may change as soon as the task goes on, and it may have to be sent again. Of what the
                # task has made for us alone, nothing is left but the memory, and no copy is needed.
                held.clear()
                self._pickled.append(kept(data) if bulk and self._keep else data)
                self._size += payload_size(data)
                if bulk:
                    self._flush()
            count = len(self._plain) or len(self._pickled)
            if count and (now - self._flushed >= TOGETHER_SECONDS or self._size >= MAX_BYTES or count == MAX_COUNT):
                self._flush()
            elif count == 1:  # the first that waits: the helper may be asleep, and would not look
                self._wake()
        if not self._has_room():
            self.flush()
            self._wait(self._may_go_on, self._changed)
        return not self._is_unwanted()

    def flush(self, *, wait: bool = True) -> None:
        """Send what waits; with ``wait=False`` unless another thread has the lock, which then does so."""
        if self._lock.acquire(wait):
            try:
                if self.pending:
                    self._flush()
            finally:
                self._lock.release()

    def _flush(self) -> None:
        # Of a frame whose rest is lost, or that is sent in part twice, the other end would make something else.
        with self.whole:
            if self._plain:
                plain, self._plain = self._plain, []
                frames = encode_items_together(self.seq, self._number, len(plain), payload.dumps_together(plain))
            else:
                pickled, self._pickled = self._pickled, []
                frames = encode_items(self.seq, self._number, pickled)
            self._size = 0
            self._number += 1
            self._send(self, frames, payload_size(frames))
            self._flushed = time.perf_counter()

    def _has_room(self) -> bool:
        return not self._sent or (len(self._sent) < MAX_AHEAD and self._ahead < MAX_BYTES_AHEAD)

    def _may_go_on(self) -> bool:
        # Cleared before the look: what changes after it sets the event again.
        self._changed.clear()
        return self._has_room() or self._is_unwanted()

    def add_sent(self, frames: list[Buffer], size: int) -> None:
        """Note that a frame is about to be sent."""
        self._sent.append((size, frames if self._keep else []))
        self._ahead += size

    def credit(self, taken: int) -> None:
        """Note how many frames the consumer has taken.

        Raises:
            RemoteProtocolError: It cannot have taken as many.
        """
        if taken > self._taken + len(self._sent):
            raise RemoteProtocolError(f"{taken} frames of items taken, of {self._taken + len(self._sent)}")
        while self._taken < taken:
            size, _ = self._sent.popleft()
            self._taken += 1
            self._ahead -= size
        self._changed.set()

    def unheard(self) -> list[list[Buffer]]:
        """Return the frames that may not have arrived."""
        return [frames for _, frames in self._sent]


class Streams:
    """The streams of one lane.

    Args:
        wake: Has the helper look soon.

    Attributes:
        changed: Set whenever a task that waits for its consumer may go on.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.changed = threading.Event()
        self._streams: deque[Outgoing] = deque()  # the last is the present one, others have outcomes on their way

    def open(self, seq: int, send: Send, wait: Wait, is_unwanted: Callable[[], bool], *, keep: bool) -> Outgoing:
        """Return another stream, that of the task with this number."""
        stream = Outgoing(seq, send, wait, is_unwanted, self.changed, self._wake, keep=keep)
        if not keep:
            self._streams.clear()
        self._streams.append(stream)
        return stream

    @property
    def pending(self) -> bool:
        """Whether items wait for company."""
        return bool(self._streams) and self._streams[-1].pending

    def flush(self) -> None:
        """Send items that wait for company, unless another thread is about to."""
        if self.pending:
            self._streams[-1].flush(wait=False)

    def credit(self, frame: Frame) -> None:
        """Take a CREDIT frame; one for a task that has ended long ago is ignored.

        Raises:
            RemoteProtocolError: It is malformed, or has too high a number.
        """
        taken = decode_credit(frame)
        for stream in list(self._streams):
            if stream.seq == frame.seq:
                stream.credit(taken)

    def acknowledge(self, number: int) -> None:
        """Forget the streams of tasks before that number, whose outcomes have arrived, and so all items, too."""
        while self._streams and self._streams[0].seq < number:
            self._streams.popleft()

    def unheard(self) -> list[list[Buffer]]:
        """Return the frames that may not have arrived."""
        return [frames for stream in self._streams for frames in stream.unheard()]
