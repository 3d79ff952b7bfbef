"""``farm-executor explain``: what a message means, and what to do about it, without a network or a browser.

This module owns how a text is found on the documentation's page of messages, which is shipped with the package. It
must not know what the messages are: the page does.
"""

from __future__ import annotations

import argparse
import functools
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

__all__ = ["EXAMPLES", "Entry", "add_arguments", "find", "main", "read"]

EXAMPLES = """\
    farm-executor explain WorkerLostError
    farm-executor explain "still dialling"
    python program.py 2>&1 | farm-executor explain"""

PAGE = "messages.md"
ANYTHING = "…"  # in an entry's text, for what differs from case to case
MOST = 3  # entries shown for one message
FEWEST = 10  # characters that a message and an entry must share: fewer are in nearly any line


class Entry(NamedTuple):
    """One message of the page.

    Attributes:
        kind: The class of the error, or the level of what is logged.
        text: The message, with an ellipsis for what differs from case to case; empty for the class as a whole.
        about: Paragraphs: what it means and what to do.
    """

    kind: str
    text: str
    about: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `main` reads."""
    several = (
        "a message or words of it, or the class of an error; without any, standard input is searched for messages"
    )
    parser.add_argument("text", nargs="*", help=several)


def main(options: argparse.Namespace) -> int:
    """Print what the page says of a message.

    Returns:
        0 if it says anything, 1 if not.
    """
    entries = read()
    text = " ".join(options.text)
    if text:
        found = find(text, entries)
    else:  # of a log: each message once, in the order in which they come
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # tasks may have written anything
        lines = sys.stdin.read().splitlines()
        found = list(dict.fromkeys(entry for line in lines for entry in _matching(line, entries)))
    for number, entry in enumerate(found):
        print(("\n" if number else "") + _shown(entry))
    if not found:
        print("the page of messages knows nothing of that kind; try fewer words", file=sys.stderr)
    return 0 if found else 1


def read() -> list[Entry]:
    """Read the page: the copy in the package, or in a checkout of the project the page itself."""
    page = resources.files(__package__) / PAGE
    if not page.is_file():
        page = Path(__file__).parents[1] / "docs" / "reference" / PAGE
    entries = []
    for section in re.split(r"^## ", page.read_text("utf-8"), flags=re.M)[1:]:
        kind, _, rest = section.partition("\n")
        head, *parts = re.split(r"^\(\S+\)=\n", rest, flags=re.M)
        general = _paragraphs(head)
        if kind.endswith("Error"):
            entries.append(Entry(kind, "", general))
        for part in parts:
            (fence,) = re.findall(r"\A`+", part)
            _, text, about = part.split(fence, 2)
            level = re.match(r" \((\w+)\)", about)
            own = _paragraphs(about[level.end() if level else 0 :].replace("\\\n", "\n\n"))
            entries.append(Entry(level[1] if level else kind, text.strip(), own or general))
    return entries


def _paragraphs(text: str) -> tuple[str, ...]:
    text = re.sub(r"\[([^]]*)\]\(((?:\.\./)?)([^)]*)\)", _spelled_out, text).replace("**", "")
    return tuple(" ".join(part.split()) for part in text.split("\n\n") if part.strip())


def _spelled_out(link: re.Match[str]) -> str:
    """A link as a terminal shows it: its words and the page, which is in the project's folder docs."""
    words, upwards, page = link.groups()
    return f"{words} (docs/{'' if upwards else 'reference/'}{page})"


def find(text: str, entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries that explain a message, the best first: those that it is, or else has words of."""
    if found := _matching(text, entries):
        return found
    words = set(re.findall(r"\w{2,}", text.lower()))
    shared = {entry: len(words & set(re.findall(r"\w{2,}", entry.text.lower()))) for entry in entries}
    most = max(shared.values(), default=0)
    if most * 2 < len(words) or not most:
        return []
    # Of those with as many of the words, the shortest has the least else.
    return sorted((entry for entry in entries if shared[entry] == most), key=lambda entry: len(entry.text))[:MOST]


def _matching(line: str, entries: Sequence[Entry]) -> list[Entry]:
    """The entries whose text the line holds, if they say nearly as much of it as the best; else its class's own."""
    line = " ".join(line.split())
    lower = line.lower()
    lengths = {entry: len(entry.text.replace(ANYTHING, "")) for entry in entries if _is_in(entry, lower)}
    best = max(lengths.values(), default=0)
    if best < FEWEST:
        return [
            entry for entry in entries if not entry.text and re.search(rf"\b{entry.kind}\b", line, re.IGNORECASE)
        ]
    return sorted((entry for entry in lengths if lengths[entry] * 2 > best), key=lambda entry: -lengths[entry])[
        :MOST
    ]


def _is_in(entry: Entry, line: str) -> bool:
    """Whether a line in lower case holds the text of an entry, with anything where that has an ellipsis."""
    # Not by a regular expression: where one does not match a long line, it tries each place for each ellipsis.
    place = 0
    for part in entry.text.lower().split(ANYTHING):
        part = " ".join(part.split())
        found = line.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return True


def _shown(entry: Entry) -> str:
    width = min(shutil.get_terminal_size().columns, 100)
    fill = functools.partial(textwrap.fill, width=width, break_on_hyphens=False, break_long_words=False)
    title = fill(f"{entry.kind}: {entry.text}".removesuffix(": "), subsequent_indent="    ")
    return "\n".join([title, *(fill(part, initial_indent="  ", subsequent_indent="  ") for part in entry.about)])
