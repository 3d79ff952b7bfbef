"""``farm-executor top``: how servers do, on a terminal that stays, or once.

This module owns the terminal: what it is told, its keys, and that it is as it was before when the command ends. It
must not know what a frame shows. There is no key that changes anything on a server.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from farm_executor.core.messages import to_json
from farm_executor.observe.frame import SORTS, Choices, Line, frame, shown_servers
from farm_executor.observe.model import Server, workers_of
from farm_executor.observe.watching import Watching
from farm_executor.wire.address import Address

__all__ = ["paint", "press", "top"]

MIN_INTERVAL, MAX_INTERVAL = 0.5, 60.0  # seconds; servers look at their workers twice a second at most
PATIENCE = 0.3  # seconds that a frame waits for answers; later ones are in the next
ONCE_HEIGHT = 10_000  # lines

SGR = dict(  # noqa: C408 - a table of names
    bold="1", dim="2", red="31", alarm="1;31", green="32", yellow="33", cyan="36", head="1;7", chosen="7"
)
_PLAIN = {"bold": "1", "head": "1;7", "chosen": "7"}  # what is not a colour

_ENTER = "\x1b[?1049h\x1b[?25l"  # the alternate screen, without a cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_KEYS = {b"\x1b[A": "up", b"\x1bOA": "up", b"k": "up", b"\x1b[B": "down", b"\x1bOB": "down", b"j": "down"}


def top(
    addresses: Sequence[Address],
    *,
    key_file: str | None,
    interval: float,
    timeout: float,
    once: bool,
    as_json: bool,
) -> bool:
    """Show how servers do until the user quits, or once; return whether all answer at the end.

    Args:
        addresses: The servers.
        key_file: See `client_key`; a monitor's is enough.
        interval: Seconds between two frames.
        timeout: Seconds for a connection to be made.
        once: Whether to print a table of what happens in one interval, and end.
        as_json: Whether to print a line of JSON for each server and interval.
    """
    interval = min(max(interval, MIN_INTERVAL), MAX_INTERVAL)
    watching = Watching(addresses, key_file, timeout)
    try:
        servers = list(watching.servers.values())
        if as_json:
            _print_json(watching, servers, interval, timeout, once)
        elif once or not _is_screen():
            watching.tick(timeout)
            time.sleep(interval)
            watching.tick(timeout)
            choices = Choices(live=False, blocks=_can_show_blocks(sys.stdout))
            lines = frame(servers, choices, _size(140, 40)[0], ONCE_HEIGHT, _clock())
            colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
            painted = paint(lines, colour=colour, plain=not sys.stdout.isatty())
            sys.stdout.write("".join(f"{text.rstrip()}\n" for text in painted))
        else:
            _stay(watching, servers, Choices(interval=interval, blocks=_can_show_blocks(sys.stdout)))
        return all(server.state in ("open", "draining") for server in servers)
    finally:
        watching.close()


def paint(lines: Sequence[Line], *, colour: bool, plain: bool = False) -> list[str]:
    """Return the lines as a terminal takes them; without colours, or plain, without styles either."""
    codes = {} if plain else SGR if colour else _PLAIN
    return ["".join(f"\x1b[{codes[s]}m{t}\x1b[0m" if s in codes else t for t, s in line) for line in lines]


def press(key: bytes, choices: Choices, servers: Sequence[Server]) -> bool:
    """Do what a key means; return whether to quit."""
    if choices.typing:
        if key in (b"\r", b"\n", b"\x1b"):
            choices.typing = False
            choices.filter = "" if key == b"\x1b" else choices.filter
        elif key in (b"\x7f", b"\b"):
            choices.filter = choices.filter[:-1]
        else:
            choices.filter += "".join(filter(str.isprintable, key.decode("utf-8", "replace")))[:50]
        choices.selected = 0
        return False
    shown = shown_servers(servers, choices)
    way = _KEYS.get(key)
    if key in (b"q", b"\x04"):
        return True
    if way is not None:
        opened = next((one for one in servers if one.name == choices.opened), None)
        last = len(shown) if opened is None else 0 if opened.status is None else len(workers_of(opened.status))
        choices.selected = min(max(choices.selected + (1 if way == "down" else -1), 0), max(last - 1, 0))
    elif key in (b"\r", b"\n") and not choices.opened and choices.selected < len(shown):
        choices.opened, choices.selected = shown[choices.selected].name, 0
    elif key == b"\x1b":
        choices.opened, choices.selected, choices.filter = "", 0, ""
    elif key == b"s":
        names = list(SORTS)
        choices.sort = names[(names.index(choices.sort) + 1) % len(names)]
    elif key == b"/":
        choices.typing, choices.opened = True, ""
    elif key == b"p":
        choices.paused = not choices.paused
    elif key in (b"+", b"="):
        choices.interval = min(choices.interval * 2, MAX_INTERVAL)
    elif key == b"-":
        choices.interval = max(choices.interval / 2, MIN_INTERVAL)
    return False


def _print_json(watching: Watching, servers: Sequence[Server], interval: float, timeout: float, once: bool) -> None:
    """Print what each server says, line by line, until the reader has gone."""
    while True:
        watching.tick(timeout)
        for server in servers:
            said: dict[str, Any] = {"address": server.name}
            if server.status is None or server.error:
                said["error"] = server.error or server.state
            else:
                said = {**to_json(server.status), "address": server.name, "listens": server.status.address}
            sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()
        if once:
            return
        time.sleep(interval)


def _stay(watching: Watching, servers: Sequence[Server], choices: Choices) -> None:
    with _screen() as wake:
        due = 0.0
        while True:
            if time.monotonic() >= due and not choices.paused:
                watching.tick(PATIENCE)
                due = time.monotonic() + choices.interval
            width, height = _size(80, 24)
            lines = frame(servers, choices, width, height, _clock())
            text = "\x1b[K\r\n".join(paint(lines, colour="NO_COLOR" not in os.environ))
            # In one write, as a synchronized update: no terminal shows half of it.
            sys.stdout.write(f"\x1b[?2026h\x1b[H{text}\x1b[K\x1b[J\x1b[?2026l")
            sys.stdout.flush()
            rest = max(due - time.monotonic(), 0.05) if not choices.paused else None
            ready, _, _ = select.select([0, wake], [], [], rest)
            if wake in ready:
                os.read(wake, 64)
            if 0 in ready:
                key = os.read(0, 16)
                if not key or press(key, choices, servers):
                    return


@contextlib.contextmanager
def _screen() -> Iterator[int]:
    """Take the terminal over, and give it back whatever happens; yield a descriptor that tells of its size.

    SIGTERM and SIGHUP end the command as Ctrl-C does.
    """
    import termios
    import tty

    before = termios.tcgetattr(0)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    numbers = (signal.SIGWINCH, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    wakes = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGWINCH, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        tty.setcbreak(0)
        sys.stdout.write(_ENTER)
        sys.stdout.flush()
        yield reader
    except OSError:  # the terminal has gone: there is nobody to tell
        raise KeyboardInterrupt from None
    finally:
        try:
            # A terminal that goes may be told of twice, and the second time must not interrupt what follows.
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()
        # What is left in the buffer must not fail once more at Python's end.
        except (OSError, ValueError, KeyboardInterrupt):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(0, termios.TCSADRAIN, before)
        signal.set_wakeup_fd(wakes)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _size(columns: int, lines: int) -> tuple[int, int]:
    """Return the terminal's size, or this one where it does not say; before 3.11 shutil lets zeros through."""
    size = shutil.get_terminal_size((columns, lines))
    return size.columns or columns, size.lines or lines


def _is_screen() -> bool:
    if sys.platform == "win32" or os.environ.get("TERM", "dumb") == "dumb":
        return False
    return sys.stdout.isatty() and sys.stdin is not None and sys.stdin.isatty()


def _can_show_blocks(file: TextIO) -> bool:
    try:
        "▏█".encode(file.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def _clock() -> str:
    return time.strftime("%H:%M:%S")
