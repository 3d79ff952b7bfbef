"""Bytes become lines, whatever the pieces they come in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_executor.core.lines import MAX_LINE, Lines


def fed(*pieces):
    """All lines of a stream that comes in these pieces, its unfinished last one included."""
    lines, found, offset = Lines(), [], 0
    for piece in pieces:
        found += lines.feed(offset, piece)
        offset += len(piece)
    return found + lines.end()


@given(st.text(st.characters(blacklist_characters="\r", codec="utf-8")), st.lists(st.integers(0, 100)))
def test_the_pieces_do_not_matter(text, sizes):
    data = text.encode()
    pieces, start = [], 0
    for size in sizes:
        pieces.append(data[start : start + size])
        start += size
    lines = text.split("\n")
    assert fed(*pieces, data[start:]) == (lines if lines[-1] else lines[:-1])


def test_only_a_newline_ends_a_line():
    text = "a\x0bb\x0cc\x1cd\x1de\x85f\u2028g"
    assert fed(f"{text}\n".encode()) == [text]


def test_bytes_that_are_not_utf8_are_replaced():
    assert fed(b"\xff\xc3", b"\xa4\n\xe2\x82") == ["\ufffd\u00e4", "\ufffd"]


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        ((b"10%\r20%\r30%\n",), ["30%"]),
        ((b"\r10%", b"\r20%", b"\r30%\n"), ["30%"]),
        ((b"10%\r", b"20%\r"), ["20%"]),
        ((b"dos\r", b"\n", b"line\r\n"), ["dos", "line"]),
        ((b"\r\r", b"\r"), []),
    ],
)
def test_of_a_line_that_is_written_over_the_last_state_is_shown(pieces, shown):
    assert fed(*pieces) == shown


def test_a_progress_bar_takes_no_more_memory_than_one_state():
    lines = Lines()
    for step in range(1000):
        assert lines.feed(10 * step, b"%8d%%\r" % step) == []
    assert lines.end() == ["     999%"]


def test_a_line_without_end_comes_in_pieces():
    assert [len(line) for line in fed(b"x" * (2 * MAX_LINE + 10), b"\n")] == [MAX_LINE, MAX_LINE, 10]


def test_what_is_missing_is_said_where_it_is():
    lines = Lines()
    assert lines.feed(0, b"one\nhalf") == ["one"]
    assert lines.feed(20, b"three\n") == ["half", "[12 bytes lost]", "three"]
    assert lines.feed(30, b"") == ["[4 bytes lost]"], "a piece may only say where the stream has come to"
    assert lines.offset == 30


def test_what_has_come_before_is_not_shown_twice():
    lines = Lines()
    lines.feed(0, b"one\n")
    assert lines.feed(0, b"one\ntwo\n") == ["two"]
