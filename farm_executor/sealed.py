"""Seals over a socket that somebody else has connected: what comes is what the other end has sent, or nothing.

It must not open connections, nor know what is said over them; what a seal is, is `core.seal`'s.

A record is received as a whole into a buffer of this module's, checked there, and copied while it is still in the
processor's cache: no byte that is not known to be the other end's ever reaches anybody.
"""

from __future__ import annotations

from socket import socket
from typing import Any

from farm_executor.core.seal import CLIENT, MAX_RECORD, RECORD_HEAD, SERVER, Seal, record_length
from farm_executor.errors import RemoteProtocolError
from farm_executor.layered import LayeredSocket

__all__ = ["SealedSocket"]

_FIRST_READ, _LARGEST_READ = 4096, 4 * (RECORD_HEAD + MAX_RECORD)  # bytes of buffer, twice as many when it is full
_SMALL = 16 * 1024  # bytes that are copied behind their head rather than given to the system as two pieces
_HAS_SENDMSG = hasattr(socket, "sendmsg")  # not on Windows


class SealedSocket(LayeredSocket):
    """See `LayeredSocket`.

    Args:
        sock: The connection.
        secret: What both ends have agreed on in the handshake over this very connection.
        server_side: Whether the other end has made the connection.
        begun: How many records have travelled in each direction.
    """

    piece = MAX_RECORD

    def __init__(self, sock: socket, secret: bytes, *, server_side: bool, begun: int = 0) -> None:
        super().__init__(sock)
        self._sender = Seal(secret, SERVER if server_side else CLIENT, begun)
        self._receiver = Seal(secret, CLIENT if server_side else SERVER, begun)
        self._buffer = memoryview(bytearray(_FIRST_READ))
        self._full = False  # whether more could have come at once
        self._begin = self._end = 0  # what has come and is not looked at yet
        self._plain = self._buffer[:0]  # what has been found genuine, and is not asked for yet
        self._broken = ""  # why nothing more can be received
        self._unsent: list[Any] = []
        self._accepted = 0  # how many bytes of the caller's are in it

    def is_after(self, records: int) -> bool:
        """Whether so many have come, and nothing behind them."""
        return self._receiver.number == records and not self._plain and self._begin == self._end

    # -- receiving -------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """See `LayeredSocket.pending`."""
        return bool(self._plain or self._whole() or self._broken)

    def _whole(self) -> int:
        """How many bytes of data the next record has, if it is there; 0 if it is not."""
        there = self._end - self._begin - RECORD_HEAD
        if there <= 0:
            return 0
        try:
            length = record_length(self._buffer, self._begin)
        except RemoteProtocolError as error:
            self._give_up(str(error))
            return 0
        return length if length <= there else 0

    def _give_up(self, why: str) -> None:
        self._broken = f"what has come was not sent by the other end: {why}"
        self._end = self._begin  # and nothing comes after it

    def recv_into(self, buffer: Any) -> int:
        """See `LayeredSocket.recv_into`."""
        target = memoryview(buffer).cast("B")
        if not self._plain and not self._whole() and not self._broken:
            self._make_room()
            came = self._sock.recv_into(self._buffer[self._end :])
            if not came:
                return 0
            self._end += came
            self._full = self._end == len(self._buffer)
        size = len(target)
        count = 0
        while count < size:
            if not self._plain and not self._open():
                break
            step = min(size - count, len(self._plain))
            target[count : count + step] = self._plain[:step]
            self._plain = self._plain[step:]
            count += step
        if count:
            return count
        if self._broken:
            raise ConnectionAbortedError(self._broken)
        raise BlockingIOError("less than a record has come")

    def _open(self) -> bool:
        """Look at the next record, if it is there."""
        length = self._whole()
        if not length:
            return False
        start = self._begin + RECORD_HEAD
        data = self._buffer[start : start + length]
        if not self._receiver.check(self._buffer[self._begin : start], data):
            self._give_up("its seal is another's")
            return False
        self._plain = data
        self._begin = start + length
        self.bytes_received += RECORD_HEAD + length
        return True

    def _make_room(self) -> None:
        """Have the part of a record at the beginning of the buffer, and free bytes behind it."""
        kept = self._end - self._begin
        rest = self._buffer[self._begin : self._end]
        if self._full and len(self._buffer) < _LARGEST_READ:
            self._buffer = memoryview(bytearray(min(2 * len(self._buffer), _LARGEST_READ)))
        if self._begin or self._full:
            self._buffer[:kept] = rest
        self._begin, self._end, self._full = 0, kept, False

    # -- sending ---------------------------------------------------------------------------------------

    def send(self, data: Any) -> int:
        """See `LayeredSocket.send`."""
        if not self._unsent:
            piece = self._piece(data)
            if not piece:
                return 0
            head = self._sender.head(piece)
            self._accepted = len(piece)
            self._unsent = [head, piece] if len(piece) > _SMALL and _HAS_SENDMSG else [head + piece]
        while self._unsent:
            first = self._unsent[0]
            count = self._sock.sendmsg(self._unsent) if len(self._unsent) > 1 else self._sock.send(first)
            self.bytes_sent += count
            if count >= len(first):
                count -= len(first)
                del self._unsent[0]
            if count:
                self._unsent[0] = memoryview(self._unsent[0])[count:]
                if not self._unsent[0]:
                    del self._unsent[0]
        return self._accepted

    @staticmethod
    def _piece(data: Any) -> bytes:
        """What goes into one record: a copy, for memory of the caller's may change while it is on its way."""
        if type(data) is bytes and len(data) <= MAX_RECORD:
            return data
        return bytes(memoryview(data).cast("B")[:MAX_RECORD])
