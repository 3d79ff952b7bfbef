"""Parcels: the files of modules, read and packed for workers that ask."""

import queue
import zlib

import pytest
from server.processes import DEADLINE

from farm_executor.client.farm import parcels as module
from farm_executor.client.farm.parcels import Parcels
from farm_executor.core.shipment import MODULE, decode_contents
from farm_executor.data.modules import Place


@pytest.fixture
def answers():
    parcels, answers = Parcels(), queue.SimpleQueue()
    yield lambda name, places: (
        parcels.ask(name, "", places, lambda *answer: answers.put(answer)),
        answers.get(timeout=DEADLINE),
    )[1]
    parcels.close()


def test_a_worker_is_answered_whatever_fails(answers, tmp_path, monkeypatch, caplog):
    """Its task would wait for ever."""
    monkeypatch.setattr(module, "files_of", lambda *args: 1 / 0)
    files, reason = answers("own", {"own": Place(MODULE, (str(tmp_path / "own.py"),))})
    assert files is None
    assert "ZeroDivisionError" in reason
    assert "a module could not be sent" in caplog.text


def test_what_is_sent_along_is_bounded_in_all(answers, tmp_path, monkeypatch):
    """A worker refuses a larger answer, and with it the connection."""
    monkeypatch.setattr(module, "MAX_ALL_ALONG", 25)
    names = ["first", "second", "third", "fourth"]
    places = {}
    for name in names:
        path = tmp_path / f"{name}.py"
        path.write_text("x = 12345\n")
        places[name] = Place(MODULE, (str(path),))
    monkeypatch.setattr(module, "_referred_to", lambda *args: names[1:])
    (head, *data), _ = answers("first", places)
    assert [contents.name for contents in decode_contents(head)] == names[:3]
    assert len(data) == 3


def test_of_a_file_that_grows_no_more_is_read_than_was_checked(answers, tmp_path, monkeypatch):
    path = tmp_path / "grows.py"
    path.write_text("x = 1\n")
    real = Parcels._watch

    def grow(self, name, path):
        real(self, name, path)
        with open(path, "a") as file:
            file.write("y = 2\n" * 1000)

    monkeypatch.setattr(Parcels, "_watch", grow)
    (head, data), _ = answers("grows", {"grows": Place(MODULE, (str(path),))})
    assert decode_contents(head)[0].files == [("grows.py", 6)]
    assert zlib.decompress(data) == b"x = 1\n"
