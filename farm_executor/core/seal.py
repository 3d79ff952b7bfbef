"""Sealed records: what follows the proofs where it is not encrypted, so that only a holder of the key can make it.

This module owns the layout of a record, its limit, and what its seal covers. It must not know sockets, nor what is
in a record: frames, cut anywhere.

A record is, little endian::

    offset  size    field
    0       4       length of the data in bytes, 1 to 1 MiB (``MAX_RECORD``)
    4       16      seal
    20      length  data

The seal is the first half of an HMAC-SHA256 over the record's number in its direction (u64, from 0), its length
(u32) and its data. Each direction has a key of its own, derived from the connection's secret (`core.handshake`),
which depends on both nonces. So the seal does not match if a record was changed, left out, repeated, reordered,
sent back, or taken from another connection; such a record is never passed on.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from farm_executor.core.frames import Buffer
from farm_executor.errors import RemoteProtocolError

__all__ = ["CLIENT", "MAX_RECORD", "RECORD_HEAD", "SERVER", "Seal", "record_length"]

CLIENT, SERVER = b"farm from client", b"farm from server"
MAX_RECORD = 1024 * 1024  # bytes of data: beyond this, the fixed cost of a record is nothing beside the hashing
_SEAL_SIZE = 16
_LENGTH = struct.Struct("<I")
_COVERED = struct.Struct("<QI")
_BLOCK = 64  # bytes in a block of SHA-256
RECORD_HEAD = _LENGTH.size + _SEAL_SIZE


class Seal:
    """The seals of one direction of a connection, made or checked in order.

    The HMAC is computed by hand from two prepared states: `hmac` takes more than twice as long for a short record.

    Args:
        secret: The connection's secret, which both ends have.
        sender: The end that sends in this direction: `CLIENT` or `SERVER`.
        number: The number of the next record.

    Attributes:
        number: The number of the next record.
    """

    __slots__ = ("_inner", "_outer", "number")

    def __init__(self, secret: bytes, sender: bytes, number: int = 0) -> None:
        # A key for each direction, so that nobody can send an end its own records back.
        key = hmac.new(secret, sender, hashlib.sha256).digest().ljust(_BLOCK, b"\0")
        # The inner and outer pads of RFC 2104.
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in key))
        self.number = number

    def __repr__(self) -> str:
        """Return a text that reveals nothing about the key."""
        return f"<Seal number={self.number}>"

    def head(self, data: Buffer) -> bytes:
        """Return the length and seal that go before the next record's data; ``len(data)`` must count bytes."""
        return _LENGTH.pack(len(data)) + self._tag(data)

    def check(self, head: Buffer, data: Buffer) -> bool:
        """Return whether this is the next record; if not, the connection must end."""
        # In constant time, so that nobody can find a seal byte by byte.
        return hmac.compare_digest(bytes(head)[_LENGTH.size :], self._tag(data))

    def begin(self, length: int) -> hashlib._Hash:
        """Return a hash to update with the next record's data as they arrive, and then to give to `fits`."""
        inner = self._inner.copy()
        inner.update(_COVERED.pack(self.number, length))
        return inner

    def fits(self, head: bytes, inner: hashlib._Hash) -> bool:
        """Return the same as `check`, once the hash has been updated with all the data."""
        return hmac.compare_digest(head[_LENGTH.size :], self._end(inner))

    def _tag(self, data: Buffer) -> bytes:
        inner = self._inner.copy()
        inner.update(_COVERED.pack(self.number, len(data)))
        inner.update(data)
        return self._end(inner)

    def _end(self, inner: hashlib._Hash) -> bytes:
        outer = self._outer.copy()
        outer.update(inner.digest())
        self.number += 1
        return outer.digest()[:_SEAL_SIZE]


def record_length(buffer: Buffer, offset: int = 0) -> int:
    """Return how many bytes of data the record holds whose head begins at ``offset``.

    Raises:
        RemoteProtocolError: There are none, or more than `MAX_RECORD`.
    """
    length: int = _LENGTH.unpack_from(buffer, offset)[0]
    if not 0 < length <= MAX_RECORD:
        raise RemoteProtocolError(f"a record of {length} bytes; the limit is {MAX_RECORD}")
    return length
