"""What went wrong on a worker, made to cross the wire and rise again on the client.

This module owns how exceptions travel: type, arguments, attributes, notes, causes and contexts, groups, and the
frames of their tracebacks. It must not know connections or futures.

Each exception of the graph (the one raised, its causes, contexts and members) is pickled for itself, so that one
that cannot travel costs only itself: a `TaskExecutionError` with its text takes its place. An exception whose
class leaves reduction to `BaseException` is rebuilt without calling its ``__init__``, because that may take other
arguments than ``args`` holds, or change them: its arguments and attributes come back exactly as they were.
"""

from __future__ import annotations

import contextlib
import copyreg
import pickle
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from farm_executor import payload
from farm_executor.core.frames import Payload
from farm_executor.errors import TaskExecutionError

__all__ = ["Origin", "dump_failure", "load_failure", "remote_traceback"]

MAX_FRAMES = 200  # of a traceback; of a longer one, such as a RecursionError's, both ends are kept
MAX_NODES = 1000  # exceptions in one graph


@dataclass(frozen=True)
class Origin:
    """Where an outcome came from."""

    server: str = ""
    pid: int = 0
    attempt: int = 1


@dataclass
class _Node:
    """One exception of the graph, in builtin types only, so that it loads anywhere."""

    type_name: str
    text: str
    recipe: list[Any] | None  # a payload
    problem: str  # why there is no recipe
    frames: list[tuple[str, str, int, str]]
    notes: list[str] | None
    suppress_context: bool
    cause: int | None = None
    context: int | None = None
    members: list[int] = field(default_factory=list)


def _type_name(value: BaseException) -> str:
    cls = type(value)
    return (
        cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"
    )


def _text(error: BaseException) -> str:
    with contextlib.suppress(Exception):
        return "".join(traceback.format_exception_only(type(error), error)).strip()
    return f"{_type_name(error)}: <its text could not be had>"


# -- on the worker -----------------------------------------------------------------------------------


def dump_failure(error: BaseException, message: str = "") -> list[Any]:
    """Encode an exception as it was caught.

    Args:
        error: The exception, with the traceback that the client shall see.
        message: Says what the farm could not do with the task. If given, the client raises a
            `TaskExecutionError` of this text with ``error`` as its cause; if not, ``error`` is the task's own.

    Returns:
        A payload. Never raises: what cannot travel is replaced by its text.
    """
    nodes: list[_Node] = []
    index: dict[int, int] = {}
    pending = [error]
    while pending:  # a loop, as a chain of causes may be longer than the stack is deep
        exc = pending.pop()
        if id(exc) in index or len(nodes) >= MAX_NODES:
            continue
        index[id(exc)] = len(nodes)
        nodes.append(_encode(exc))
        pending += _linked(exc)
    excs: dict[int, BaseException] = {}
    stack = [error]
    while stack:
        exc = stack.pop()
        number = index.get(id(exc))
        if number is None or number in excs:
            continue
        excs[number] = exc
        node = nodes[number]
        node.cause = index.get(id(exc.__cause__))
        node.context = index.get(id(exc.__context__))
        node.members = [index[id(member)] for member in _members(exc) if id(member) in index]
        stack += _linked(exc)
    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:  # a broken __str__ in a place that traceback does not guard
        text = _text(error) + "\n"
    return [pickle.dumps((message, text, [vars(node) for node in nodes]), payload.PROTOCOL)]


def _members(exc: BaseException) -> list[BaseException]:
    members = getattr(exc, "exceptions", None) if _is_group(exc) else None
    return list(members or ())


def _is_group(exc: BaseException) -> bool:
    return any(cls.__name__ == "BaseExceptionGroup" for cls in type(exc).__mro__)


def _linked(exc: BaseException) -> list[BaseException]:
    return [other for other in (exc.__cause__, exc.__context__, *_members(exc)) if other is not None]


def _encode(exc: BaseException) -> _Node:
    recipe, problem = None, ""
    try:
        recipe = [bytes(part) for part in payload.dumps(_reduce(exc), out_of_band=False)]
    except Exception as error:  # any error of a user's reduction
        problem = _text(error)
    notes = getattr(exc, "__notes__", None)
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        notes = None
    return _Node(
        type_name=_type_name(exc),
        text=_text(exc),
        recipe=recipe,
        problem=problem,
        frames=_frames(exc.__traceback__),
        notes=notes,
        suppress_context=exc.__suppress_context__,
    )


def _reduce(exc: BaseException) -> tuple[Any, ...]:
    cls = type(exc)
    plain = (
        cls not in copyreg.dispatch_table
        and cls.__reduce_ex__ is object.__reduce_ex__
        and not any(_python_defined(cls, name) for name in ("__reduce__", "__getstate__", "__setstate__"))
    )
    if not plain:
        return ("object", exc)
    reduced: Any = exc.__reduce__()
    args, state = reduced[1], reduced[2] if len(reduced) > 2 else None
    if _is_group(exc):
        return ("group", cls, args[:1], state)
    return ("plain", cls, args, state)


def _python_defined(cls: type, name: str) -> bool:
    return isinstance(getattr(cls, name, None), types.FunctionType)


def _frames(tb: types.TracebackType | None) -> list[tuple[str, str, int, str]]:
    frames = []
    while tb is not None:
        code = tb.tb_frame.f_code
        module = tb.tb_frame.f_globals.get("__name__")
        frames.append(
            (code.co_filename, code.co_name, tb.tb_lineno or 0, module if isinstance(module, str) else "")
        )
        tb = tb.tb_next
    if len(frames) > MAX_FRAMES:
        frames = frames[: MAX_FRAMES // 2] + frames[-MAX_FRAMES // 2 :]
    return frames


# -- on the client -----------------------------------------------------------------------------------


def load_failure(
    data: Payload, origin: Origin, resolver: Callable[[], payload.Resolver] | None = None
) -> BaseException:
    """The exception that the future shall raise.

    Args:
        data: As `dump_failure` gave it.
        origin: Where it came from.
        resolver: Makes the resolver for one by-value payload.

    Returns:
        The task's own exception, with its remote frames and with a `TaskExecutionError` at the end of its
        ``__cause__`` chain; or that error itself where the own one cannot be rebuilt here, or where the farm
        failed and not the task. Never raises.
    """
    message, text, raw = pickle.loads(data[0])
    nodes = [_Node(**node) for node in raw]
    graph = _Graph(nodes, origin, resolver)
    first = graph.build(0)
    for number in range(len(nodes)):
        graph.link(number)
    if message:
        report = _report(message, text, nodes[0], origin)
        report.__cause__ = first
        return report
    if 0 in graph.replaced:
        first.remote_traceback = text  # type: ignore[attr-defined]
        return first
    _append_cause(first, _report(f"raised on a worker: {nodes[0].text}", text, nodes[0], origin))
    return first


def remote_traceback(error: BaseException) -> str:
    """The traceback, as the worker printed it, of an exception that `load_failure` gave."""
    seen = set()
    while error.__cause__ is not None and id(error) not in seen:
        seen.add(id(error))
        error = error.__cause__
    return error.remote_traceback if isinstance(error, TaskExecutionError) else ""


class _Graph:
    """The exceptions of one failure while they are rebuilt."""

    def __init__(self, nodes: list[_Node], origin: Origin, resolver: Callable[[], payload.Resolver] | None) -> None:
        self.replaced: set[int] = set()
        self._nodes = nodes
        self._origin = origin
        self._resolver = resolver
        self._built: dict[int, BaseException] = {}

    def build(self, number: int) -> BaseException:
        """The exception of that number, with its members if it is a group, not yet linked to others."""
        if number not in self._built:
            node = self._nodes[number]
            try:
                exc = self._rebuild(node)
            except BaseException as error:  # code of the user's class, which may even try to exit
                exc = self._replacement(number, node, error)
            self._built[number] = exc
        return self._built[number]

    def _rebuild(self, node: _Node) -> BaseException:
        if node.recipe is None:
            raise pickle.PicklingError(node.problem)
        kind, *recipe = payload.loads(node.recipe, self._resolver)
        if kind == "object":
            exc: BaseException = recipe[0]
            if not isinstance(exc, BaseException):
                raise TypeError(f"its reduction gives a {type(exc).__name__}, not an exception")
        else:
            cls, args, state = recipe
            if kind == "group":
                args = (*args, [self.build(member) for member in node.members])
            # The nearest builtin class makes and fills it, whatever the user's own __new__ and __init__ want.
            builtin = next(base for base in cls.__mro__ if base.__module__ == "builtins")
            exc = builtin.__new__(cls, *args)
            builtin.__init__(exc, *args)
            if state:
                exc.__setstate__(state)
        if node.notes and not getattr(exc, "__notes__", None):
            exc.__notes__ = node.notes  # type: ignore[attr-defined]  # add_note exists from 3.11 on
        return exc

    def _replacement(self, number: int, node: _Node, error: BaseException) -> TaskExecutionError:
        self.replaced.add(number)
        where = "could not be pickled" if node.recipe is None else "could not be rebuilt here"
        problem = node.problem or _text(error)
        return _report(f"raised on a worker: {node.text}; the exception {where}: {problem}", "", node, self._origin)

    def link(self, number: int) -> None:
        """Give the exception its traceback, cause and context."""
        exc, node = self.build(number), self._nodes[number]
        if node.cause is not None:
            exc.__cause__ = self.build(node.cause)
        if node.context is not None:
            exc.__context__ = self.build(node.context)
        exc.__suppress_context__ = node.suppress_context
        exc.__traceback__ = _traceback(node.frames)


def _report(message: str, text: str, node: _Node, origin: Origin) -> TaskExecutionError:
    return TaskExecutionError(
        message,
        remote_traceback=text,
        type_name=node.type_name,
        server=origin.server,
        pid=origin.pid,
        attempt=origin.attempt,
    )


def _traceback(frames: list[tuple[str, str, int, str]]) -> types.TracebackType | None:
    import tblib

    tb = None
    for filename, name, line, module in reversed(frames):
        code = types.SimpleNamespace(co_filename=filename, co_name=name)
        frame = types.SimpleNamespace(
            f_globals={"__name__": module, "__file__": filename}, f_locals={}, f_code=code, f_lineno=line
        )
        tb = types.SimpleNamespace(tb_frame=frame, tb_lineno=line, tb_next=tb)
    return tblib.Traceback(tb).as_traceback() if tb else None


def _append_cause(exc: BaseException, report: TaskExecutionError) -> None:
    """Put the report at the end of the chain of explicit causes, so that the task's own causes stay in place."""
    seen = {id(exc)}
    while exc.__cause__ is not None and id(exc.__cause__) not in seen:
        exc = exc.__cause__
        seen.add(id(exc))
    if exc.__cause__ is None:
        suppress = exc.__suppress_context__
        exc.__cause__ = report
        exc.__suppress_context__ = suppress
