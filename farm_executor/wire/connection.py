"""Frames over a connected socket, blocking or not, with counts of the bytes they took.

It must not know what the frames mean, nor how the socket was connected, sealed or encrypted, nor what is in a ring.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

from farm_executor.core.frames import MAX_BODY, MAX_HELLO, Allocate, Buffer, Frame, Kind
from farm_executor.core.reader import FrameReader
from farm_executor.core.ring import LEAST, MARK, Part, divert
from farm_executor.data import memory
from farm_executor.errors import RemoteProtocolError
from farm_executor.wire.layered import LayeredSocket
from farm_executor.wire.race import Candidate
from farm_executor.wire.sockets import AnySocket, Socket, hang_up
from farm_executor.wire.trace import Trace

if TYPE_CHECKING:
    from farm_executor.wire.ring import Ring

__all__ = ["Connection", "no_segment"]

_CHUNK = 64 * 1024
_HAS_SENDMSG = hasattr(Socket, "sendmsg")  # not on Windows
_VECTOR = 64  # buffers in one sendmsg; the system allows 1024
_BULK_READS = 32  # reads of one segment before other connections get a turn


class Connection:
    """Frames over a connected socket.

    Args:
        sock: The socket.
        max_body: See `FrameReader`.
        allocate: See `FrameReader`.

    Attributes:
        peer: The address at which the other end was reached, if it was dialled over TCP.
        ends: See `sockets.ends`; empty if it was not dialled.
        trace: The log of its frames; None if they are not logged.
        as_given: Whether the bytes travel as they are given: not sealed, encrypted, or some of them through a ring.
        laden: Whether something large has been sent that a ring would take.

    Thread safety: one thread receives; one thread at a time sends, and it need not be the receiving one. Any thread
    may look at the attributes.
    """

    def __init__(self, sock: AnySocket, max_body: int = MAX_BODY, allocate: Allocate = memory.allocate) -> None:
        self.socket = sock
        self._layer = sock if isinstance(sock, LayeredSocket) else None
        self._fill = sock.recv_into if self._layer is None else self._layer.fill
        self._received = self._sent = 0
        self.reader = FrameReader(max_body, allocate)
        self._chunk = memoryview(bytearray(4096 if max_body == MAX_HELLO else _CHUNK))
        self._unsent: deque[memoryview | Part] = deque()
        self._ring: Ring | None = None
        self._diverts = False
        self.as_given = self._layer is None
        self.laden = False
        self.peer: Candidate | None = None
        self.ends = ""
        self.trace: Trace | None = None

    def __repr__(self) -> str:
        # Make no system calls here: a connection is also shown while it is failing, and from other threads.
        fate = f"fd {self.fileno()}" if self.fileno() >= 0 else "closed"
        kind = "" if self._layer is None else f" {type(self._layer).__name__}"
        moved = f"{self.bytes_sent} bytes out, {self.bytes_received} in, {self.backlog} unsent"
        return f"<Connection{kind} {fate}: {moved}>"

    def fileno(self) -> int:
        """Return the file descriptor, for selectors; -1 when closed."""
        return self.socket.fileno()

    @property
    def bytes_received(self) -> int:
        """Bytes on the wire received since the hellos; where there are records, only whole ones count."""
        return self._received if self._layer is None else self._layer.bytes_received

    @property
    def bytes_sent(self) -> int:
        """Bytes on the wire that the socket has taken since the hellos."""
        return self._sent if self._layer is None else self._layer.bytes_sent

    def count_anew(self) -> None:
        """Restart both byte counts at zero."""
        self._received = self._sent = 0
        if self._layer is not None:
            self._layer.count_anew()

    @property
    def pending(self) -> bool:
        """Whether there is data to receive that no selector knows of."""
        return self._layer is not None and self._layer.pending

    @property
    def unsent(self) -> bool:
        """Whether buffers are waiting for the socket to take them."""
        return bool(self._unsent) and not self.starved

    @property
    def starved(self) -> bool:
        """Whether what is to be sent next waits for the ring, and so for `bell`."""
        try:
            return isinstance(self._unsent[0], Part)
        except IndexError:  # asked beforehand, another thread might have sent it in between
            return False

    @property
    def bell(self) -> int | None:
        """The descriptor that can be read when the ring has room again; None if there is no ring."""
        return None if self._ring is None else self._ring.bell.fileno()

    def expect_ring(self, ring: Ring | None) -> Ring | None:
        """Receive large segments through this ring as soon as the other end sends them so; own it from now on.

        Returns:
            The ring that was expected before and has not been used, which is the caller's now.
        """
        if self._diverts:
            return ring
        before, self._ring = self._ring, ring
        self.reader.ring = ring
        return before

    def use_ring(self) -> bool:
        """Send large segments through the expected ring from now on; return whether there is one."""
        self._diverts = self._ring is not None
        self.as_given = self._layer is None and not self._diverts
        return self._diverts

    @property
    def backlog(self) -> int:
        """The number of buffers waiting."""
        return len(self._unsent)

    def receive(self) -> list[Frame]:
        """Read the frames that have arrived; a blocking socket waits for at least one byte.

        Raises:
            EOFError: The peer is gone, for whatever reason.
            TimeoutError: The socket has a timeout, and it has expired.
            RemoteProtocolError: See `FrameReader.receive_data`.
        """
        frames = self._receive()
        # No selector reports what the layer has already decrypted: left there, it would wait for the next byte.
        while self._layer is not None and self._layer.pending:
            frames += self._receive()
        if self.trace is not None and frames:
            self.trace.received(frames)
        return frames

    def _receive(self) -> list[Frame]:
        reader = self.reader
        for _ in range(_BULK_READS):
            target = reader.destination
            if target is None:
                count = self._read(self._chunk, self.socket.recv_into)
                return reader.receive_data(self._chunk[:count]) if count else []
            with target:
                room = len(target)
                count = self._read(target, self._fill)
            frames = reader.received_into(count) if count else []
            if frames or count < room:
                return frames
        return []

    def _read(self, target: memoryview, receive: Callable[[memoryview], int]) -> int:
        """Read into the given memory; return 0 if nothing has arrived yet."""
        try:
            count = receive(target)
        except (BlockingIOError, InterruptedError):
            return 0
        except TimeoutError as error:
            if error.errno is not None:  # ETIMEDOUT, not the socket's timeout: the system gave up
                raise EOFError(str(error)) from None
            raise TimeoutError("no answer in time") from None
        except OSError as error:
            raise EOFError(str(error)) from None
        if not count:
            raise EOFError("connection closed within a frame" if self.reader.mid_frame else "connection closed")
        self._received += count
        return count

    def send(self, buffers: Sequence[Buffer]) -> bool:
        """Send what the non-blocking socket takes and keep the rest for `flush`; return whether all was sent.

        A lost connection is not reported here: the receiving side will see it.
        """
        if self.trace is not None:
            self.trace.sent(buffers)
        if not self._unsent and len(buffers) == 1:  # by far the most frequent case
            try:
                count = self.socket.send(buffers[0])
            except (BlockingIOError, InterruptedError):
                count = 0
            except OSError:
                return True
            self._sent += count
            if count == len(buffers[0]):
                return True
            buffers = [memoryview(buffers[0])[count:]]
        self._queue(buffers)
        # Noted here, where the queue is nobody else's: who looks through it later may find it changing.
        if not self.laden and not self._diverts:
            self.laden = any(memoryview(buffer).nbytes >= LEAST for buffer in buffers)
        return self.flush()

    def _queue(self, buffers: Sequence[Buffer]) -> None:
        # A single buffer has no segments, and may be the rest of one.
        items = divert(buffers) if self._diverts and len(buffers) > 1 else buffers
        self._unsent.extend(
            [item if isinstance(item, Part) else memoryview(item).cast("B") for item in items if len(item)]
        )

    def flush(self) -> bool:
        """Send what is left; return whether all was sent."""
        try:
            while self._unsent:
                self._send_some(wait=False)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self._unsent.clear()
        return True

    def send_all(self, buffers: Sequence[Buffer]) -> None:
        """Send over a blocking socket.

        Raises:
            OSError: The connection is lost, or the socket's timeout has expired.
        """
        if self.trace is not None:
            self.trace.sent(buffers)
        if len(buffers) == 1 and not self._unsent:
            self.socket.sendall(buffers[0])
            self._sent += len(buffers[0])
            return
        self._queue(buffers)
        while self._unsent:
            self._send_some(wait=True)

    def _send_some(self, *, wait: bool) -> None:
        first = self._unsent[0]
        if isinstance(first, Part):
            self._put(first, wait=wait)
            return
        if len(self._unsent) > 1 and (_HAS_SENDMSG or self._layer is not None):
            some: Any = islice(self._unsent, _VECTOR)
            count = self.socket.sendmsg(list(takewhile(_is_no_part, some) if self._diverts else some))
        else:
            count = self.socket.send(first)
        self._sent += count
        while count:
            first = self._unsent[0]
            assert not isinstance(first, Part), "no more is sent than was given"
            if count < len(first):
                self._unsent[0] = first[count:]
                return
            count -= len(first)
            self._unsent.popleft()

    def _put(self, part: Part, *, wait: bool) -> None:
        """Copy a piece or several into the ring, and queue the marks that tell of them."""
        assert self._ring is not None, "parts are made for a ring"
        done = 0
        while not done or self._ring.joins(done, len(part)):
            try:
                size = self._ring.put(part.view, self.fileno() if wait else None)
            except BlockingIOError:
                raise
            except OSError:
                # What has been sent of the frame cannot be taken back. The reading side will see that this is the
                # end.
                self.hang_up()
                raise
            part.view = part.view[size:]
            done += 1
        if not len(part):
            self._unsent.popleft()
        self._unsent.appendleft(memoryview(MARK * done))

    def receive_frame(self, deadline: float) -> Frame:
        """Wait for the next frame on a blocking socket and read no further; the deadline is monotonic time.

        Raises:
            EOFError: The peer is gone.
            TimeoutError: The peer sent nothing in time.
            RemoteProtocolError: The peer violated the protocol.
        """
        # TLS may begin, or another process take over the socket, right after this frame: a byte read too far
        # would be lost to them.
        frames: list[Frame] = []
        while not frames:
            if self.reader.destination is not None:
                raise RemoteProtocolError("a segment where there is none to be")
            self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            chunk = self._chunk[: self.reader.wanted]
            count = self._read(chunk, self.socket.recv_into)
            frames = self.reader.receive_data(chunk[:count]) if count else []
        if self.trace is not None:
            self.trace.received(frames)
        return frames[0]

    def hang_up(self) -> None:
        """End the connection, but keep its file descriptor valid."""
        hang_up(self.socket)
        if self._ring is not None:
            self._ring.hang_up()  # a thread may be waiting for it

    def close(self) -> None:
        """Close the socket and drop all unsent buffers."""
        self._unsent.clear()
        self.reader.close()
        if self._ring is not None:
            self._ring.close()
        self.socket.close()

    def abandon(self) -> None:
        """In a forked child: close the descriptors that are the parent's, too, without ending its connection."""
        if self._ring is not None:
            self._ring.close()
        if self.fileno() >= 0:
            os.close(self.fileno())
        self.socket.detach()


def _is_no_part(item: memoryview | Part) -> bool:
    return not isinstance(item, Part)


def no_segment(size: int, kind: Kind) -> Buffer:
    """Refuse to allocate a segment: the `allocate` of connections that carry none."""
    raise RemoteProtocolError(f"a segment of {size} bytes where there is none to be")
