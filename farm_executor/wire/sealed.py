"""Seals over a socket that somebody else has connected: what comes is what the other end has sent, or nothing.

It must not open connections, nor know what is said over them; what a seal is, is `core.seal`'s.

A small record is received as a whole into a buffer of this module's, checked there, and copied while it is still
in the processor's cache. A large one of a segment is received into the segment's own memory, and hashed piece by
piece as it comes; nobody is told that there is anything before its seal has been checked. So no byte that is not
known to be the other end's ever reaches anybody.
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

_FIRST_READ, _LARGEST_READ = 4096, RECORD_HEAD + MAX_RECORD  # bytes of buffer, twice as many when it is full
_SMALL = 16 * 1024  # bytes that are copied rather than given a call of their own
_HAS_RECVMSG = hasattr(socket, "recvmsg_into")  # not on Windows
_FIRST_RECORD = 64 * 1024  # bytes: a record's limit where it is not known how fast the connection is
_SEGMENT = 256 * 1024  # bytes from which on a buffer has records of its own, which may be larger
_SHORT, _LONG = 0.02, 0.2  # seconds to send a record in, for the next one to be twice, or half, as large


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
        # The memory that the record on its way goes into, see `fill`, and what is known of its seal.
        self._filling, self._filled = self._buffer[:0], 0
        self._head, self._hash = b"", self._receiver.begin(0)
        self._broken = ""  # why nothing more can be received
        # What the socket has not taken yet, and where large records are made.
        self._unsent = self._record = memoryview(b"")
        self._accepted = 0  # how many bytes of the caller's are in it
        self._limit, self._began = _FIRST_RECORD, 0.0  # a large one's size; when it was made

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

    def fill(self, memory: memoryview) -> int:
        """See `LayeredSocket.fill`: a large record that has room there is received there, not copied."""
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
            came = self._receive_data(sockets.MSG_DONTWAIT)  # what has come while the last piece was hashed
        return 0

    def _receive_data(self, flags: int) -> int:
        rest = self._filling[self._filled :]
        if _HAS_RECVMSG:  # the next record's head comes along, so that it need not be looked for
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
        """Read no further than the next record's head: where its data belong is known only then."""
        self._make_room()
        count = self._sock.recv_into(self._buffer[self._end : RECORD_HEAD])
        if not count:
            return 0
        self._end += count
        raise BlockingIOError("less than a record has come")

    def _begin_filling(self, memory: memoryview) -> bool:
        """Have the rest of the next record received there, if that is worth the while and it has room."""
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
        if not self._unsent and type(data) is bytes and 0 < len(data) <= _SMALL:  # the most frequent case by far
            self._accepted = len(data)
            self._unsent = memoryview(self._sender.head(data) + data)
            if self._record:  # up to a megabyte, which a farm of thousands of lanes must not keep for each
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
            elif took > _LONG:  # only whole ones count as received, so that a slow connection must have small ones
                self._limit = max(self._limit // 2, _FIRST_RECORD)
        return self._accepted

    def _next_record(self, buffers: list[Any]) -> memoryview:
        """As much as fits: a copy, for memory of the caller's may change while it is on its way."""
        size = self._limit if len(buffers[0]) >= _SEGMENT else _FIRST_RECORD
        parts: list[memoryview] = []
        length = 0
        for buffer in buffers:
            parts.append(memoryview(buffer).cast("B")[: size - length])
            length += len(parts[-1])
        self._accepted, self._began = length, time.monotonic()
        if not length:
            return memoryview(b"")
        if len(self._record) != RECORD_HEAD + length:  # it is kept while one record follows another of its size
            self._record = memoryview(bytearray(RECORD_HEAD + length))
        record, end = self._record, RECORD_HEAD
        for part in parts:
            begin, end = end, end + len(part)
            record[begin:end] = part
        record[:RECORD_HEAD] = self._sender.head(record[RECORD_HEAD:])
        return record
