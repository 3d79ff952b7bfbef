"""One end of a lane's ring: the memory, the bell, and the copying in and out.

This module owns the mapping and what goes over the *bell*, a unix socket of the ring's own whose bytes are credits.
It must not decide which span is whose, which `core.ring` does, nor when a lane gets a ring.

Credits do not travel on the lane: there they would wait for a gap between frames, and for the lock under which the
worker may be waiting for them.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
from collections.abc import Callable

from farm_executor.core.ring import MOST_CHUNKS, USUAL, Incoming, Outgoing, Shape, shape_of
from farm_executor.errors import RemoteProtocolError
from farm_executor.wire import memfd
from farm_executor.wire.sockets import Socket, hang_up

__all__ = ["Ring", "accept", "offer"]

_CREDIT = b"+"
# The lane's end without reading from it, as that is another thread's; of no use where the system lacks the first.
_GONE = getattr(select, "POLLRDHUP", 0) | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0)


class Ring:
    """One end of a lane's ring; see the module.

    Args:
        memory: What both ends have mapped; this object takes ownership of it, as of the bell.
        bell: A connected unix socket.
        shape: The ring's shape.
        at_client: Whether this is the client's end.

    Thread safety: one thread takes; one thread at a time puts, and it need not be the same one.
    """

    def __init__(self, memory: mmap.mmap, bell: Socket, shape: Shape, *, at_client: bool) -> None:
        bell.setblocking(False)
        self.bell = bell
        self._memory = memory
        self._view = memoryview(memory)
        self._incoming = Incoming(shape, of_client=not at_client)
        self._outgoing = Outgoing(shape, of_client=at_client)

    def pieces(self, size: int) -> int:
        """See `reader.RingEnd`."""
        return self._incoming.pieces(size)

    def take(self, target: memoryview) -> int:
        """See `reader.RingEnd`."""
        span = self._incoming.empty(len(target))
        size: int = span.stop - span.start
        target[:size] = self._view[span]
        # There is room for every credit, as only so many chunks are out. If the other end is gone, or has had none
        # of them read, the lane will tell.
        credits = self._incoming.emptied(len(target) - size)
        if credits:
            with contextlib.suppress(OSError):
                self.bell.send(_CREDIT * credits)
        return size

    def put(self, source: memoryview, lane: int | None = None) -> int:
        """Copy the beginning of what is to be sent into the ring; return how much.

        Args:
            source: What is to be sent.
            lane: The lane's descriptor, to wait until a chunk is free or the lane ends; None not to wait. A process
                that a task has forked may keep the other end of the bell open, so the bell alone may never end.

        Raises:
            BlockingIOError: No chunk is free: the bell can be read once one is.
            OSError: The other end is gone, or does not keep to the rules.
        """
        while not self._outgoing.free:
            try:
                self._collect()
            except BlockingIOError:
                if lane is None:
                    raise
                self._wait(lane)
        span = self._outgoing.fill(len(source))
        size: int = span.stop - span.start
        try:
            self._view[span] = source[:size]
        except ValueError:  # released: another thread has closed it, as it closes a lane's socket under its sender
            raise ConnectionAbortedError("the ring has been closed") from None
        return size

    def joins(self, done: int, left: int) -> bool:
        """See `core.ring.Outgoing`."""
        return self._outgoing.joins(done, left)

    def _wait(self, lane: int) -> None:
        poll = select.poll()
        poll.register(self.bell, select.POLLIN)
        poll.register(lane, _GONE)
        if lane in [descriptor for descriptor, _ in poll.poll()]:
            raise ConnectionResetError("the lane has ended")

    def _collect(self) -> None:
        credits = self.bell.recv(MOST_CHUNKS + 1)
        if not credits:
            raise ConnectionResetError("the ring's other end is gone")
        try:
            self._outgoing.credit(len(credits))
        except RemoteProtocolError as error:
            raise ConnectionResetError(str(error)) from None

    def hang_up(self) -> None:
        """Wake whoever waits for the bell, at both ends; it stays open."""
        hang_up(self.bell)

    def close(self) -> None:
        """Unmap the memory and close the bell; this tells nobody if another process has the bell open, too."""
        self.bell.close()
        with contextlib.suppress(BufferError):  # another thread copies right now: the last reference unmaps it
            self._view.release()
            self._memory.close()


def offer(bell: Socket, expect: Callable[[Ring], Ring | None]) -> None:
    """Make a ring for a lane, as the worker, and offer it to the client; if that cannot be, close the bell.

    Args:
        bell: The connection that the client has dialled for it.
        expect: Takes the ring over, and returns one that is not needed any more. The lane receives through the ring
            from now on, and may send through it once the client has said that it has it.
    """
    try:
        ring = _made(bell)
    except OSError:  # the client sees the bell's end, and goes on with the socket
        bell.close()
        return
    # The client's frames are read by this same thread, so none comes in between. If the client has dialled again
    # instead of taking an earlier ring, that one makes room.
    spare = expect(ring)
    if spare is not None:
        spare.close()


def _made(bell: Socket) -> Ring:
    size = USUAL.size
    descriptor = memfd.create("farm-ring", size)
    try:
        memfd.fix_size(descriptor)
        ring = Ring(memfd.map_shared(descriptor, size), bell, USUAL, at_client=False)
        try:
            memfd.send(bell, USUAL.encode(), descriptor)
        except BaseException:
            ring.close()
            raise
    finally:
        os.close(descriptor)
    return ring


def accept(bell: Socket) -> Ring:
    """Take the ring that the worker offers, as the client, once something has come over the bell.

    Raises:
        OSError: There is none, or it cannot be mapped.
        RemoteProtocolError: What has come is not a ring, or is beyond the limits.
    """
    word, descriptor = memfd.receive(bell)
    if descriptor is None:
        raise OSError("the worker has none" if not word else "its descriptor has been dropped on the way")
    try:
        shape = shape_of(word)
        memfd.check(descriptor, shape.size)
        return Ring(memfd.map_shared(descriptor, shape.size), bell, shape, at_client=True)
    finally:
        os.close(descriptor)
