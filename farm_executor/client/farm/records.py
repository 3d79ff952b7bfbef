"""What tasks log, handled by this program's own loggers.

This module owns which of it is wanted, and how a record is put together. It must not know how records travel, nor
which thread handles them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from farm_executor.client.farm.output import Source
from farm_executor.core.frames import Buffer, Frame
from farm_executor.core.levels import NUMBER, encode_levels
from farm_executor.data import payload
from farm_executor.errors import RemoteProtocolError

__all__ = ["Levels", "handle", "number_of", "records_of"]

MAX_TEXT = 64 * 1024  # characters of a value
MAX_VALUES = 100  # of a record
_NUMBERS = ("levelno", "lineno", "created", "msecs", "relativeCreated", "thread", "process")
_TEXTS = ("name", "levelname", "pathname", "filename", "module", "funcName", "threadName", "processName", "msg")
_PLAIN = frozenset((int, float, str, bool, type(None)))


class Levels:
    """The levels of this program's loggers.

    Attributes:
        version: Changes with each change that `look` finds.
        frame: The frame that tells a worker.

    Thread safety: `look` is called with the dispatch's lock held.
    """

    def __init__(self) -> None:
        self.version = 0
        self.frame: list[Buffer] = []
        self._levels: dict[str, int] = {}
        self._unchanged = object()  # a key of our own: each farm of the program looks for itself

    def look(self) -> None:
        """Look whether any has changed; this costs next to nothing if none has."""
        # Whenever any logger's level is set, or logging.disable called, logging empties the caches of all of its
        # loggers. So what we put into the root's is gone then. Without such a cache all are looked at each time.
        cache = getattr(logging.root, "_cache", None)
        if isinstance(cache, dict):
            if self._unchanged in cache:
                return
            cache[self._unchanged] = False
        levels = _levels()
        if levels != self._levels or not self.version:
            self.version += 1
            self._levels = levels
            self.frame = encode_levels(levels)


def _levels() -> dict[str, int]:
    # A copy, made in one step: other threads make loggers all the while.
    loggers = logging.root.manager.loggerDict.copy()
    levels = {
        name: found.level for name, found in loggers.items() if isinstance(found, logging.Logger) and found.level
    }
    return {"": logging.root.level, ".": logging.root.manager.disable, **levels}


def records_of(frame: Frame) -> list[dict[str, Any]]:
    """Return the records of a RECORDS frame.

    Raises:
        RemoteProtocolError: It has something else.
    """
    records = payload.loads_together(frame.body, frame.count)
    for record in records:
        if type(record) is not dict or len(record) > MAX_VALUES or not all(map(_is_sound, record, record.values())):
            raise RemoteProtocolError("a record that is not a dictionary of texts and numbers")
        if not all(type(record.get(name)) in (int, float) for name in ("levelno", "created")):
            raise RemoteProtocolError("a record without its level or time")
        if type(record.get("name")) is not str or type(record.get("msg")) is not str:
            raise RemoteProtocolError("a record without its logger or text")
    return records


def number_of(records: list[dict[str, Any]]) -> int | None:
    """Return how many records the worker has sent before these, and take it out of them; None if it does not say.

    Raises:
        RemoteProtocolError: It is not a number.
    """
    number = records[0].pop(NUMBER, None) if records else None
    if number is not None and (type(number) is not int or number < 0):
        raise RemoteProtocolError(f"records after {number!r:.100} others")
    return number


def _is_sound(name: Any, value: Any) -> bool:
    # What handlers and formatters compute with must be what they expect.
    if type(name) is not str or type(value) not in _PLAIN or (type(value) is str and len(value) > MAX_TEXT):
        return False
    kinds = (int, float, type(None)) if name in _NUMBERS else (str, type(None)) if name in _TEXTS else _PLAIN
    return type(value) in kinds


def handle(source: Source, task: int | None, records: list[dict[str, Any]], count: Callable[[], None]) -> None:
    """Have the loggers of the same names handle records.

    Raises:
        BaseException: A handler or filter of the user's has raised.
    """
    problem = None
    for values in records:
        try:
            count()
            # Looked at again: the level may have changed since the worker was told, or the worker may be wrong.
            logger = logging.getLogger(values["name"])
            if logger.isEnabledFor(int(values["levelno"])):
                where = {"farm_server": source.server, "farm_slot": source.slot, "farm_pid": source.pid}
                # Of a farm within a task, the innermost worker says where it comes from.
                record = logging.makeLogRecord(
                    {**where, "farm_task": task, **values, "args": None, "exc_info": None}
                )
                logger.handle(record)
        except BaseException as error:  # the user's code: the records that follow are handled all the same
            problem = error
    if problem is not None:
        raise problem
