"""Memory that two ends of a connection write and read at once: made, passed on over a unix socket, checked, mapped.

It must not know what the memory holds. There is none but on Linux: elsewhere `AVAILABLE` is false, and `create`
raises an `OSError`. What is written once, and then only read, is `memory_objects`'.

Such memory has no name, so nothing stays behind once the last process has closed and unmapped it, however the
processes end. A peer could truncate it while it is mapped here, and the next access would kill this process; or it
could promise more than the system has. So its size is sealed and its pages are taken before anybody uses it, and
what comes from a peer is checked before it is mapped.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import TYPE_CHECKING

from farm_executor.errors import RemoteProtocolError
from farm_executor.wire.sockets import Socket

if TYPE_CHECKING:
    import mmap

__all__ = ["AVAILABLE", "check", "create", "fix_size", "map_shared", "receive", "send"]

AVAILABLE = sys.platform == "linux" and hasattr(os, "memfd_create")
_NOEXEC_SEAL = 8  # MFD_NOEXEC_SEAL, in Linux 6.3 and later; where vm.memfd_noexec is 2, it must be there
_WORD = 64  # bytes that come with a descriptor, at most

# Python's names for these are missing where the C library that it was built with does not have them.
_ADD_SEALS, _GET_SEALS = 1033, 1034
_FIXED = 1 | 2 | 4  # F_SEAL_SEAL, F_SEAL_SHRINK and F_SEAL_GROW
_FROZEN = _FIXED | 8  # F_SEAL_WRITE


def create(name: str, size: int, *, reserve: bool = True) -> int:
    """Return a descriptor of memory of that many bytes.

    Args:
        name: Shown in ``/proc``, and good for nothing else.
        size: In bytes, at least 1.
        reserve: Whether the system sets all of them aside, as it must where they are not filled by writing to the
            descriptor.

    Raises:
        OSError: There is no memory, no descriptor left, or no memfd on this system.
    """
    if sys.platform != "linux" or not AVAILABLE:
        raise OSError(errno.ENOSYS, "this system has no memfd")
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        descriptor = os.memfd_create(name, flags | _NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # an older system does not know the flag
            raise
        descriptor = os.memfd_create(name, flags)
    try:
        os.ftruncate(descriptor, size)
        if reserve:  # a page that is not there when it is first written to through a mapping means SIGBUS
            os.posix_fallocate(descriptor, 0, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def fix_size(descriptor: int, *, frozen: bool = False) -> None:
    """Seal the memory's size for good; the contents may still change, unless they are ``frozen``, too.

    Raises:
        OSError: It is no memfd, or sealed against seals; or it is to be frozen, and mapped for writing.
    """
    import fcntl  # missing on Windows

    fcntl.fcntl(descriptor, _ADD_SEALS, _FROZEN if frozen else _FIXED)


def check(descriptor: int, size: int, *, frozen: bool = False) -> None:
    """Make sure that a descriptor from a peer is memory of that size, which nobody can change any more.

    Args:
        descriptor: What has been received.
        size: How many bytes the peer has announced.
        frozen: Whether nobody may be able to change the contents, either.

    Raises:
        RemoteProtocolError: It is not.
    """
    import fcntl  # missing on Windows

    wanted = _FROZEN if frozen else _FIXED
    try:
        seals = fcntl.fcntl(descriptor, _GET_SEALS)
    except OSError as error:
        raise RemoteProtocolError(f"a descriptor that is no memfd: {error}") from None
    if seals & wanted != wanted:
        raise RemoteProtocolError(f"shared memory with seals {seals}, not {wanted}")
    # After the seals: before, it could still change.
    found = os.fstat(descriptor).st_size
    if found != size:
        raise RemoteProtocolError(f"shared memory of {found} bytes, not {size}")


def map_shared(descriptor: int, size: int) -> mmap.mmap:
    """Map the memory so that what is written here is seen wherever it is mapped.

    Raises:
        OSError: It cannot be mapped, as where a limit forbids it.
    """
    import mmap  # late: most programs never need it

    return mmap.mmap(descriptor, size)


def send(sock: Socket, word: bytes, descriptor: int) -> None:
    """Send a descriptor over a unix socket, with 1 to 64 bytes about it; ours stays open.

    Raises:
        OSError: The other end is gone or does not read, or this is no unix socket.
    """
    socket.send_fds(sock, [word], [descriptor])


def receive(sock: Socket) -> tuple[bytes, int | None]:
    """Return what has been sent with `send`: the bytes, none at the end of the connection, and the descriptor.

    The descriptor is None if none has come: the peer sent none, somebody in between has dropped it, as ssh does, or
    this process has no room for another.

    Raises:
        OSError: The connection is lost, or nothing has come although the socket does not block.
    """
    word, descriptors, _, _ = socket.recv_fds(sock, _WORD, 1)
    if not descriptors:
        return word, None
    os.set_inheritable(descriptors[0], False)
    return word, descriptors[0]
