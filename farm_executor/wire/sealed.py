"""Sealed traffic over a connected socket: only what the other end has really sent is received.

It must not open connections, nor know what is said over them; seals themselves are in `core.seal`.

A small record is received as a whole into a buffer of this module, checked there, and copied while it is still in
the processor's cache. A large record of a segment is received into the segment's own memory and hashed piece by
piece as it arrives; it is not reported before its seal has been checked. So no unauthenticated byte ever reaches
a caller.
"""

from __future__ import annotations

import socket as sockets
import time
from socket import socket
from typing import Any

from farm_executor.core.seal import CLIENT, MAX_RECORD, RECORD_HEAD, SERVER, Seal, record_length
from farm_executor.errors import RemoteProtocolError
from farm_executor.wire.layered import LayeredSocket

__all__ = ["SealedSocket"]

_FIRST_READ, _LARGEST_READ = 4096, RECORD_HEAD + MAX_RECORD  # bytes of buffer, doubled when it is full
_SMALL = 16 * 1024  # bytes up to which copying is cheaper than another system call
_HAS_RECVMSG = hasattr(socket, "recvmsg_into")  # not on Windows
_FIRST_RECORD = 64 * 1024  # bytes: a record's limit until the connection's speed is known
_SEGMENT = 256 * 1024  # bytes from which a buffer gets records of its own, which may be larger
_SHORT, _LONG = 0.02, 0.2  # seconds: a record sent faster doubles the next one, a slower one halves it


class SealedSocket(LayeredSocket):
    """See `LayeredSocket`.

    Args:
        sock: The connection.
        secret: The secret that both ends agreed on in the handshake over this very connection.
        server_side: Whether the other end has made the connection.
        begun: The number of records that have already travelled in each direction.
    """

    piece = MAX_RECORD

    def __init__(self, sock: socket, secret: bytes, *, server_side: bool, begun: int = 0) -> None:
        super().__init__(sock)
        self._sender = Seal(secret, SERVER if server_side else CLIENT, begun)
        self._receiver = Seal(secret, CLIENT if server_side else SERVER, begun)
        self._buffer = memoryview(bytearray(_FIRST_READ))
        self._full = False  # whether more could have come at once
        self._begin = self._end = 0  # the bounds of what has arrived and is not checked yet
        self._plain = self._buffer[:0]  # checked, and not asked for yet
        # The memory that the record being received goes into, see `fill`, and the state of its seal.
        self._filling, self._filled = self._buffer[:0], 0
        self._head, self._hash = b"", self._receiver.begin(0)
        self._broken = ""  # why nothing more can be received
        # The part that the socket has not taken yet, and the buffer in which large records are made.
        self._unsent = self._record = memoryview(b"")
        self._accepted = 0  # the number of the caller's bytes in it
        self._limit, self._began = _FIRST_RECORD, 0.0  # a large record's size; when the last one was made

    def is_after(self, records: int) -> bool:
        """Return whether exactly that many records have arrived, and nothing after them."""
        return self._receiver.number == records and not self._plain and self._begin == self._end

    # -- receiving -------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """See `LayeredSocket.pending`."""
        return bool(self._plain or self._whole() or self._broken)

    def _whole(self) -> int:
        """Return the number of data bytes in the next record if it has arrived as a whole, else 0."""
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
        self._end = self._begin  # nothing after it is trusted

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

    def fill(self, memory: memoryview) -> int:
        """See `LayeredSocket.fill`: a large record that fits is received in place, not copied."""
        if not self._filling:
            if self._plain or self._broken or self._whole():
                return self.recv_into(memory)
            if self._end - self._begin < RECORD_HEAD:
                return self._receive_head()
            if not self._begin_filling(memory):
                return self.recv_into(memory)
        came = self._receive_data(0)
        while came:
            if self._filled == len(self._filling):
                return self._end_filling()
            if not _HAS_RECVMSG or self._sock.gettimeout():
                raise BlockingIOError("less than a record has come")
            came = self._receive_data(sockets.MSG_DONTWAIT)  # what arrived while the last piece was hashed
        return 0

    def _receive_data(self, flags: int) -> int:
        rest = self._filling[self._filled :]
        if _HAS_RECVMSG:  # read the next record's head in the same call, which saves one
            count = self._sock.recvmsg_into([rest, self._buffer[:RECORD_HEAD]], 0, flags)[0]
        else:
            count = self._sock.recv_into(rest)
        self._end = max(count - len(rest), 0)
        data = rest[: count - self._end]
        self._filled += len(data)
        self._hash.update(data)
        return count

    def _end_filling(self) -> int:
        length = len(self._filling)
        self._filling = memoryview(b"")  # a slice of it would keep the segment alive
        if not self._receiver.fits(self._head, self._hash):
            self._give_up("its seal is another's")
            raise ConnectionAbortedError(self._broken)
        self.bytes_received += RECORD_HEAD + length
        return length

    def _receive_head(self) -> int:
        """Read no further than the next record's head: only that tells where its data belong."""
        self._make_room()
        count = self._sock.recv_into(self._buffer[self._end : RECORD_HEAD])
        if not count:
            return 0
        self._end += count
        raise BlockingIOError("less than a record has come")

    def _begin_filling(self, memory: memoryview) -> bool:
        """Start to receive the rest of the next record in place if it is large enough and fits; return whether."""
        start = self._begin + RECORD_HEAD
        try:
            length = record_length(self._buffer, self._begin)
        except RemoteProtocolError as error:
            self._give_up(str(error))
            return False
        if not _SMALL < length <= len(memory):
            return False
        self._head = bytes(self._buffer[self._begin : start])
        self._filling, self._filled = memory[:length], self._end - start
        self._filling[: self._filled] = self._buffer[start : self._end]
        self._hash = self._receiver.begin(length)
        self._hash.update(self._filling[: self._filled])
        self._begin = self._end = 0
        return True

    def _open(self) -> bool:
        """Check the next record if it has arrived; return whether there is data now."""
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
        """Move the unchecked part of a record to the start of the buffer, with free bytes behind it."""
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
        if not self._unsent and type(data) is bytes and 0 < len(data) <= _SMALL:  # by far the most frequent case
            self._accepted = len(data)
            self._unsent = memoryview(self._sender.head(data) + data)
            if self._record:  # up to a megabyte: too much to keep for each of thousands of lanes
                self._record = memoryview(b"")
            return self._flush()
        return self.sendmsg([data])

    def sendmsg(self, buffers: list[Any]) -> int:
        """See `LayeredSocket.sendmsg`."""
        if not self._unsent:
            self._unsent = self._next_record(buffers)
        return self._flush()

    def _flush(self) -> int:
        while self._unsent:
            count = self._sock.send(self._unsent)
            self.bytes_sent += count
            self._unsent = self._unsent[count:]
        if self._accepted == self._limit:
            took = time.monotonic() - self._began
            if took < _SHORT:
                self._limit = min(2 * self._limit, MAX_RECORD)
            elif took > _LONG:  # only whole records count as progress, so a slow connection needs small ones
                self._limit = max(self._limit // 2, _FIRST_RECORD)
        return self._accepted

    def _next_record(self, buffers: list[Any]) -> memoryview:
        """Make a record of as much as fits. It is a copy: the caller's memory may change before it is sent."""
        size = self._limit if len(buffers[0]) >= _SEGMENT else _FIRST_RECORD
        parts: list[memoryview] = []
        length = 0
        for buffer in buffers:
            parts.append(memoryview(buffer).cast("B")[: size - length])
            length += len(parts[-1])
        self._accepted, self._began = length, time.monotonic()
        if not length:
            return memoryview(b"")
        if len(self._record) != RECORD_HEAD + length:  # reused while records of one size follow each other
            self._record = memoryview(bytearray(RECORD_HEAD + length))
        record, end = self._record, RECORD_HEAD
        for part in parts:
            begin, end = end, end + len(part)
            record[begin:end] = part
        record[:RECORD_HEAD] = self._sender.head(record[RECORD_HEAD:])
        return record
