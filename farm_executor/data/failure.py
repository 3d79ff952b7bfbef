"""Exceptions of workers, encoded to be sent and raised again on the client.

This module owns how exceptions travel: type, arguments, attributes, notes, causes and contexts, groups, and the
frames of their tracebacks. It must not know connections or futures.

Each exception of the graph (the one raised, its causes, contexts and members) is pickled separately, so that one
that cannot be sent affects only itself: a `TaskExecutionError` with its text takes its place. An exception whose
class leaves reduction to the builtin ones is rebuilt without calling its ``__new__`` or ``__init__``, because these
may take other arguments than ``args`` holds, or change them: its arguments and attributes come back as they were.

An exception's class may define anything, so its attributes are accessed only through `BaseException` itself.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import itertools
import pickle
import re
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

from farm_executor._record import NamedTuple
from farm_executor.core.frames import Payload
from farm_executor.core.text import MAX_STDERR, MAX_STDERR_LINES, last_lines
from farm_executor.data import payload
from farm_executor.data.byvalue import Resolver
from farm_executor.errors import SharedMemoryError, TaskError, TaskExecutionError

__all__ = [
    "Origin",
    "describe",
    "dump_failure",
    "dump_unsendable",
    "load_failure",
    "remote_traceback",
    "report_of",
    "take_report",
]

MAX_FRAMES = 200  # in a traceback; a longer one, such as a RecursionError's, keeps both ends
MAX_NODES = 1000  # exceptions in one graph; the nearest are kept

_ARGS: Any = vars(BaseException)["args"]
_CAUSE: Any = vars(BaseException)["__cause__"]
_CONTEXT: Any = vars(BaseException)["__context__"]
_SUPPRESS_CONTEXT: Any = vars(BaseException)["__suppress_context__"]
_TRACEBACK: Any = vars(BaseException)["__traceback__"]
# For an exception class that defines none of these itself, we know everything there is to send.
_REDUCTIONS = ("__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")
_UNSET = object()


# File, function, its first line, module; then line, last line, and the two columns, -1 where unknown.
_Frame = tuple[str, str, int, str, int, int, int, int]


class Origin(NamedTuple):
    """The server, process and attempt that an outcome came from."""

    server: str = ""
    pid: int = 0
    attempt: int = 1


class _Node(NamedTuple):
    """One exception of the graph, made of builtin types only, so that it loads anywhere."""

    type_name: str
    text: str
    recipe: list[Any] | None  # a payload
    problem: str  # why there is no recipe
    frames: list[_Frame]
    notes: list[str]
    suppress_context: bool
    cause: int | None
    context: int | None
    members: list[int]


def describe(error: BaseException) -> str:
    """Return an exception's type and text, as in a traceback's last line. Never raises, whatever its class does."""
    name = _type_name(error)  # the traceback module would walk all causes and contexts for this
    try:
        text = str(error)
    except BaseException:  # the class's own code, which may even try to exit
        text = "<its text could not be had>"
    return f"{name}: {text}" if text else name


def _type_name(value: BaseException) -> str:
    cls = type(value)
    return (
        cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"
    )


# -- on the worker -----------------------------------------------------------------------------------


def dump_unsendable(
    error: BaseException,
    value: Any,
    what: str = "the task's result",
    *,
    named: Callable[[str], str] | None = None,
) -> list[Any]:
    """Encode why a result, or what else is named, could not be pickled.

    The error is raised unchanged, as by ProcessPoolExecutor. An explanation is added as its cause.
    """
    text = f"{what}, of type {type(value).__qualname__}, could not be pickled: {describe(error)}"
    return dump_failure(error, text, skip_frames=1, as_cause=True, named=named)


def explain_unreadable(error: BaseException) -> str:
    """Return the worker's message that a call could not be read; none for an error that says so itself."""
    if type(error) is SharedMemoryError:  # its class may define anything, __class__ included
        return ""
    return f"the task's function or arguments could not be read on the worker: {describe(error)}"


def dump_failure(
    error: BaseException,
    message: str = "",
    *,
    skip_frames: int = 0,
    as_cause: bool = False,
    named: Callable[[str], str] | None = None,
) -> list[Any]:
    """Encode an exception as it was caught.

    Args:
        error: The exception, with the traceback that the client will see.
        message: What the farm could not do with the task. If given, the client raises a `TaskExecutionError` with
            this text and with ``error`` as its cause; if not, ``error`` is the task's own.
        skip_frames: The number of frames that belong to the code that caught it; left out if others follow.
        named: Maps a file name here to the client's name for that file.
        as_cause: Whether to reverse the roles: the client raises ``error``, and the message becomes its cause.

    Returns:
        A payload. Never raises: an exception that cannot be sent is replaced by its text.
    """
    for _ in range(skip_frames):
        tb = _TRACEBACK.__get__(error)
        if tb is not None and tb.tb_next is not None:
            _TRACEBACK.__set__(error, tb.tb_next)
    excs = [error]
    index = {id(error): 0}
    for exc in excs:  # grows meanwhile; no recursion, since a chain of causes may exceed the stack's limit
        for other in _linked(exc):
            if id(other) not in index and len(excs) < MAX_NODES:
                index[id(other)] = len(excs)
                excs.append(other)
    nodes = [_encode(exc, index) for exc in excs]
    text = _format(error)
    if named is not None:
        nodes = [node._replace(frames=[(named(frame[0]), *frame[1:]) for frame in node.frames]) for node in nodes]
        text = _FILE.sub(lambda match: f'{match[1]}{named(match[2])}"', text)
    told = [node._asdict() for node in nodes]
    return [pickle.dumps((message, as_cause, text, told), payload.PROTOCOL)]


_FILE = re.compile(r'^(\s*File ")([^"\n]+)"', re.MULTILINE)


def _format(error: BaseException) -> str:
    tb = _TRACEBACK.__get__(error)
    for chain in (True, False):  # Python 3.10 formats a chain recursively, perhaps too deeply
        try:
            return "".join(traceback.format_exception(type(error), error, tb, chain=chain))
        except BaseException:  # as in `describe`
            pass
    places = "".join(f'  File "{frame[0]}", line {frame[4]}, in {frame[1]}\n' for frame in _frames(tb))
    return f"Traceback (most recent call last):\n{places}{describe(error)}\n"


def _linked(exc: BaseException) -> list[BaseException]:
    return [other for other in (_CAUSE.__get__(exc), _CONTEXT.__get__(exc), *_members(exc)) if other is not None]


def _members(exc: BaseException) -> list[BaseException]:
    members = _attribute(exc, "exceptions") if _group_class(type(exc)) else ()
    return [member for member in members if isinstance(member, BaseException)] if type(members) is tuple else []


def _group_class(cls: type) -> Any:
    """Return the class that makes it a group: the builtin one or, on Python 3.10, that of exceptiongroup."""
    return next((base for base in cls.__mro__ if base.__name__ == "BaseExceptionGroup"), None)


def _attribute(exc: BaseException, name: str, default: Any = None) -> Any:
    try:
        return object.__getattribute__(exc, name)
    except BaseException:  # the attribute is missing, or is a property that fails
        return default


def _encode(exc: BaseException, index: dict[int, int]) -> _Node:
    """Encode one exception; ``index`` maps the ids of all encoded exceptions to their positions."""
    recipe, problem = None, ""
    try:
        recipe = [bytes(part) for part in payload.dumps(_reduce(exc), out_of_band=False)]
    except BaseException as error:  # any error of a user's reduction, which may even try to exit
        problem = describe(error)
    notes = _attribute(exc, "__notes__")
    return _Node(
        type_name=_type_name(exc),
        text=describe(exc),
        recipe=recipe,
        problem=problem,
        frames=_frames(_TRACEBACK.__get__(exc)),
        notes=[note for note in notes if type(note) is str] if type(notes) is list else [],
        suppress_context=_SUPPRESS_CONTEXT.__get__(exc),
        cause=index.get(id(_CAUSE.__get__(exc))),
        context=index.get(id(_CONTEXT.__get__(exc))),
        members=[index[id(member)] for member in _members(exc) if id(member) in index],
    )


def _reduce(exc: BaseException) -> tuple[Any, ...]:
    cls = type(exc)
    reducer = copyreg.dispatch_table.get(cls)
    # tblib, which Dask for one installs for all exceptions, calls `__init__`, which may take other arguments.
    is_tblibs = getattr(reducer, "__module__", "") == "tblib.pickling_support"
    if (reducer is not None and not is_tblibs) or any(_defined_by_user(cls, name) for name in _REDUCTIONS):
        return ("object", _AsItSays(exc) if is_tblibs else exc)
    args, attributes = _ARGS.__get__(exc), dict(_attribute(exc, "__dict__"))
    if _group_class(cls):
        args = (_attribute(exc, "message"),)  # the members are nodes
        attributes.pop("_exceptions", None)  # where the package exceptiongroup keeps them
    return ("plain", cls, args, attributes, _descriptors(exc))


class _AsItSays:
    """An exception that is pickled as its class says, whatever is registered for that."""

    def __init__(self, exc: BaseException) -> None:
        self._exc = exc

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = self._exc.__reduce_ex__(protocol)
        if isinstance(reduced, str):  # the name of a global, which pickle would look for in this class's module
            from pkgutil import resolve_name  # late: few exceptions come here

            return resolve_name, (f"{type(self._exc).__module__}:{reduced}",)
        return reduced


def _defined_by_user(cls: type, name: str) -> bool:
    owner = next((base for base in cls.__mro__ if name in vars(base)), object)
    return owner.__module__ != "builtins"


def _descriptors(exc: BaseException) -> dict[str, Any]:
    """Return the values of slots, and of attributes the builtin classes keep in C, such as ``OSError.filename``."""
    return {
        name: value
        for base in type(exc).__mro__
        if base not in (object, BaseException, _group_class(base))  # their attributes are sent separately
        for name, descriptor in vars(base).items()
        if isinstance(descriptor, (types.MemberDescriptorType, types.GetSetDescriptorType))
        and name not in ("__dict__", "__weakref__")
        and not (name == "obj" and base is AttributeError)  # it may be anything; pickle leaves it out, too
        # An unset slot does not have a value; in the builtin classes' own attributes, None stands for that.
        and (value := _attribute(exc, name, _UNSET)) is not _UNSET
        and not (value is None and base.__module__ == "builtins")
    }


def _frames(tb: types.TracebackType | None) -> list[_Frame]:
    frames: list[_Frame] = []
    while tb is not None:
        code, module = tb.tb_frame.f_code, tb.tb_frame.f_globals.get("__name__")
        place = (code.co_filename, code.co_name, code.co_firstlineno, module if type(module) is str else "")
        frames.append((*place, *_position(code, tb)))
        tb = tb.tb_next
    if len(frames) > MAX_FRAMES:
        frames = frames[: MAX_FRAMES // 2] + frames[-MAX_FRAMES // 2 :]
    return frames


def _position(code: types.CodeType, tb: types.TracebackType) -> tuple[int, int, int, int]:
    line = tb.tb_lineno or code.co_firstlineno
    if sys.version_info >= (3, 11):
        positions = next(itertools.islice(code.co_positions(), tb.tb_lasti // 2, None), (None,) * 4)
        begin, end, column, end_column = positions
        if begin == line and end is not None and column is not None and end_column is not None:
            return line, end, column, end_column
    return line, line, -1, -1


# -- on the client -----------------------------------------------------------------------------------


def load_failure(data: Payload, origin: Origin, resolver: Callable[[], Resolver] | None = None) -> BaseException:
    """Return the exception for the future to raise.

    Args:
        data: The payload made by `dump_failure`.
        origin: The origin of the failure.
        resolver: Makes the resolver for one by-value payload.

    Returns:
        The task's own exception, with its remote frames and with a `TaskExecutionError` at the end of its
        ``__cause__`` chain; or the `TaskExecutionError` itself if the task's exception cannot be rebuilt here, or
        if the farm failed and not the task. Never raises.
    """
    try:
        message, as_cause, text, raw = pickle.loads(data[0])
        nodes = [_Node(**node) for node in raw]
        graph = _Graph(nodes, origin, resolver)
        for number in reversed(range(len(nodes))):  # members mostly before groups, to limit recursion
            graph.build(number)
        for number in range(len(nodes)):
            graph.link(number)
        first = graph.build(0)
    except BaseException as error:  # raising here would leave the future pending forever
        return _report(f"the task failed; how could not be read here: {describe(error)}", "", "", origin)
    replaced = 0 in graph.replaced
    if replaced and not message:
        first.remote_traceback = text  # type: ignore[attr-defined]
        return first
    report = _report(message or f"raised on a worker: {nodes[0].text}", text, nodes[0].type_name, origin)
    if message and (replaced or not as_cause):
        report.__cause__ = first
        return report
    _append_cause(first, report)
    return first


def remote_traceback(error: BaseException) -> str:
    """Return the worker's own text of the traceback, for an exception from `load_failure`."""
    reports = [exc for exc in (_last_cause(error), error) if type(exc) is TaskExecutionError]
    return reports[0].remote_traceback if reports else ""


class _Graph:
    """The exceptions of one failure while they are being rebuilt."""

    def __init__(self, nodes: list[_Node], origin: Origin, resolver: Callable[[], Resolver] | None) -> None:
        self.replaced: set[int] = set()
        self._nodes = nodes
        self._origin = origin
        self._resolver = resolver
        self._built: dict[int, BaseException] = {}

    def build(self, number: int) -> BaseException:
        """Return the exception of that number, with its members if it is a group, but not yet linked to others."""
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
        exc: BaseException
        if kind == "plain":
            exc = self._rebuild_plain(node, *recipe)
        else:
            exc = recipe[0]
            if not isinstance(exc, BaseException):
                raise TypeError(f"its reduction gives a {type(exc).__name__}, not an exception")
        if node.notes and not _attribute(exc, "__notes__"):
            object.__setattr__(exc, "__notes__", node.notes)
        return exc

    def _rebuild_plain(
        self, node: _Node, cls: Any, args: tuple[Any, ...], attributes: dict[str, Any], descriptors: dict[str, Any]
    ) -> BaseException:
        # Only builtin classes make and fill it, since the user's __new__, __init__ and __setattr__ may do anything.
        exc: BaseException
        group = _group_class(cls)
        if group:
            exc = group.__new__(cls, *args, [self.build(member) for member in node.members])
        else:
            maker = cls
            while maker.__module__ != "builtins":
                maker = maker.__base__  # the builtin class whose C structure it extends
            exc = maker.__new__(cls)
            with contextlib.suppress(TypeError):  # the Unicode errors need arguments; all are set below
                maker.__init__(exc)
            _ARGS.__set__(exc, args)
        object.__getattribute__(exc, "__dict__").update(attributes)
        for name, value in descriptors.items():
            object.__setattr__(exc, name, value)
        return exc

    def _replacement(self, number: int, node: _Node, error: BaseException) -> TaskExecutionError:
        self.replaced.add(number)
        where = "could not be pickled" if node.recipe is None else "could not be rebuilt here"
        problem = node.problem or describe(error)
        text = f"raised on a worker: {node.text}; the exception {where}: {problem}"
        return _report(text, "", node.type_name, self._origin)

    def link(self, number: int) -> None:
        """Give the exception its traceback, cause and context."""
        exc, node = self.build(number), self._nodes[number]
        _CAUSE.__set__(exc, None if node.cause is None else self.build(node.cause))
        _CONTEXT.__set__(exc, None if node.context is None else self.build(node.context))
        _SUPPRESS_CONTEXT.__set__(exc, node.suppress_context)
        _TRACEBACK.__set__(exc, _traceback(node.frames))


def _report(message: str, text: str, type_name: str, origin: Origin) -> TaskExecutionError:
    return TaskExecutionError(
        message,
        remote_traceback=text,
        type_name=type_name,
        server=origin.server,
        pid=origin.pid,
        attempt=origin.attempt,
    )


def _traceback(frames: list[_Frame]) -> types.TracebackType | None:
    """Return a traceback of real frames that display like the remote ones.

    tblib makes the frames. They would have the columns and first line of tblib's own code, and tracebacks underline
    columns since Python 3.11; so each frame is raised again, from code that has the remote position.
    """
    import tblib

    chain: Any = None
    for filename, name, _, module, line, *_ in reversed(frames):
        code = types.SimpleNamespace(co_filename=filename, co_name=name)
        scope = {"__name__": module, "__file__": filename}
        frame = types.SimpleNamespace(f_globals=scope, f_locals={}, f_code=code, f_lineno=line)
        chain = types.SimpleNamespace(tb_frame=frame, tb_lineno=line, tb_next=chain)
    if chain is None:
        return None
    carried = tblib.Traceback(chain)
    return _exact(carried, frames)


def _exact(carried: Any, frames: list[_Frame]) -> types.TracebackType | None:
    tb = None
    nodes = []
    while carried is not None:
        nodes.append(carried.tb_frame)
        carried = carried.tb_next
    for frame, (_, _, first_line, _, *position) in zip(reversed(nodes), reversed(frames), strict=True):
        try:
            code = _failing_code(frame.f_code.co_filename, frame.f_code.co_name, first_line, *position)
            exec(code, dict(frame.f_globals), {})
        except ZeroDivisionError as error:
            last: Any = error.__traceback__.tb_next  # type: ignore[union-attr]
            tb = types.TracebackType(tb, last.tb_frame, last.tb_lasti, last.tb_lineno)
        except ValueError:  # impossible line numbers: the traceback was fabricated
            pass
    return tb


@functools.lru_cache(maxsize=1024)
def _failing_code(
    filename: str, name: str, first_line: int, line: int, end_line: int, column: int, end_column: int
) -> types.CodeType:
    """Return code of this name that fails at this position, for a traceback to underline."""
    import ast  # late: most tasks succeed, and servers do not need it

    tree = ast.parse("0/0")
    # Compile as if the lines before were not there: replacing co_firstlineno then moves all lines to their places.
    before = min(first_line, line) - 1
    for node in ast.walk(tree):
        if isinstance(node, (ast.stmt, ast.expr)):
            node.lineno, node.end_lineno = line - before, end_line - before
            node.col_offset, node.end_col_offset = column, end_column
    code = compile(tree, "", "exec")
    return code.replace(co_filename=filename, co_name=name, co_firstlineno=before + 1)


def _append_cause(exc: BaseException, report: TaskExecutionError) -> None:
    """Append the report to the chain of explicit causes, so that the task's own causes stay in place."""
    end = _last_cause(exc)
    if end is not None:
        suppress = _SUPPRESS_CONTEXT.__get__(end)
        _CAUSE.__set__(end, report)
        _SUPPRESS_CONTEXT.__set__(end, suppress)


def report_of(error: BaseException) -> TaskExecutionError | None:
    """Return the report at the end of the chain of causes of an exception from `load_failure`, or None."""
    end = _last_cause(error)
    return end if end is not error and type(end) is TaskExecutionError else None


def give_output(error: BaseException, output: str) -> None:
    """Put what a task has written into its error, or into the report at the end of that one's chain of causes."""
    report = error if isinstance(error, TaskError) else report_of(error)
    if report is not None:
        report.output, report.last_lines = output, last_lines(output, MAX_STDERR_LINES, MAX_STDERR)


def take_report(error: BaseException) -> TaskExecutionError | None:
    """Remove and return the report of `report_of`, so that the exception is as the task's code raised it.

    This is for callers that wrap the exception in an error that says the same as the report.
    """
    end = report_of(error)
    if end is None:
        return None
    before = error
    while (cause := _CAUSE.__get__(before)) is not None and cause is not end:
        before = cause
    suppress = _SUPPRESS_CONTEXT.__get__(before)
    _CAUSE.__set__(before, None)
    _SUPPRESS_CONTEXT.__set__(before, suppress)
    return end


def _last_cause(exc: BaseException) -> BaseException | None:
    seen = {id(exc)}
    while (cause := _CAUSE.__get__(exc)) is not None:
        if id(cause) in seen:  # the user's code has made a cycle
            return None
        exc = cause
        seen.add(id(exc))
    return exc
