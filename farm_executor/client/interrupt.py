"""Ctrl-C comes between two deeds, not within one.

Python raises KeyboardInterrupt in the main thread at whatever instruction that has reached. Where this is in the
middle of changing what other threads share, nobody can tell afterwards what has been done. `HeldBack` makes it
wait. This module knows nothing of what is done meanwhile.
"""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

__all__ = ["HeldBack", "let_go"]

# What `signal.signal` calls; to wrap handlers into enums, as that does, would cost ten times as much.
_set_handler: Callable[[int, Any], Any] = getattr(importlib.import_module("_signal"), "signal", signal.signal)
_INTERRUPT = int(signal.SIGINT)

_held: list[HeldBack] = []  # the main thread's, the outermost first


def let_go() -> None:
    """In a forked child: the main thread may have been held back, and the child's main thread is another one."""
    if _held:
        _set_handler(_INTERRUPT, _held[0]._original)
        _held.clear()


class HeldBack:
    """While this context lasts, an interrupt waits for its end, or for `passing`.

    Only the main thread is ever interrupted; in the others this has no effect. It holds back what the handler of
    SIGINT that is installed would do, whichever that is, and other signals not at all.

    Attributes:
        passing: Whether an interrupt may come now: set it around what may be left at any moment.
    """

    __slots__ = ("_came", "_original", "passing")

    def __init__(self) -> None:
        self._original: Any = None
        self._came: tuple[FrameType | None] | None = None
        self.passing = False

    def __enter__(self) -> HeldBack:
        if threading.current_thread() is threading.main_thread():
            try:
                original = _set_handler(_INTERRUPT, self._on_signal)
            except ValueError:  # another interpreter than the main one: it is never interrupted
                return self
            if callable(original):
                self._original = original
                _held.append(self)
            else:  # nobody is told of it in Python, or it was not set from there
                _set_handler(_INTERRUPT, signal.SIG_DFL if original is None else original)
        return self

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.passing and self._original is not None:
            self.passing = False
            self._original(signum, frame)
        else:
            self._came = (frame,)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        original = self._original
        if original is not None:
            _held.remove(self)
            _set_handler(_INTERRUPT, original)
            if self._came is not None:
                original(_INTERRUPT, *self._came)
