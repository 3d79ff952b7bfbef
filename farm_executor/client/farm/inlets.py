"""The streams of a farm, and what their workers are told.

This module owns which streams are open, and that their workers hear how many items have been taken, and that no
more are wanted. It must not know how items are kept, nor how tasks are sent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from farm_executor.client.farm.call import Call
from farm_executor.client.farm.dispatch import Afterwards, Dispatch
from farm_executor.client.farm.inlet import Inlet
from farm_executor.client.farm.reactor import Reactor
from farm_executor.core.frames import Frame
from farm_executor.errors import RemoteProtocolError

__all__ = ["Inlets"]


class Outlet(Protocol):
    """The lane over which items come."""

    id: int

    def send_credit(self, seq: int, taken: int) -> bool:
        """Tell the worker how many frames of a task's items have been taken."""


class Inlets:
    """The inlets of one farm, as far as items have come.

    Args:
        dispatch: Has the lock under which is sent.
        reactor: Runs what consumers' threads must not do.
        follow_up: Does what remains after sending.

    Thread safety: none but that of the reactor's handlers.
    """

    def __init__(self, dispatch: Dispatch, reactor: Reactor, follow_up: Callable[[list[Afterwards]], None]) -> None:
        self._dispatch = dispatch
        self._reactor = reactor
        self._follow_up = follow_up
        self._open: dict[Call, Inlet] = {}

    def on_items(self, lane: Outlet, frame: Frame, call: Any) -> None:
        """Take items from a worker.

        Raises:
            RemoteProtocolError: They are of no stream, or not the next ones.
        """
        inlet: Inlet | None = None if call is None else call.inlet
        if inlet is None:
            raise RemoteProtocolError(f"items of task {frame.seq}, which is no stream")
        if call not in self._open:
            # The program may have acted upon the first item, so the task must not be begun again from here on.
            with self._dispatch.deciding:
                call.options = call.options._replace(max_attempts=1)
            self._open[call] = inlet
            call.future.add_done_callback(partial(self._end, call))
        inlet.put(frame, partial(self._post_credit, lane, frame.seq))
        if inlet.closed:  # perhaps before it was certain that the task runs
            self._stop(call)

    def lane_resumed(self, call: Any) -> None:
        """Repeat what the worker has been told of its stream, which may have been lost with the connection."""
        if call in self._open:
            self._open[call].tell()

    def end_full(self) -> None:
        """Close the streams of which nothing is taken, as the farm is being shut down: it would never end."""
        for call, inlet in list(self._open.items()):
            # One that is not full may yet end by itself, and is looked at again when more has come.
            if inlet.is_full and not inlet.closed:
                inlet.close(cut_short=True)
                self._stop(call)

    def _end(self, call: Call, _: object) -> None:
        # A callback of the future runs in the thread that settles it, which is a handler's.
        self._open.pop(call, None)

    def _post_credit(self, lane: Outlet, seq: int, taken: int) -> None:
        # Posted: the consumer may hold any lock, and only a handler may have the selector watch for room.
        self._reactor.post(partial(self._send_credit, lane, seq, taken))

    def _send_credit(self, lane: Outlet, seq: int, taken: int) -> None:
        with self._dispatch.deciding:
            after = self._dispatch.credit(lane.id, seq, taken)
        self._follow_up(after)

    def _stop(self, call: Call) -> None:
        self._follow_up(self._dispatch.stop(call))
