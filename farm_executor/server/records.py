"""What tasks log, until it is told to the client.

This module owns which records go there, in which form, and what the levels of loggers are. It must not send, nor
know what the client does with them.

A record goes to the client if nothing here handles it: a task, or an initializer, that has set up handlers of its
own keeps them. So it is looked at where a logger has found it enabled and is about to call its handlers; a handler
on the root would make `logging.basicConfig` do nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from farm_executor.core.frames import Buffer, FrameType, encode_frame
from farm_executor.core.levels import NUMBER
from farm_executor.data import payload

__all__ = ["Levels", "Records"]

SECONDS = 0.02  # between two sendings, but for what comes with results, and for warnings
MOST = 256  # records in one frame
RATE = 10_000  # records a second; a task that logs more waits
MAX_TEXT = 16 * 1024  # characters
MAX_VALUE = 1000  # characters of what is not plain
MAX_EXTRAS = 50
MAX_BYTES = 512 * 1024  # of one frame, roughly
MAX_WAITING = 20_000  # records, as while the connection is broken; what exceeds them is lost
_TEXTS = ("name", "levelname", "pathname", "filename", "module", "funcName", "threadName", "processName")
_NUMBERS = ("levelno", "lineno", "created", "msecs", "relativeCreated", "thread", "process")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_HUGE = 1 << 63
_PLAIN = (int, float, str, bool, type(None))


class Records:
    """The records that have not been told.

    Args:
        seq: Returns the number of the task that runs.
        told: Called after each record: it may be time to send.

    Attributes:
        waiting: The records that have not been told, with the numbers of their tasks.

    Thread safety: all methods may be called from any thread, and from a signal handler.
    """

    def __init__(self, seq: Callable[[], int], told: Callable[[], None]) -> None:
        self._seq = seq
        self._on_record = told
        self.waiting: deque[tuple[int, dict[str, Any]]] = deque()
        self._told = 0.0
        self._urgent = False
        self._pid = os.getpid()
        self._begun, self._count = 0.0, 0  # of the present second
        self._lost = 0
        self._sent = 0

    @property
    def due(self) -> bool:
        """Whether it is time to."""
        if not self.waiting:
            return False
        return self._urgent or len(self.waiting) >= MOST or time.perf_counter() - self._told >= SECONDS

    def install(self) -> None:
        """Take the records of this process's loggers from now on."""
        call_handlers = logging.Logger.callHandlers

        def forward(logger: logging.Logger, record: logging.LogRecord) -> None:
            if os.getpid() != self._pid or _is_handled(logger):
                call_handlers(logger, record)
            else:
                self._take(record)

        logging.Logger.callHandlers = forward  # type: ignore[method-assign, assignment]

    def _take(self, record: logging.LogRecord) -> None:
        if len(self.waiting) >= MAX_WAITING:
            self._lost += 1
            return
        self.waiting.append((self._seq() & (1 << 64) - 1, _portable(record)))
        # A warning may be the last that is heard of a process.
        self._urgent = self._urgent or record.levelno >= logging.WARNING
        self._on_record()
        # Lost records are worse than slow ones: who floods the client waits for it, roughly.
        now = time.perf_counter()
        if now - self._begun >= 1.0:
            self._begun, self._count = now, 0
        self._count += 1
        ahead = self._count / RATE - (now - self._begun)
        if ahead > 0.01:
            time.sleep(ahead)

    def take(self) -> list[Buffer]:
        """Return the frames that tell everything."""
        self._told, self._urgent = time.perf_counter(), False
        if self._lost:
            lost, self._lost = self._lost, 0
            text = f"{lost} log records were lost while the client could not be reached"
            record = logging.makeLogRecord({"name": __name__, "levelno": 30, "levelname": "WARNING", "msg": text})
            self.waiting.append((self._seq() & (1 << 64) - 1, _portable(record)))
        frames: list[Buffer] = []
        while self.waiting:
            some: list[dict[str, Any]] = []
            seq, size = self.waiting[0][0], 0
            try:
                while self.waiting[0][0] == seq and len(some) < MOST and size < MAX_BYTES:
                    some.append(self.waiting.popleft()[1])
                    size += sum([len(value) for value in some[-1].values() if type(value) is str])
            except IndexError:  # that was all, or another thread is faster
                pass
            if some:
                # Those of a frame arrive together or not at all. The next one shows how many have not.
                some[0][NUMBER] = self._sent
                self._sent += len(some)
                body = payload.dumps_together(some)
                frames += encode_frame(FrameType.RECORDS, count=len(some), seq=seq, body=body)
        return frames


class Levels:
    """The levels of this process's loggers, as the client wants them."""

    def __init__(self) -> None:
        self._set: Mapping[str, int] = {}

    def set(self, levels: Mapping[str, int]) -> None:
        """Set those that have changed: a task may have set others itself."""
        for name, level in {**dict.fromkeys(self._set, 0), **levels}.items():
            if self._set.get(name, 0) == level and name in self._set:
                continue
            if name == ".":
                logging.disable(level)
            else:
                logging.getLogger(name or None).setLevel(level)
        self._set = dict(levels)


def _is_handled(logger: logging.Logger) -> bool:
    found: logging.Logger | None = logger
    while found is not None:
        for handler in found.handlers:
            # What libraries add so that nothing is said of a missing one is no handler.
            if not isinstance(handler, logging.NullHandler):
                return True
        found = found.parent if found.propagate else None
    return False


def _portable(record: logging.LogRecord) -> dict[str, Any]:
    """Return the record as builtin values."""
    # A factory of the task's may have made anything of these, and the client computes with them.
    told: dict[str, Any] = {name: str(getattr(record, name, ""))[:MAX_VALUE] for name in _TEXTS}
    told.update({name: _number(getattr(record, name, 0)) for name in _NUMBERS})
    told["taskName"] = _plain(getattr(record, "taskName", None))
    try:
        told["msg"] = record.getMessage()[:MAX_TEXT]
    except Exception as error:  # a wrong format: there, its error would say nothing of the task
        told["msg"] = f"{_plain(record.msg)} % {_plain(record.args)}: {type(error).__name__}"
    text = record.exc_text
    if record.exc_info and not text:
        try:
            text = logging.Formatter().formatException(record.exc_info)
        except Exception as error:  # an exception whose own methods fail
            text = f"{type(error).__name__} while the exception was formatted"
    told["exc_text"] = None if text is None else str(text)[-MAX_TEXT:]
    told["stack_info"] = None if record.stack_info is None else str(record.stack_info)[-MAX_TEXT:]
    extras = [name for name in vars(record) if name not in _STANDARD and type(name) is str]
    for name in extras[:MAX_EXTRAS]:
        told[name[:MAX_VALUE]] = _plain(vars(record)[name])
    return told


def _number(value: Any) -> float:
    return value if type(value) in (int, float) and -_HUGE < value < _HUGE else 0


def _plain(value: Any) -> Any:
    if type(value) in _PLAIN and not (type(value) is int and not -_HUGE < value < _HUGE):
        return value[:MAX_VALUE] if type(value) is str else value
    try:
        return repr(value)[:MAX_VALUE]
    except Exception:
        return f"<{type(value).__name__}>"
