"""joblib's backend on a farm: what joblib asks of a backend, said to an executor.

This module owns how batches of joblib's become tasks and their outcomes joblib's again. It must not know how arrays
travel (`arrays`), nor what happens in a worker (`inside`).
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

from joblib import cpu_count
from joblib.parallel import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend

from farm_executor.client.front import Front, backing_of, options_of
from farm_executor.core.options import TaskOptions
from farm_executor.errors import SharedMemoryError
from farm_executor.integrations.arrays import Arrays
from farm_executor.integrations.inside import MissingBufferError, bound_threads, run
from farm_executor.integrations.reused import executor_for, released
from farm_executor.wire.address import AddressLike

__all__ = ["FarmBackend"]

ANSWER_SECONDS = 10.0  # that servers have to answer in, until those that have are enough
JOBLIBS_OWN = {"max_nbytes", "temp_folder", "mmap_mode", "prefer", "require", "verbose", "context"}
_numbers = itertools.count()
_bounds: weakref.WeakKeyDictionary[Any, tuple[Any, ...]] = weakref.WeakKeyDictionary()  # of farms; see `_bound`
_awaited: weakref.WeakSet[Any] = weakref.WeakSet()  # the farms whose servers have had their time to answer


class FarmBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """The backend "farm".

    ``joblib.parallel_config("farm", ...)`` makes one, and takes these arguments.

    Args:
        addresses: The farm's servers, as for `FarmExecutor`. None: workers on this machine.
        executor: An executor of yours, or a view of it, in place of addresses and settings. It is not shut down.
        inner_max_num_threads: How many threads numeric libraries may use in each worker. None: the server's CPUs
            divided by its workers, unless the server's environment says otherwise.
        nesting_level: joblib's own.
        settings: Everything else that `FarmExecutor` takes, such as ``initializer``, ``key_file`` or
            ``max_memory_per_worker``.

    Raises:
        TypeError: Both an executor and addresses or settings are given, or the executor is not a farm's.
        Exception: `FarmExecutor` refuses the settings.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    default_n_jobs = -1
    # A batch costs a farm less than it costs loky, so that shorter ones pay, and long ones spread worse.
    MIN_IDEAL_BATCH_DURATION = 0.02
    MAX_IDEAL_BATCH_DURATION = 0.2

    def __init__(
        self,
        addresses: AddressLike | Iterable[AddressLike] | None = None,
        *,
        executor: Front | None = None,
        inner_max_num_threads: int | None = None,
        nesting_level: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        if addresses is not None:
            settings["addresses"] = list(addresses) if isinstance(addresses, Iterator) else addresses
        if executor is not None and settings:
            raise TypeError(
                f"an executor has servers and settings of its own: leave out {', '.join(sorted(settings))}"
            )
        if executor is not None and not isinstance(executor, Front):
            raise TypeError(f"executor must be a FarmExecutor or a view of one, not {type(executor).__name__}")
        self._given = executor
        self._settings = settings
        self.parallel: Any = None
        self._work: _Work | None = None
        self._new_work: Callable[[], _Work] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made with; an executor that was given arrives as a client of the same servers."""
        state = (self._given, self.inner_max_num_threads, self.nesting_level, self._settings)
        return _unpickle, state

    # -- how many -------------------------------------------------------------------------------------------

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many batches can run at once; a farm of servers is dialled for that.

        Raises:
            ValueError: ``n_jobs`` is 0.
            TimeoutError: No server has answered for ten seconds.
            Exception: What breaks the farm, such as a wrong key.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:  # nobody names a farm to use one of its workers
            n_jobs = self.default_n_jobs
        return n_jobs if n_jobs > 0 else max(self._count() + 1 + n_jobs, 1)

    def _count(self) -> int:
        if self._given is None and not self._settings.get("addresses"):
            return self._settings.get("max_workers") or cpu_count()  # type: ignore[no-any-return]
        return _workers(self._executor(1))

    def _executor(self, workers: int, settings: dict[str, Any] | None = None) -> Front:
        return self._given or executor_for(self._settings if settings is None else settings, workers)

    # -- a call of Parallel ---------------------------------------------------------------------------------

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """Prepare for calls of a Parallel; return how many batches run at once."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        settings = {name: value for name, value in options.items() if name not in JOBLIBS_OWN}
        if settings and self._given is not None:
            raise TypeError(f"an executor has settings of its own: leave out {', '.join(settings)}")
        executor = self._executor(n_jobs, {**self._settings, **settings})
        workers = _workers(executor)
        self._bound(executor, min(n_jobs, workers, _most_at_a_server(executor) or workers))
        limit = n_jobs if n_jobs < workers else None
        max_nbytes, mode = options.get("max_nbytes"), options.get("mmap_mode")

        def new_work() -> _Work:
            arrays = None if max_nbytes is None or mode is None else Arrays(executor, max_nbytes, mode != "r")
            return _Work(executor, arrays, limit)

        self._new_work = new_work
        return n_jobs

    def _bound(self, executor: Front, workers: int) -> None:
        """Bound the threads in all workers, present and future, before they run anything of this call."""
        backing = backing_of(executor)
        engine = backing.start_engine()
        wanted = (self.inner_max_num_threads, workers)
        of_engine, known, broadcast = _bounds.get(backing, (None, None, None))
        if of_engine is engine and known == wanted:
            return
        if of_engine is engine:  # not in a forked child, where the farm has begun afresh
            engine.forget(broadcast)
        _bounds[backing] = engine, wanted, engine.broadcast(bound_threads, wanted, TaskOptions(), persistent=True)

    def submit(self, func: Any, callback: Callable[[Any], None] | None = None) -> Future[Any]:
        """Submit a batch; never raises, since joblib would not hear of it in a callback."""
        if self._work is None:
            assert self._new_work is not None, "joblib configures a backend before it submits"
            self._work = self._new_work()
        return self._work.submit(func, callback)

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return a batch's results, or raise what it has raised."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel batches that wait, and kill those that run, as loky does; nothing else of the farm is touched."""
        if self._work is not None:
            self._work.abort()
            self._work = None

    def stop_call(self) -> None:
        """End a call of Parallel: arrays that it has sent are given up."""
        if self._work is not None:
            self._work.close()
            self._work = None

    def terminate(self) -> None:
        """Let go of the executor, which is kept for the next Parallel for a while if it is the backend's own."""
        self.stop_call()
        self._new_work = None
        self.parallel = None
        if self._given is None:
            released()
        self.reset_batch_stats()


def _unpickle(executor: Any, threads: int | None, level: int | None, settings: dict[str, Any]) -> FarmBackend:
    return FarmBackend(executor=executor, inner_max_num_threads=threads, nesting_level=level, **settings)


class _Work:
    """The batches of one call of Parallel, from joblib to the farm and back.

    joblib takes the next tasks from the program's iterator in the callback of a batch that has ended. That may take
    its time, or even use the farm, and waits for a lock that another thread holds while it submits. So callbacks
    have a thread of their own: in the farm's, nothing would be read meanwhile.

    Thread safety: any thread may call any method.
    """

    def __init__(self, executor: Front, arrays: Arrays | None, limit: int | None) -> None:
        own = options_of(executor).category
        self._category = ("joblib", os.getpid(), next(_numbers)) if own is None else None
        self._executor = executor.with_options(category=self._category)
        self._arrays = arrays
        self._limit = limit
        self._lock = threading.Lock()
        self._running: set[Future[Any]] = set()
        self._begun = 0  # batches that count against the limit, also before they are in `_running`
        self._waiting: deque[tuple[Any, Any]] = deque()
        self._done: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=_call_all, args=(self._done,), name="farm-joblib", daemon=True).start()

    def submit(self, batch: Any, callback: Callable[[Any], None] | None) -> Future[Any]:
        with self._lock:
            if self._limit is not None and self._begun >= self._limit:
                self._waiting.append((batch, callback))
                return Future()  # joblib hears of the batch by the callback alone
            self._begun += 1
        return self._start(batch, callback, self._standing(batch))

    def _standing(self, batch: Any) -> Any:
        """Return the batch with all large arrays replaced by what stands for them."""
        if self._arrays is None:
            return batch
        replaced = self._arrays.replaced
        standing = copy.copy(batch)
        standing.items = [
            (func, tuple(map(replaced, args)), {name: replaced(value) for name, value in kwargs.items()})
            for func, args, kwargs in batch.items
        ]
        return standing

    def _start(self, batch: Any, callback: Callable[[Any], None] | None, sent: Any) -> Future[Any]:
        try:
            future = self._executor.submit(run, sent)
        except Exception as error:
            future = Future()
            future.set_exception(error)
        with self._lock:
            self._running.add(future)
        end = partial(self._end, batch=batch, callback=callback, sent=sent)
        future.add_done_callback(lambda done: self._done.put(partial(end, done)))
        return future

    def _end(self, future: Future[Any], batch: Any, callback: Callable[[Any], None] | None, sent: Any) -> None:
        # Until now `sent` has kept alive what workers map, which may be a copy that pickling has made.
        with self._lock:
            self._running.discard(future)
        missing = None if self._arrays is None else _missing(future)
        if self._arrays is not None and missing is not None:
            self._arrays.missed(shared=isinstance(missing, SharedMemoryError))
            self._start(batch, callback, batch)
            return
        with self._lock:
            following = self._waiting.popleft() if self._waiting else None
            if following is None:
                self._begun -= 1
        if following is not None:
            self._start(*following, self._standing(following[0]))
        if callback is not None:
            callback(future)

    def abort(self) -> None:
        with self._lock:
            self._waiting.clear()
            running = list(self._running)
        for future in running:
            future.cancel()
        if self._category is not None:
            with contextlib.suppress(Exception):  # the farm is broken: nothing runs there
                self._executor.kill_tasks(self._category)
        else:
            for future in running:
                self._executor.kill(future)
        self.close()

    def close(self) -> None:
        self._done.put(None)
        if self._arrays is not None:
            self._arrays.close()


def _call_all(done: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (call := done.get()) is not None:
        try:
            call()
        except Exception:  # as the standard library does for callbacks of futures
            logging.getLogger("concurrent.futures").exception("exception calling callback")


def _missing(future: Future[Any]) -> BaseException | None:
    """Return why the worker lacked an array, so that it could not read the task; None if it did not."""
    error = None if future.cancelled() else future.exception()
    if isinstance(error, SharedMemoryError):
        return error
    cause = None if error is None else error.__cause__
    return cause if isinstance(cause, MissingBufferError) else None


def _workers(executor: Front) -> int:
    """Return how many workers there are; give servers that have not answered yet their time, once.

    Raises:
        TimeoutError: No server has answered.
    """
    backing = backing_of(executor)
    if backing.supply.given is not None and backing not in _awaited:
        try:
            executor.connect(ANSWER_SECONDS)
        except TimeoutError:
            if not _most_at_a_server(executor):
                raise
        _awaited.add(backing)
    return backing.max_workers


def _most_at_a_server(executor: Front) -> int:
    """Return the most workers that a server gives; 0 if none has answered."""
    return max((server.slots for server in executor.statistics().servers), default=0)
