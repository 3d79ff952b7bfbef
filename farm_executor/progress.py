"""How far a `map` or a set of futures has come, shown as it goes.

This module owns the counting of calls that have ended, when that is shown, and the ways to show it. It must not
know how tasks are sent: those who run them say how many have ended.

The figures are shown by a thread of their own. So neither a slow terminal nor a callable of the user's holds up the
thread that settles futures, and floods of short calls cost one drawing in `INTERVAL`.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TextIO, TypeVar

from farm_executor.arguments import checked
from farm_executor.core.text import cut, name_of, one_line, width_of

__all__ = ["ProgressLike", "Show", "Tally", "as_completed", "shown", "tally_for", "wait"]

logger = logging.getLogger(__name__)

INTERVAL = 0.1  # seconds between two drawings, at least
MAX_LABEL = 200
MAX_BAR = 40  # columns
DEFAULT_WIDTH = 80  # columns, where the terminal does not tell

ProgressLike = bool | str | Callable[[int, int | None], object] | None
"""What ``progress=`` accepts: True, a label, a callable that is given how many calls have ended and of how many,
or None or False for nothing."""

T = TypeVar("T")


class Show(Protocol):
    """A way to show figures. Called by one thread."""

    def draw(self, done: int, failed: int, total: int | None) -> None:
        """Show these figures in place of those before."""

    def close(self) -> None:
        """Leave what has been drawn last."""


class Tally:
    """Counts calls that have ended, and has the figures shown until all have, or until it is told to stop.

    Args:
        show: How they are shown.
        total: How many calls there are; None if that is not known yet.

    Thread safety: any thread may call the methods; `stop` also at any point, such as from the garbage collector.
    """

    def __init__(self, show: Show, total: int | None) -> None:
        self._show = show
        self._total = total
        self._done = self._failed = self._expected = 0
        self._pending = False
        # Reentrant, as a signal handler may come at any point.
        self._alone = threading.RLock()
        # A queue whose `put` may interrupt itself, as an Event's `set` may not: the garbage collector closes
        # iterators at whatever point it runs, and their ends are told here. True stands for the end.
        self._news: SimpleQueue[bool] = SimpleQueue()
        self._thread = threading.Thread(target=self._watch, name="farm-executor-progress", daemon=True)
        self._thread.start()
        self._tell()

    def expect(self, calls: int) -> None:
        """Note that more calls have been submitted, for `complete`."""
        self._expected += calls

    def complete(self) -> None:
        """Note that no more calls will come than those expected."""
        if self._total != self._expected:
            self._total = self._expected
            self._tell()

    def add(self, ended: int, failed: int = 0) -> None:
        """Count calls that have ended, and how many of them have failed."""
        with self._alone:
            self._done += ended
            self._failed += failed
        self._tell()

    def correct(self, done: int, failed: int) -> None:
        """Set the figures, once they are known for certain."""
        with self._alone:
            self._done, self._failed = done, failed
        self._tell()

    def stop(self) -> None:
        """Have the figures shown a last time. Does not wait for that."""
        self._news.put(True)

    def finish(self) -> None:
        """Have the figures shown a last time, and wait until they are."""
        self.stop()
        if threading.current_thread() is not self._thread:  # as in a callable that iterates
            self._thread.join()

    def _tell(self) -> None:
        # One piece of news is enough. If another thread has just taken it, it reads the figures after this flag.
        if not self._pending:
            self._pending = True
            self._news.put(False)

    def _watch(self) -> None:
        draws = True
        over = False
        following = 0.0
        while not over:
            over = self._news.get()
            while not over and (rest := following - time.monotonic()) > 0:
                try:
                    over = self._news.get(timeout=rest)
                except Empty:
                    break
            self._pending = False  # before the figures are read, so that later ones are news again
            done, total = self._done, self._total
            over = over or done == total
            draws = draws and self._guarded(partial(self._show.draw, done, self._failed, total))
            following = time.monotonic() + INTERVAL
        if draws:
            self._guarded(self._show.close)

    def _guarded(self, call: Callable[[], None]) -> bool:
        """Return whether it went well: a bar must never cost a result."""
        try:
            call()
        except BaseException:  # a callable of the user's may even try to exit
            logger.warning("progress cannot be shown any more", exc_info=True)
            return False
        return True


def tally_for(
    progress: ProgressLike,
    label: Callable[..., Any] | str,
    total: int | None,
    also: Callable[[str], Show] | None = None,
) -> Tally | None:
    """Return a tally that is shown as ``progress`` says; None if nobody would see it.

    Args:
        progress: As checked by `arguments`.
        label: What the calls are, or their function, unless ``progress`` is a label.
        total: The number of calls; None if it is not known.
        also: Returns another way to show it, given what the calls are; None for no other.
    """
    if also is None and (progress is None or progress is False):
        return None
    text = progress if isinstance(progress, str) else label if isinstance(label, str) else name_of(label)
    text = one_line(text, MAX_LABEL)
    show = _show(progress, text, total)
    if also is not None:
        other = also(text)
        show = other if show is None else _Both(show, other)
    return None if show is None else Tally(show, total)


def _show(progress: ProgressLike, label: str, total: int | None) -> Show | None:
    if progress is None or progress is False:
        return None
    if callable(progress):
        return _Told(progress)
    file: TextIO | None = sys.stderr
    if not _is_seen(file):
        return None
    tqdm = _tqdm()
    return _Line(file, label) if tqdm is None else _Bar(tqdm, label, total)


# -- ways to show -------------------------------------------------------------------------------------


class _Told:
    """A callable of the user's, which is told only what is new."""

    def __init__(self, tell: Callable[[int, int | None], object]) -> None:
        self._tell = tell
        self._told: tuple[int, int | None] | None = None

    def draw(self, done: int, failed: int, total: int | None) -> None:
        if self._told != (done, total):
            self._told = done, total
            self._tell(done, total)

    def close(self) -> None:
        pass


class _Both:
    """Two ways at once; the second is the farm's own, and goes on when the user's fails."""

    def __init__(self, first: Show, second: Show) -> None:
        self._first: Show | None = first
        self._second = second

    def draw(self, done: int, failed: int, total: int | None) -> None:
        self._second.draw(done, failed, total)
        self._try(lambda first: first.draw(done, failed, total))

    def close(self) -> None:
        self._second.close()
        self._try(lambda first: first.close())

    def _try(self, call: Callable[[Show], None]) -> None:
        if self._first is None:
            return
        try:
            call(self._first)
        except BaseException:  # as in `Tally`
            self._first = None
            logger.warning("progress cannot be shown any more", exc_info=True)


class _Bar:
    """A bar of tqdm's: in a terminal, or a widget in a notebook."""

    def __init__(self, tqdm: Any, label: str, total: int | None) -> None:
        self._bar = tqdm(total=total, desc=label, unit=" calls", dynamic_ncols=True, smoothing=0.1)
        self._done = self._failed = 0

    def draw(self, done: int, failed: int, total: int | None) -> None:
        bar = self._bar
        if bar.total != total:  # a widget is told of it by `reset` alone, which begins from zero
            since, self._done = bar.start_t, 0
            bar.reset(total)
            bar.start_t = since
        if failed != self._failed:
            self._failed = failed
            bar.set_postfix_str(f"{failed:,} failed", refresh=False)
        bar.update(done - self._done)
        self._done = done

    def close(self) -> None:
        self._bar.close()


class _Line:
    """One line of a terminal, which is written over."""

    def __init__(self, file: Any, label: str) -> None:
        self._file = file
        self._label = label
        self._since = time.monotonic()
        self._blocks = "█░" if _can_be_written("█░", file) else "#-"
        self._drawn = 0  # columns

    def draw(self, done: int, failed: int, total: int | None) -> None:
        width = _columns(self._file) - 1  # a full line would wrap
        seconds = time.monotonic() - self._since
        text = line(self._label, done, failed, total, seconds, width, self._blocks)
        if not _can_be_written(text, self._file):
            text = text.encode("ascii", "replace").decode()
        # Spaces, not an escape sequence, wipe out the rest: not every terminal knows those.
        room = " " * max(min(self._drawn, width) - width_of(text), 0)
        self._drawn = width_of(text)
        self._file.write(f"\r{text}{room}")
        self._file.flush()

    def close(self) -> None:
        self._file.write("\n")
        self._file.flush()


def line(
    label: str, done: int, failed: int, total: int | None, seconds: float, width: int, blocks: str = "█░"
) -> str:
    """Return the figures as one line of at most ``width`` columns; ``blocks`` are what the bar is made of."""
    rate = done / seconds if seconds > 0 else 0.0
    parts = [f"{done:,}" if total is None else f"{done:,}/{total:,}"]
    if failed:
        parts.append(f"{failed:,} failed")
    parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
    if total is None or done >= total or not rate:  # a coarse clock may say that no time has passed
        parts.append(_duration(seconds))
    else:
        parts.append(f"{_duration((total - done) / rate)} left")
    figures = "  ".join(parts)
    head = f"{label} "
    if total:
        head += f"{done * 100 // total:3d}% "
        room = min(width - width_of(head) - len(figures) - 1, MAX_BAR)
        if room >= 5:
            filled = room * done // total
            head += blocks[0] * filled + blocks[1] * (room - filled) + " "
    return cut(head + figures, width)


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60, whole // 3600
    return f"{hours}:{minutes % 60:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _is_seen(file: TextIO | None) -> bool:
    """Whether somebody looks at what is written there. A log is not to be filled with bars."""
    try:
        return file is not None and (file.isatty() or _in_notebook())
    except ValueError:  # it has been closed
        return False


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def _tqdm() -> Any:
    """Return tqdm's class for this terminal or notebook; None if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a notebook without widgets: its bar is text then, as it is here
            from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm


def _columns(file: Any) -> int:
    try:
        columns = os.get_terminal_size(file.fileno()).columns
    except (OSError, ValueError):  # it has no descriptor, or is a notebook's
        columns = shutil.get_terminal_size((DEFAULT_WIDTH, 1)).columns
    return columns or DEFAULT_WIDTH


def _can_be_written(text: str, file: Any) -> bool:
    try:
        text.encode(getattr(file, "encoding", None) or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


# -- futures ------------------------------------------------------------------------------------------


def wait(
    fs: Iterable[Future[T]],
    timeout: float | None = None,
    return_when: str = concurrent.futures.ALL_COMPLETED,
    *,
    progress: ProgressLike = True,
) -> tuple[set[Future[T]], set[Future[T]]]:
    """Wait as `concurrent.futures.wait` does, and show how many of the futures are done.

    Args:
        fs: Futures, of any executors.
        timeout: Seconds to wait; None for ever.
        return_when: See `concurrent.futures.wait`.
        progress: See `FarmExecutor.map`.

    Returns:
        A named tuple ``(done, not_done)`` of the futures that are done and those that are not.
    """
    timeout, progress = checked("progress.wait", timeout=timeout, progress=progress)
    futures = set(fs)
    tally = _tally_of(futures, progress)
    try:
        return concurrent.futures.wait(futures, timeout, return_when)
    finally:
        _finish(tally, futures)


def as_completed(
    fs: Iterable[Future[T]], timeout: float | None = None, *, progress: ProgressLike = True
) -> Iterator[Future[T]]:
    """Yield futures as `concurrent.futures.as_completed` does, and show how many of them are done.

    Args:
        fs: Futures, of any executors.
        timeout: Seconds from this call until all must be done; None for ever.
        progress: See `FarmExecutor.map`.

    Raises:
        TimeoutError: Not all are done in time.
    """
    timeout, progress = checked("progress.as_completed", timeout=timeout, progress=progress)
    futures = set(fs)
    # Both now, and not with the first `next`: the time counts, and calls end, from here on.
    tally = _tally_of(futures, progress)
    completed = concurrent.futures.as_completed(futures, timeout)
    return completed if tally is None else shown(completed, tally, partial(_finish, tally, futures))


def shown(results: Iterator[T], tally: Tally, finish: Callable[[], None]) -> Iterator[T]:
    """Yield the results, and ``finish`` the tally before the iterator ends; if it is closed, only stop it."""
    try:
        yield from results
    except GeneratorExit:  # perhaps by the garbage collector, amid whatever this thread does
        tally.stop()
        raise
    except BaseException:
        finish()
        raise
    finish()


def _tally_of(futures: set[Future[T]], progress: ProgressLike) -> Tally | None:
    tally = tally_for(progress, "futures", len(futures))
    if tally is not None:

        def count(future: Future[T]) -> None:
            tally.add(1, _has_failed(future))

        for future in futures:
            future.add_done_callback(count)
    return tally


def _finish(tally: Tally | None, futures: set[Future[T]]) -> None:
    if tally is not None:
        # Callbacks may come a moment after a future is seen to be done.
        done = [future for future in futures if future.done()]
        tally.correct(len(done), sum(map(_has_failed, done)))
        tally.finish()


def _has_failed(future: Future[Any]) -> bool:
    return not future.cancelled() and future.exception() is not None
