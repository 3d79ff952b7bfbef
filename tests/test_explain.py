"""``farm-executor explain`` finds what the page of messages says of a text."""

import argparse
import io
import sys

import messages
import pytest

from farm_executor import cli, explain

ENTRIES = explain.read()


def _found(text):
    return [(entry.kind, entry.text) for entry in explain.find(text, ENTRIES)]


def test_it_reads_every_entry_of_the_page():
    """Each class's own, and each message's."""
    page = messages.PAGE.read_text("utf-8")

    assert len(ENTRIES) == page.count(")=\n") + len(messages.ERRORS)
    assert all(entry.about or entry.kind in ("WARNING", "ERROR") for entry in ENTRIES)


@pytest.mark.parametrize(
    ("line", "kind", "text"),
    [
        (
            "farm_executor.errors.AuthenticationError: others may read the key file open.key: make it yours alone "
            "with chmod 600 open.key",
            "AuthenticationError",
            "others may read … …: make it yours alone with chmod 600 …",
        ),
        (
            "the worker was killed by signal 9 (SIGKILL, perhaps by the system for want of memory) while it ran",
            "WorkerLostError",
            "the worker was killed by signal 9 (SIGKILL, perhaps by the system for want of memory)",
        ),
        (
            "2026-11-28 WARNING farm_executor.client: farm_executor: still dialling server=hostA:1 seconds=5",
            "WARNING",
            "farm_executor: still dialling",
        ),
    ],
)
def test_a_message_is_found_within_the_line_that_has_it(line, kind, text):
    assert _found(line) == [(kind, text)]


@pytest.mark.parametrize("line", ["x" * 300_000, "the worker was lost on server shared object " * 7_000])
def test_a_long_line_takes_no_time_without_end(line):
    """For patterns with several ellipses it took time that grew with a power of the line's length."""
    _found(line)


def test_a_log_may_hold_any_bytes(monkeypatch, capsys):
    log = b"\xff\xfe farm_executor: still dialling server=\xff\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(log), "utf-8"))
    assert cli.main(["explain"]) == 0
    assert "still dialling" in capsys.readouterr().out


def test_words_of_a_message_find_it():
    assert ("WARNING", "farm_executor: still dialling") in _found("dialling still")


def test_a_class_is_explained_as_a_whole():
    assert _found("WorkerLostError") == [("WorkerLostError", "")]
    assert _found("farm_executor.errors.FarmFullError")[0] == ("FarmFullError", "")


def test_what_is_not_on_the_page_is_not_explained():
    assert _found("ZeroDivisionError: division by zero") == []
    assert _found("") == []


def test_every_message_finds_itself():
    """With what differs from case to case put in; those of a few letters are in too much else."""
    said = {entry: entry.text.replace("…", "hostA:11111") for entry in ENTRIES if len(entry.text) > 40}

    assert [text for entry, text in said.items() if entry not in explain.find(text, ENTRIES)] == []


def test_links_are_spelled_out(capsys):
    assert explain.main(argparse.Namespace(text=["still", "dialling"])) == 0
    out = capsys.readouterr().out

    assert out.startswith("WARNING: farm_executor: still dialling\n  ")
    assert "(docs/how-to/when-something-goes-wrong.md#nothing-happens)" in out
    assert "](" not in out


def test_a_programs_output_is_searched(capsys, monkeypatch):
    log = "hello\nworker lost server=a\nTypeError: no\nworker lost server=b\nhint: others may read the key file k: "
    monkeypatch.setattr(sys, "stdin", io.StringIO(log + "make it yours alone with chmod 600 k\n"))

    assert cli.main(["explain"]) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if line and not line.startswith(" ")]

    assert [head.partition(":")[0] for head in heads] == ["WARNING", "AuthenticationError"]


def test_nothing_found_is_said(capsys):
    assert cli.main(["explain", "xyzzy"]) == 1
    assert "knows nothing" in capsys.readouterr().err
