"""What travels after the proofs, where it is not encrypted: records that only a holder of the key can have made.

This module owns the layout of a record, its limit, and what its seal covers. It must not know sockets, nor what is
in a record: frames, cut anywhere.

A record is, little endian::

    offset  size    field
    0       4       length of the data in bytes, 1 to 1 MiB (``MAX_RECORD``)
    4       16      seal
    20      length  data

The seal is the first half of an HMAC-SHA256 over the record's number in its direction (u64, from 0), its length
(u32) and its data. Each direction has a key of its own, made of the connection's secret (`core.handshake`), which
holds both nonces. So a record changed, left out, repeated, moved, turned round, or taken from another connection
does not fit; what does not fit is never passed on.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from farm_executor.core.frames import Buffer
from farm_executor.errors import RemoteProtocolError

__all__ = ["CLIENT", "MAX_RECORD", "RECORD_HEAD", "SERVER", "Seal", "record_length"]

CLIENT, SERVER = b"farm from client", b"farm from server"
MAX_RECORD = 1024 * 1024  # bytes of data: enough that what a record costs by itself is nothing beside its seal
_SEAL_SIZE = 16
_LENGTH = struct.Struct("<I")
_COVERED = struct.Struct("<QI")
_BLOCK = 64  # SHA-256's
RECORD_HEAD = _LENGTH.size + _SEAL_SIZE


class Seal:
    """Makes and checks the seals of one direction, in order.

    The HMAC is done by hand from two prepared states: `hmac` takes more than twice as long for a short record.

    Args:
        secret: The connection's, which both ends have.
        sender: `CLIENT` or `SERVER`.
        number: The next record's.

    Attributes:
        number: The same.
    """

    __slots__ = ("_inner", "_outer", "number")

    def __init__(self, secret: bytes, sender: bytes, number: int = 0) -> None:
        key = hmac.new(secret, sender, hashlib.sha256).digest().ljust(_BLOCK, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in key))
        self.number = number

    def __repr__(self) -> str:
        """Tell nothing of the key."""
        return f"<Seal number={self.number}>"

    def head(self, data: Buffer) -> bytes:
        """What comes before the next record's data, which is bytes."""
        return _LENGTH.pack(len(data)) + self._tag(data)

    def check(self, head: Buffer, data: Buffer) -> bool:
        """Whether this is the next record; if not, the connection must end."""
        return hmac.compare_digest(bytes(head)[_LENGTH.size :], self._tag(data))

    def begin(self, length: int) -> hashlib._Hash:
        """A hash to be fed the next record's data as they come, for `fits`."""
        inner = self._inner.copy()
        inner.update(_COVERED.pack(self.number, length))
        return inner

    def fits(self, head: bytes, inner: hashlib._Hash) -> bool:
        """As `check`, when all data have gone into the hash."""
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
    """How many bytes of data the record holds whose head begins there.

    Raises:
        RemoteProtocolError: More than one may hold, or none.
    """
    length: int = _LENGTH.unpack_from(buffer, offset)[0]
    if not 0 < length <= MAX_RECORD:
        raise RemoteProtocolError(f"a record of {length} bytes; the limit is {MAX_RECORD}")
    return length
