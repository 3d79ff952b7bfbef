"""Ends engines when the program ends, and abandons them in a forked child.

This module owns the hooks into `atexit`, `threading` and fork, and the order of the steps in them. It knows
engines, and methods that were registered here. It must not know executors. Registering an object does not keep it
alive.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from farm_executor.client.farm.future import renew_lock
from farm_executor.client.farm.interrupt import let_go

if TYPE_CHECKING:
    from farm_executor.client.protocol import Farm

__all__ = ["at_program_end", "end_interrupted", "in_forked_child", "interpreter_ends", "track"]

logger = logging.getLogger(__name__)

INTERRUPT_SECONDS = 2.0  # for running tasks to end after Ctrl-C
EXIT_SECONDS = 15.0  # for servers to be reached again, once the program has nothing else left to do
LOOK_SECONDS = 0.5  # between checks whether they are

_engines: weakref.WeakSet[Farm] = weakref.WeakSet()
_at_end: list[weakref.WeakMethod[Callable[[], None]]] = []
_in_child: list[weakref.WeakMethod[Callable[[], None]]] = []
_interpreter_ends = False


def track(engine: Farm) -> None:
    """Finish this engine's tasks when the program ends, and abandon it in a forked child."""
    _engines.add(engine)


def at_program_end(method: Callable[[], None]) -> None:
    """Call this bound method, if its object lives, at the end of the program when all engines have ended."""
    _at_end.append(weakref.WeakMethod(method, _at_end.remove))


def in_forked_child(method: Callable[[], None]) -> None:
    """Call this bound method, if its object lives, in each forked child after its engines have been abandoned."""
    _in_child.append(weakref.WeakMethod(method, _in_child.remove))


def interpreter_ends() -> bool:
    """Return whether the program is ending, so that no engine may start any more."""
    return _interpreter_ends


def end_interrupted(engines: Iterable[Farm]) -> None:
    """Give running tasks `INTERRUPT_SECONDS` to clean up, then end them.

    Ctrl-C in a terminal has reached workers on this machine, too.
    """
    # One deadline for all engines, however many there are: the user is waiting.
    deadline = time.monotonic() + INTERRUPT_SECONDS
    engines = list(engines)
    try:
        for engine in engines:
            engine.join(max(deadline - time.monotonic(), 0.0))
    finally:  # also when Ctrl-C comes once more
        for engine in engines:
            engine.abort("the program was interrupted")
    for engine in engines:
        engine.join()


def _call_all(methods: list[weakref.WeakMethod[Callable[[], None]]]) -> None:
    for reference in list(methods):
        method: Any = reference()
        if method is not None:
            method()


def _at_exit() -> None:
    """Finish what was submitted, as the standard library's executors do.

    Called by `atexit`, when the program's own threads have ended: `threading._register_atexit`, which the standard
    library uses, would refuse the tasks that these submit (CPython issue 148280).
    """
    global _interpreter_ends
    _interpreter_ends = True
    engines = list(_engines)
    interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt  # whether Ctrl-C ended the program
    # All are told before any is waited for, so that they end side by side.
    for engine in engines:
        engine.shutdown(cancel_futures=interrupted)
    if interrupted:
        end_interrupted(engines)
    for engine in engines:
        _join_at_exit(engine)
    _call_all(_at_end)


def _join_at_exit(engine: Farm) -> None:
    """Wait for an engine to end; give up if no server is in reach, as no code is left that could restart one."""
    reached = time.monotonic()
    while not engine.join(LOOK_SECONDS):
        if engine.servers.in_reach():
            reached = time.monotonic()
        elif time.monotonic() - reached >= EXIT_SECONDS:
            left = engine.statistics()
            reason = f"none of its servers could be reached for {EXIT_SECONDS:g} s at the end of the program"
            logger.error(
                "gave up tasks=%d reason=%s servers=%s",
                *(left.queued + left.running, reason, engine.servers.describe()),
            )
            engine.abort(reason)
            engine.join()
            return


def _at_shutdown_of_threads() -> None:
    """Make `_at_exit` run in a child of multiprocessing, too, which may end without `atexit`.

    `threading` calls this in every process, before it joins the threads. Some threads may still submit tasks, so
    another thread waits for them.
    """
    multiprocessing = sys.modules.get("multiprocessing.process")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        # If no thread may start any more, the interpreter itself is ending, and `atexit` will run.
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=_exit_after_all, name="farm-exit").start()


def _exit_after_all() -> None:
    """Run `_at_exit` once all non-daemon threads have ended."""
    me = threading.current_thread()
    # Again and again, as a thread may start others before it ends.
    while others := [
        each for each in threading.enumerate() if each.is_alive() and not each.daemon and each is not me
    ]:
        for each in others:
            each.join()
    _at_exit()


def _after_fork_in_child() -> None:
    # First the lock and the signal handlers: abandoning an engine settles futures, whose users may need them.
    renew_lock()
    let_go()
    for engine in list(_engines):
        engine.abandon()
    _engines.clear()
    _call_all(_in_child)


atexit.register(_at_exit)
with contextlib.suppress(AttributeError, RuntimeError):  # private; and threads may be shut down already
    threading._register_atexit(_at_shutdown_of_threads)  # type: ignore[attr-defined]
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
