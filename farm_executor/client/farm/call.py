"""A call on its way: what the scheduler and the lanes carry, from `submit` until its future is settled.

This module owns what is held for a call, and that all of it is dropped at once. It must not know how a call is
sent, nor how its future is settled.

The user's future is another object, and refers to its call by one private attribute, so that a future which has
been settled holds nothing but its outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from farm_executor.client.farm.future import FarmFuture, Owner
from farm_executor.core.task import Task

if TYPE_CHECKING:
    from farm_executor.client.farm.functions import Function
    from farm_executor.client.farm.inlet import Inlet
    from farm_executor.core.frames import Payload
    from farm_executor.core.options import TaskOptions
    from farm_executor.data.failure import Origin

__all__ = ["BeforeSettling", "Call"]

BeforeSettling = Callable[[Any, "BaseException | None", "Origin"], "dict[str, int] | None"]
"""Called with the value, the error and their origin before a future is settled: the farm's code, never a user's.

It returns how many of the task's calls have ended in which way, while the others go on; None if all of them have
ended as the task has.
"""


class Call(Task):
    """A task of the scheduler's, with what is needed to send it and to settle its future.

    Attributes:
        future: The user's future; None once the call has been released.
        owner: The object that will settle the future.
        function: The function, as it was when it was submitted.
        arguments: The pickled arguments; None while they are plain.
        plain: Positional arguments that may be pickled later, see `payload`.
        before_settling: See `BeforeSettling`.
        inlet: Where the items go that it yields; None if it is no stream.
    """

    __slots__ = ("arguments", "function", "future", "owner", "plain")

    before_settling: BeforeSettling | None = None
    inlet: Inlet | None = None

    def __init__(
        self,
        id: int,
        owner: Owner,
        function: Function,
        arguments: Payload | None,
        plain: tuple[Any, ...] | None,
        options: TaskOptions,
        seat: Hashable = None,
    ) -> None:
        # The arguments are one of two: pickled by now, or so plain that this can wait. Never both, as that would
        # double what a queued task holds.
        super().__init__(id, options, seat)
        self.owner = owner
        self.function: Function | None = function
        self.arguments = arguments
        self.plain = plain
        future: FarmFuture = FarmFuture()
        future._call = self
        self.future: FarmFuture | None = future

    @property
    def name(self) -> str:
        """The function's name, for people; empty once the call has been released."""
        function = self.function
        if function is None:
            return ""
        # All streams call one function of ours, which has that of the program among its pickled arguments.
        return function.name if self.inlet is None else self.inlet.name

    def release(self) -> FarmFuture:
        """Return the future, and drop everything that is held for the call. Must be called once at most."""
        future, self.future = self.future, None
        assert future is not None
        self.function = self.arguments = self.plain = None
        if self.before_settling is not None:  # no dict is made to say that there is none
            self.before_settling = None
        # Future and call refer to each other. Cut here, both are freed by counting references; left to the garbage
        # collector, a flood of small tasks would stay in memory until its next full run.
        future._call = None
        return future
