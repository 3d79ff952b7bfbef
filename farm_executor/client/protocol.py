"""The farm as the front sees it: all that executors, views, `map` and lfarm use of the engine.

This module owns that interface, nothing else. `client.farm.engine.Engine` implements it, and mypy checks that where
`backing` makes one; tests of the front use a fake. It must not know how any of it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from farm_executor.client.farm.broadcasts import Broadcast
    from farm_executor.client.farm.call import BeforeSettling
    from farm_executor.client.farm.functions import Function
    from farm_executor.client.farm.future import FarmFuture
    from farm_executor.client.farm.inlet import Inlet
    from farm_executor.client.farm.observer import Observer, View
    from farm_executor.client.farm.shared import Pickling, Shared
    from farm_executor.client.farm.statistics import FarmStatistics
    from farm_executor.core.options import TaskOptions
    from farm_executor.wire.address import Address

__all__ = ["Farm", "FarmServers", "FarmSharing", "FarmSight"]

T = TypeVar("T")


# The methods are those of the engine that are called from outside, and no more: nothing here has a second
# implementation outside the tests, and none is planned. Tasks are not handed to the schedulers of others, which
# could not keep the promises of attempts, kills and broadcasts. Others may grant machines: that is `launching`'s.


class FarmServers(Protocol):
    """The servers of a farm. All methods may be called from any thread."""

    def add(self, address: Address, locate: Callable[[bool], Address]) -> object:
        """Dial one more server, for all its slots; ``locate`` starts it if it has to be started."""

    def remove(self, address: Address, *, drain: bool) -> Future[None] | None:
        """Let go of a server; return a future that is set when it is gone, None if there is no such server."""

    def await_answers(self, timeout: float | None) -> list[str]:
        """Wait until every server has answered, at most that many seconds; describe those that have not.

        Raises:
            Exception: The error that broke the farm meanwhile.
        """

    def in_reach(self) -> bool:
        """Return whether any server is connected, or has yet to fail for the first time."""

    def describe(self) -> str:
        """Return a text for people that names each server and the result of dialling it."""


class FarmSight(Protocol):
    """What a farm tells of itself. All methods may be called from any thread."""

    def observe(self, observer: Observer | None) -> None:
        """Tell somebody of results from now on; None for nobody."""

    def view(self) -> View:
        """Return what can be seen of the farm."""


class FarmSharing(Protocol):
    """The shared objects of a farm. All methods may be called from any thread."""

    def share(self, value: T, *, frozen: bool) -> Shared[T]:
        """Take a copy of an object as it is now, and begin to send it to the servers.

        Raises:
            RuntimeError: The farm has been shut down.
            Exception: It cannot be pickled.
        """

    def pickling(self) -> Pickling:
        """Return the context in which handles may be pickled, for a call that is submitted later."""


class Farm(Protocol):
    """The client's half of one farm; see `client.farm.engine.Engine` for what each method promises.

    Thread safety: all methods may be called from any thread.
    """

    # Properties, so that an attribute of a narrower type will do, too.

    @property
    def servers(self) -> FarmServers:
        """The servers."""

    @property
    def counts_tasks(self) -> bool:
        """Whether workers are replaced after a fixed number of tasks."""

    @property
    def broken(self) -> bool:
        """Whether the farm has failed as a whole."""

    @property
    def workers(self) -> int:
        """The number of workers that the servers seen so far give this farm."""

    @property
    def sharing(self) -> FarmSharing:
        """The objects that are shared with the servers."""

    @property
    def sight(self) -> FarmSight:
        """What it tells of itself."""

    # -- its life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to dial."""

    def shutdown(self, *, cancel_futures: bool = False) -> None:
        """Accept no more tasks, and end once those accepted have settled. Does not wait."""

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end after `shutdown`; return whether it has come."""

    def abort(self, reason: str) -> None:
        """Settle all unsettled futures with `BrokenFarmError`, and end the workers at once. Does not wait."""

    def abandon(self) -> None:
        """In a forked child: let go of what belongs to the parent."""

    def statistics(self) -> FarmStatistics:
        """Take a snapshot of the farm's figures."""

    # -- calls ---------------------------------------------------------------------------------------------

    def prepare(self, fn: Callable[..., Any]) -> Function:
        """Pickle a function in its current state, for many calls."""

    def laden(self, options: TaskOptions) -> TaskOptions:
        """Return the options for calls that carry what a call would that is submitted now, whenever they are."""

    def submit(
        self,
        fn: Callable[..., Any] | Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        *,
        goes_on: bool = False,
        calls: int = 1,
        before_settling: BeforeSettling | None = None,
        inlet: Inlet | None = None,
    ) -> FarmFuture:
        """Send a call, or queue it."""

    def check_may_wait(self) -> None:
        """Raise if the caller must not block until all servers or workers have answered."""

    def broadcast(
        self, fn: Callable[..., Any] | Function, args: tuple[Any, ...], options: TaskOptions, *, persistent: bool
    ) -> Broadcast:
        """Send a call to every worker of every server."""

    def forget(self, broadcast: Broadcast) -> None:
        """Stop making this call on workers that come later."""

    def kill(self, category: Hashable, *, dry_run: bool = False) -> int:
        """Kill the running tasks of a category and return how many there were."""

    def kill_one(self, future: Future[Any]) -> bool:
        """End one call: cancel it if it waits, or kill it; False if it has ended, or is not this farm's."""

    def cancel_all(self) -> None:
        """Cancel every task that has not begun, and kill the running ones."""

    # -- waiting -------------------------------------------------------------------------------------------

    def may_wait(self) -> bool:
        """Return whether this thread may wait for the farm."""

    def lead_until(self, done: Callable[[], bool]) -> None:
        """Do the farm's own work in this thread, if it may, until ``done()``. May return early."""

    def nudge(self) -> None:
        """Make the leading thread check once more whether it still needs to lead."""
