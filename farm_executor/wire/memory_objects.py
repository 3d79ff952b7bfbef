"""Memory that processes share by its descriptor.

This module owns what stands in for a memfd (`memfd`) where the system has none, and that both are used alike. It
must not know what is in the memory, nor how a descriptor gets from one process to another.

*Sealed*, nobody can change or truncate it any more: who maps it need not trust who made it. Where there is no memfd
it is a temporary file without a name, which the system may write to its disk, and which cannot be sealed.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING

from farm_executor.core.frames import Buffer
from farm_executor.errors import RemoteProtocolError
from farm_executor.wire import memfd

if TYPE_CHECKING:
    import mmap

__all__ = ["MemoryObject"]


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
        if memfd.AVAILABLE:
            # Nothing is set aside: whoever fills it writes to it, and is told where there is no memory left.
            return cls(memfd.create(name, size, reserve=False), size)
        made = cls(_unnamed_file(), size)
        os.ftruncate(made.fileno(), size)
        return made

    @classmethod
    def received(cls, descriptor: int) -> MemoryObject:
        """Return the memory behind a descriptor that another process has sent, and which is owned from now on.

        Raises:
            RemoteProtocolError: It is something else, or not sealed where the system has seals.
        """
        found = os.fstat(descriptor)
        made = cls(descriptor, found.st_size)
        if not stat.S_ISREG(found.st_mode) or not made.size:
            raise RemoteProtocolError("a descriptor that is not of shared memory")
        if memfd.AVAILABLE:
            memfd.check(descriptor, made.size, frozen=True)
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
        if memfd.AVAILABLE:
            memfd.fix_size(self._descriptor, frozen=True)

    def view(self, *, private: bool) -> memoryview:
        """Map the memory; the mapping lasts as long as the view, or a part of it, does.

        Args:
            private: Whether the view can be written to, which nobody else sees: the system copies a page when it
                is first written to. Otherwise it is read-only.

        Raises:
            OSError: The process may not map as much more, or the object is closed.
        """
        import mmap  # late: a program that shares nothing never needs it

        if self._descriptor < 0:  # which the system would take for a wish for other memory, full of zeros
            raise OSError(errno.EBADF, "the memory object is closed")
        if sys.platform == "win32":
            access = mmap.ACCESS_COPY if private else mmap.ACCESS_READ
            return memoryview(mmap.mmap(self._descriptor, self.size, access=access))
        if private:
            return memoryview(_mapped(self._descriptor, self.size, mmap.PROT_READ | mmap.PROT_WRITE))
        # Not MAP_SHARED, as ACCESS_READ has it: before Linux 6.7 that is refused for what is sealed against writes,
        # even to those who only read. Pages that nobody writes to are shared either way.
        return memoryview(_mapped(self._descriptor, self.size, mmap.PROT_READ))

    def close(self) -> None:
        """Let go of the descriptor; views stay valid."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def _mapped(descriptor: int, size: int, access: int) -> mmap.mmap:
    import mmap

    if sys.version_info >= (3, 13):  # else each mapping keeps a descriptor of its own
        return mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, access, trackfd=False)
    return mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, access)


def _unnamed_file() -> int:
    import tempfile  # late: it imports much, and few systems come here

    # Where a file that is open can be unlinked, it has no name by now; Windows removes it with its last descriptor.
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write_at(descriptor: int, data: memoryview, offset: int) -> int:
    if sys.platform == "win32":
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)
    return os.pwrite(descriptor, data, offset)
