"""Memory that processes share by its descriptor.

This module owns how such memory is made, sealed, checked and mapped on each system; it is the only one that knows.
It must not know what is in it, nor how a descriptor gets from one process to another.

On Linux it is a memfd: it has no name, so that nothing of it stays once the last process is gone, however it ended.
*Sealed*, nobody can change or truncate it any more: who maps it need not trust who made it. Elsewhere it is a
temporary file without a name, which the system may write to its disk, and which cannot be sealed.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
import tempfile

from farm_executor.core.frames import Buffer

__all__ = ["MemoryObject"]

_NOEXEC_SEAL = 8  # MFD_NOEXEC_SEAL, of Linux 6.3 and later: an administrator may have made it mandatory
_HAS_MEMFD = hasattr(os, "memfd_create")


class MemoryObject:
    """A piece of shared memory of a fixed size, by one of its descriptors. Closed when it is collected.

    Args:
        descriptor: The descriptor, which belongs to this object from now on.
        size: The number of bytes.

    Attributes:
        size: The number of bytes, at least 1.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self.size = size

    def __repr__(self) -> str:
        return f"<MemoryObject fd {self._descriptor}: {self.size} bytes>"

    @classmethod
    def create(cls, name: str, size: int) -> MemoryObject:
        """Return new memory of that size, which has zeros; the system provides the pages as they are filled.

        Args:
            name: For those who look at the process's descriptors.
            size: The number of bytes.

        Raises:
            OSError: The system has no descriptor, or no room for it.
        """
        made = cls(_memfd(name) if _HAS_MEMFD else _unnamed_file(), size)
        os.ftruncate(made._descriptor, size)
        return made

    @classmethod
    def received(cls, descriptor: int, *, sealed: bool = True) -> MemoryObject:
        """Return the memory behind a descriptor that another process has sent, and which is owned from now on.

        Args:
            descriptor: The descriptor.
            sealed: Whether it must be sealed against all changes, where the system has seals.

        Raises:
            ValueError: It is something else, or not sealed.
        """
        made = cls(descriptor, os.fstat(descriptor).st_size)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not made.size:
            raise ValueError(f"descriptor {descriptor} is not of shared memory")
        if sealed and _HAS_MEMFD and made._seals() & _all_seals() != _all_seals():
            raise ValueError(f"descriptor {descriptor} is of memory that can still be changed")
        return made

    def fileno(self) -> int:
        """Return the descriptor; -1 once it is closed."""
        return self._descriptor

    def write(self, begin: int, data: Buffer) -> None:
        """Write bytes at an offset.

        Raises:
            OSError: There is no memory for them, or the object is sealed.
        """
        with memoryview(data).cast("B") as rest:
            done = 0
            while done < len(rest):
                done += _write_at(self._descriptor, rest[done:], begin + done)

    def seal(self) -> None:
        """Let nobody change the memory from now on, where the system can see to it. No shared map may be left."""
        if _HAS_MEMFD:
            import fcntl

            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _all_seals())

    def view(self, *, private: bool) -> memoryview:
        """Map the memory; the mapping lasts as long as the view, or a part of it, does.

        Args:
            private: Whether the view can be written to, which nobody else sees: the system copies a page when it
                is first written to. Otherwise it is read-only.

        Raises:
            OSError: The process may not map as much more.
        """
        access = mmap.ACCESS_COPY if private else mmap.ACCESS_READ
        return memoryview(mmap.mmap(self._descriptor, self.size, access=access))

    def close(self) -> None:
        """Let go of the descriptor; views stay valid."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()

    def _seals(self) -> int:
        import fcntl

        try:
            return fcntl.fcntl(self._descriptor, fcntl.F_GET_SEALS)
        except OSError:  # a file of another kind
            return 0


def _all_seals() -> int:
    import fcntl

    return fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def _memfd(name: str) -> int:
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, flags)  # an older kernel, which does not know that flag


def _unnamed_file() -> int:
    # Where a file that is open can be unlinked, it has no name by now; Windows removes it with its last descriptor.
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write_at(descriptor: int, data: memoryview, offset: int) -> int:
    if sys.platform == "win32":
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)
    return os.pwrite(descriptor, data, offset)
