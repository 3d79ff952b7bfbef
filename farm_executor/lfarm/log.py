"""lfarm's log level and stream, in the terms of the standard `logging`.

This module owns one handler of the logger "farm_executor", to which all modules of the package log, and nothing
else of `logging`: a program that configures `logging` itself does not need this.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any, Literal, TextIO

__all__ = ["log_level", "log_stream"]

_LEVELS = {"error": logging.ERROR, "info": logging.INFO}
_NAME = "farm_executor.lfarm"
_lock = threading.Lock()


def log_level(level: Literal["error", "info"]) -> None:
    """Log errors, or with "info" also other events, to the log stream.

    Tasks, results and keys are never logged.

    Raises:
        ValueError: There is no such level.
    """
    if not isinstance(level, str) or level not in _LEVELS:
        raise ValueError(f"the log level must be 'error' or 'info', not {level!r}")
    logger = logging.getLogger("farm_executor")
    _handler(logger)
    logger.setLevel(_LEVELS[level])


def log_stream(stream: TextIO) -> None:
    """Log to that stream from now on; to standard error if this is never called. The level stays as it is.

    Raises:
        TypeError: The stream cannot be written to.
    """
    if not callable(getattr(stream, "write", None)):
        raise TypeError(f"a log stream must have a method write; {type(stream).__qualname__} has none")
    _handler(logging.getLogger("farm_executor")).setStream(stream)


def _handler(logger: logging.Logger) -> logging.StreamHandler[Any]:
    with _lock:
        for handler in logger.handlers:
            if handler.name == _NAME and isinstance(handler, logging.StreamHandler):
                return handler
        ours = logging.StreamHandler(sys.stderr)
        ours.name = _NAME
        ours.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s", "%H:%M:%S"))
        logger.addHandler(ours)
        return ours
