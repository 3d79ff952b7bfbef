"""Texts and copies of the errors that futures are settled with.

This module owns the wording. It must not know when an error is raised.
"""

from __future__ import annotations

import contextlib
import signal
import types
from collections.abc import Callable, Sequence
from typing import Any

from farm_executor.client.farm.functions import Function
from farm_executor.client.farm.lane import Lane
from farm_executor.core.messages import WorkerDied
from farm_executor.core.task import Task
from farm_executor.data import payload
from farm_executor.data.byvalue import held_by
from farm_executor.data.failure import Origin, describe
from farm_executor.errors import TaskExecutionError, TaskKilledError, TaskTimeoutError, WorkerLostError

__all__ = [
    "caused",
    "copy_of",
    "culprit",
    "describe_death",
    "explain_pickling",
    "initializer_failed",
    "last_word",
    "task_killed",
    "task_overran",
    "unreadable_value",
    "worker_lost",
]


def copy_of(error: Exception) -> Exception:
    """Return a copy of an error, so that each future has its own.

    An exception that is raised in several threads would collect the tracebacks of all.
    """
    # `__new__` alone: the constructor may want other arguments than `args`, and may have effects.
    twin = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    twin.args = error.args
    twin.__cause__ = error.__cause__
    return twin


def caused(error: BaseException, cause: BaseException) -> BaseException:
    """Return the error, with that cause."""
    error.__cause__ = cause
    return error


def describe_death(death: WorkerDied | None) -> str:
    """Return what became of a worker, as the end of a sentence; None means that its supervisor could not say."""
    if death is None:
        return "could not be reached any more"
    if death.killed is not None:
        return "was killed on request"
    if death.frozen is not None:
        return f"had been stopped, as by SIGSTOP, for {death.frozen:g} s, and was killed"
    if death.held is not None:
        allowed = "" if death.limit is None else f" (more than max_memory_per_worker={in_units(death.limit)})"
        return f"was killed because it held {in_units(death.held)} of memory{allowed}"
    if death.code >= 0:
        return f"exited with code {death.code}"
    try:
        name = signal.Signals(-death.code).name
    except ValueError:
        name = "unknown"
    hint = ""
    if death.oom:
        hint = "; the system's out-of-memory killer was at work"
    elif name == "SIGKILL" and death.oom is None:
        hint = ", perhaps by the system for want of memory"
    return f"was killed by signal {-death.code} ({name}{hint})"


def last_word(death: WorkerDied) -> str:
    """Return what became of a worker, with what it wrote to standard error, for texts that do not name it."""
    said = f"; it wrote to standard error:\n{death.stderr}" if death.stderr else ""
    return describe_death(death) + said


def in_units(size: int) -> str:
    """Return a number of bytes for people, in KiB to TiB."""
    amount = size / 1024
    for unit in ("KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def culprit(error: BaseException, values: Sequence[Any]) -> int | None:
    """Return the index of the value whose pickling raised the error; None if none of them raises an error now.

    Raises:
        BaseException: The error itself, if it concerns the program and not a value: an interrupt, or an exit that
            none of the values raises again, so that a signal handler must have raised it.
    """
    kind = type(error)  # not `isinstance`: the error's class may define anything, `__class__` too
    if issubclass(kind, KeyboardInterrupt):
        raise error
    for place, value in enumerate(values):
        try:
            payload.dumps(value)
        except KeyboardInterrupt:
            raise
        except BaseException:  # of any kind: this value is the one
            return place
    if not issubclass(kind, Exception):
        raise error
    return None


def explain_pickling(
    error: BaseException, fn: Callable[..., Any] | Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> BaseException:
    """Add to the error's text which part of the call cannot be pickled; return the error.

    Raises:
        BaseException: See `culprit`.
    """
    parts: list[tuple[str, Any]] = [] if isinstance(fn, Function) else [("the function itself", fn)]
    parts += [(f"argument {i}", arg) for i, arg in enumerate(args)]
    parts += [(f"argument {name}", arg) for name, arg in kwargs.items()]
    place = culprit(error, [value for _, value in parts])
    if place is not None:
        where, value = parts[place]
        kind = type(value).__qualname__
        note = f"{where}, of type {kind}, cannot be sent to a worker{_because(value)}"
        with contextlib.suppress(Exception):  # the error's class may define anything
            if len(error.args) == 1 and isinstance(error.args[0], str):
                error.args = (f"{error.args[0]} [{note}]",)
    return error


def _can_be_sent(value: Any) -> bool:
    try:
        payload.dumps(value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # a user's `__reduce__` may raise anything
        return False
    return True


def _because(value: Any, seen: tuple[Any, ...] = ()) -> str:
    """Return which global or other part of a function cannot be sent, as the end of a sentence."""
    if type(value) is types.FunctionType:
        seen = *seen, value
        for part, held, sent in held_by(value):
            if all(held is not other for other in seen) and not _can_be_sent(sent):
                named = f", because of {part} of {value.__qualname__}, of type {type(held).__qualname__}"
                return _because(held, seen) or named
    return ""


def initializer_failed(lane: Lane, traceback: str) -> str:
    """Return the text for a failed initializer: the last line of the worker's traceback, then all of it."""
    last = traceback.strip().rpartition("\n")[2]
    return f"the initializer failed on server {lane.server}, worker pid {lane.pid}: {last}\n{traceback}"


def worker_lost(lane: Lane, task: Task) -> WorkerLostError:
    """Return the error of a task that must not be sent again after its worker died or went out of reach."""
    death = lane.death
    reason = describe_death(death)
    if task.losses < task.options.max_attempts:
        text = f"the worker {reason}; this task may have begun there, and was to be attempted only once"
    elif task.losses == 1:
        text = f"the worker {reason} while it received or ran this task, which was to be attempted only once"
    else:
        text = f"the worker {reason} while it received or ran this task, in each of {task.losses} attempts"
    if death is not None and death.peak:
        text += f"; its memory peaked at {in_units(death.peak)}"
    return WorkerLostError(
        text,
        server=lane.server,
        slot=lane.slot,
        pid=lane.pid,
        exit_code=None if death is None else death.code,
        stderr="" if death is None else death.stderr,
    )


def task_killed(lane: Lane, task: Task) -> TaskKilledError:
    """Return the error of a task that was killed on request."""
    category = task.options.category
    text = "the task was killed while it ran" + ("" if category is None else f"; its category is {category!r}")
    return TaskKilledError(f"{text} [server {lane.server}, worker pid {lane.pid}]")


def task_overran(lane: Lane, task: Task) -> TaskTimeoutError:
    """Return the error of a task that was killed because it ran too long."""
    text = f"the task was killed because it ran for more than its timeout of {task.options.timeout} s"
    return TaskTimeoutError(f"{text} [server {lane.server}, worker pid {lane.pid}]")


def unreadable_value(origin: Origin, problem: BaseException) -> TaskExecutionError:
    """Return the error of a task whose result has come, but cannot be unpickled here."""
    error = TaskExecutionError(
        f"the task's result arrived, but could not be rebuilt here: {describe(problem)}",
        type_name=type(problem).__qualname__,
        server=origin.server,
        pid=origin.pid,
        attempt=origin.attempt,
    )
    error.__cause__ = problem
    return error
