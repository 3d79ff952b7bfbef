"""The page of messages has every error and warning that the package has now."""

import ast
import re

import messages


def test_the_page_is_what_would_be_written():
    assert messages.PAGE.read_text("utf-8") == messages.written(), "run: python tests/messages.py"


def test_every_error_and_every_advice_is_of_something_that_there_is():
    """Advice about a text or an event that has gone would never be read."""
    page = messages.PAGE.read_text("utf-8")
    events = {row[0].strip("`") for row in messages.rows_of(messages.REFERENCE / "logging.md")}
    texts = re.findall(r"^`(.*?)`", page, re.M)

    assert [event for event in messages.EVENTS if event not in events] == []
    assert [start for start in messages.ABOUT_ONE if not any(text.startswith(start) for text in texts)] == []


def test_the_errors_of_pythons_own_classes_are_in_the_source():
    said = set()
    for path in messages.PACKAGE.rglob("*.py"):
        said |= {messages.text_of(node) for node in ast.walk(ast.parse(path.read_text("utf-8")))}
    pieces = [piece for text in messages.OF_PYTHON for piece in text.split("…") if len(piece) > 10]

    assert len(pieces) >= len(messages.OF_PYTHON)
    assert [piece for piece in pieces if not any(piece in text for text in said)] == []


def test_anchors_are_of_one_message_each():
    anchors = re.findall(r"^\((\S+)\)=$", messages.PAGE.read_text("utf-8"), re.M)

    assert len(anchors) > 100
    assert len(set(anchors)) == len(anchors)


def test_what_differs_from_case_to_case_is_an_ellipsis():
    (call,) = ast.parse('f"no key for {server}: copy " + where').body

    assert messages.text_of(call.value) == "no key for …: copy …"
