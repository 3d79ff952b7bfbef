"""Frames over a connected socket, blocking or not, and how many bytes they took.

It must not know what the frames mean, nor how the socket came to be connected, sealed or encrypted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from farm_executor.core.frames import MAX_BODY, MAX_HELLO, Buffer, Frame, FrameReader
from farm_executor.data import payload
from farm_executor.errors import RemoteProtocolError
from farm_executor.wire.layered import LayeredSocket
from farm_executor.wire.race import Candidate
from farm_executor.wire.sockets import AnySocket, Socket, hang_up

__all__ = ["Connection", "no_segment"]

_CHUNK = 64 * 1024
_HAS_SENDMSG = hasattr(Socket, "sendmsg")  # not on Windows
_VECTOR = 64  # buffers in one sendmsg; the system's limit is 1024
_BULK_READS = 32  # reads of one segment before other connections get their turn


class Connection:
    """Frames over a connected socket.

    Args:
        sock: The socket.
        max_body: See `FrameReader`.
        allocate: See `FrameReader`.

    Attributes:
        peer: Where the other end was reached, if it was dialled over TCP.

    Thread safety: one thread receives; sending is for one thread at a time, which may be another one.
    """

    def __init__(
        self, sock: AnySocket, max_body: int = MAX_BODY, allocate: Callable[[int], Buffer] = payload.allocate
    ) -> None:
        self.socket = sock
        self._layer = sock if isinstance(sock, LayeredSocket) else None
        self._fill = sock.recv_into if self._layer is None else self._layer.fill
        self._received = self._sent = 0
        self.reader = FrameReader(max_body, allocate)
        self._chunk = memoryview(bytearray(4096 if max_body == MAX_HELLO else _CHUNK))
        self._unsent: deque[memoryview] = deque()
        self.peer: Candidate | None = None

    def __repr__(self) -> str:
        # Only what is known without asking the system: a connection is shown while it fails, and in other threads.
        fate = f"fd {self.fileno()}" if self.fileno() >= 0 else "closed"
        kind = "" if self._layer is None else f" {type(self._layer).__name__}"
        moved = f"{self.bytes_sent} bytes out, {self.bytes_received} in, {self.backlog} unsent"
        return f"<Connection{kind} {fate}: {moved}>"

    def fileno(self) -> int:
        """For selectors; -1 when closed."""
        return self.socket.fileno()

    @property
    def layered(self) -> bool:
        """Whether more bytes travel than are sent, because they are sealed or encrypted."""
        return self._layer is not None

    @property
    def bytes_received(self) -> int:
        """All that has been read from the socket after the hellos, as it travelled, in whole records if it does."""
        return self._received if self._layer is None else self._layer.bytes_received

    @property
    def bytes_sent(self) -> int:
        """All that the socket has taken after the hellos, as it travels."""
        return self._sent if self._layer is None else self._layer.bytes_sent

    def count_anew(self) -> None:
        """Count bytes from here."""
        self._received = self._sent = 0
        if self._layer is not None:
            self._layer.count_anew()

    @property
    def pending(self) -> bool:
        """Whether there is something to receive of which no selector knows."""
        return self._layer is not None and self._layer.pending

    @property
    def unsent(self) -> bool:
        """Whether buffers wait for the socket to take them."""
        return bool(self._unsent)

    @property
    def backlog(self) -> int:
        """How many there are."""
        return len(self._unsent)

    def receive(self) -> list[Frame]:
        """Read what is there; a blocking socket waits for at least one byte.

        Raises:
            EOFError: The peer is gone, in whatever way.
            TimeoutError: The socket has a timeout, and it is over.
            RemoteProtocolError: See `FrameReader.receive_data`.
        """
        frames = self._receive()
        while self._layer is not None and self._layer.pending:
            frames += self._receive()
        return frames

    def _receive(self) -> list[Frame]:
        for _ in range(_BULK_READS):
            target = self.reader.destination
            if target is None:
                return self._receive_into(self._chunk)
            count = self._read(target, self._fill)
            frames = self.reader.received_into(count) if count else []
            if frames or count < len(target):
                return frames
        return []

    def _receive_into(self, chunk: memoryview) -> list[Frame]:
        count = self._read(chunk, self.socket.recv_into)
        return self.reader.receive_data(chunk[:count]) if count else []

    def _read(self, target: memoryview, receive: Callable[[memoryview], int]) -> int:
        """Read into that memory; 0 means that nothing is there yet."""
        try:
            count = receive(target)
        except (BlockingIOError, InterruptedError):
            return 0
        except TimeoutError as error:
            if error.errno is not None:  # not the socket's timeout: the system has given the connection up
                raise EOFError(str(error)) from None
            raise TimeoutError("no answer in time") from None
        except OSError as error:
            raise EOFError(str(error)) from None
        if not count:
            raise EOFError("connection closed within a frame" if self.reader.mid_frame else "connection closed")
        self._received += count
        return count

    def send(self, buffers: Sequence[Buffer]) -> bool:
        """Send as much as the non-blocking socket takes, keep the rest for `flush`; say whether all is sent.

        A lost connection is not reported here: the receiving side will see it.
        """
        if not self._unsent and len(buffers) == 1:  # the most frequent case by far
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
        return self.flush()

    def _queue(self, buffers: Sequence[Buffer]) -> None:
        self._unsent.extend([memoryview(buffer).cast("B") for buffer in buffers if len(buffer)])

    def flush(self) -> bool:
        """Go on sending; say whether all is sent."""
        try:
            while self._unsent:
                self._send_some()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self._unsent.clear()
        return True

    def send_all(self, buffers: Sequence[Buffer]) -> None:
        """Send over a blocking socket.

        Raises:
            OSError: The connection is lost, or the socket's timeout is over.
        """
        if len(buffers) == 1 and not self._unsent:
            self.socket.sendall(buffers[0])
            self._sent += len(buffers[0])
            return
        self._queue(buffers)
        while self._unsent:
            self._send_some()

    def _send_some(self) -> None:
        if len(self._unsent) > 1 and (_HAS_SENDMSG or self._layer is not None):
            count = self.socket.sendmsg(list(islice(self._unsent, _VECTOR)))
        else:
            count = self.socket.send(self._unsent[0])
        self._sent += count
        while count:
            first = self._unsent[0]
            if count < len(first):
                self._unsent[0] = first[count:]
                return
            count -= len(first)
            self._unsent.popleft()

    def receive_frame(self, deadline: float) -> Frame:
        """Wait for the next frame on a blocking socket, until a time of the monotonic clock, and read no further.

        Raises:
            EOFError: The peer is gone.
            TimeoutError: It said nothing in time.
            RemoteProtocolError: It said nonsense.
        """
        frames: list[Frame] = []
        while not frames:
            if self.reader.destination is not None:
                raise RemoteProtocolError("a segment where there is none to be")
            self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            frames = self._receive_into(self._chunk[: self.reader.wanted])
        return frames[0]

    def hang_up(self) -> None:
        """End the connection; its file descriptor stays valid."""
        hang_up(self.socket)

    def close(self) -> None:
        """Close the socket; buffers not yet sent are dropped."""
        self._unsent.clear()
        self.socket.close()


def no_segment(size: int) -> Buffer:
    """For `Connection`: where no bulk travels, no memory is taken for what is promised."""
    raise RemoteProtocolError(f"a segment of {size} bytes where there is none to be")
