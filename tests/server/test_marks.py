"""How a worker finds out what its tasks have written, while another process reads it."""

import os
import struct

import pytest

from farm_executor.core.reader import FrameReader
from farm_executor.server import marks
from farm_executor.server.marks import STDOUT, Counts, Marks
from farm_executor.server.progress import BEGUN, Progress

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a server needs fork")


class Worker:
    """A worker's marks, and the server that reads its pipes, step by step."""

    def __init__(self):
        self.pipes = os.pipe(), os.pipe()
        self.counts = Counts()
        self.marks = Marks(self.counts, (self.pipes[0][0], self.pipes[1][0]))
        self.progress = Progress()
        self.total = 0

    def run(self, seq, data):
        self.marks.begin()
        self.progress.cells[BEGUN] = seq
        os.write(self.pipes[0][1], data)

    def said(self):
        """The marks of standard output: task, begin and end."""
        found = []
        for frame in FrameReader().receive_data(b"".join(self.marks.take(keep=False))):
            found += [(seq, begin, end) for seq, begin, _, end, _ in struct.iter_unpack("<5Q", frame.body)]
        return found

    def close(self):
        for pipe in self.pipes:
            os.close(pipe[0])
            os.close(pipe[1])
        self.progress.close()


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.close()


def read(worker):
    data = os.read(worker.pipes[0][0], 1000)
    worker.total += len(data)
    worker.counts.set_read(STDOUT, worker.total)


def test_what_waits_in_the_pipe_counts_as_what_has_been_read_does(worker):
    worker.run(0, b"one\n")
    worker.marks.end(worker.progress.cells)
    read(worker)
    worker.run(1, b"three\n")
    read(worker)
    worker.marks.end(worker.progress.cells)
    worker.run(2, b"")
    worker.marks.end(worker.progress.cells)
    assert worker.said() == [(0, 0, 4), (1, 4, 10)]


def test_a_mark_of_much_is_sent_before_more_is_written(worker):
    for seq in range(marks.MUCH // 1000):
        worker.run(seq, b"x" * 1000)
        read(worker)
        assert not worker.marks.end(worker.progress.cells)
    worker.run(99, b"x" * 1000)
    assert worker.marks.end(worker.progress.cells)
    assert len(worker.said()) == marks.MUCH // 1000 + 1
    worker.run(100, b"x")
    assert not worker.marks.end(worker.progress.cells)


def test_a_server_that_gets_no_processor_between_reading_and_counting_is_waited_for(worker, monkeypatch):
    """For as long as it takes: nothing else tells what has been written."""
    worker.run(0, b"one\n")
    slept = []
    with worker.counts.changing:
        data = os.read(worker.pipes[0][0], 1000)

        def sleep(seconds):
            slept.append(seconds)
            if sum(slept) > 5:
                worker.counts.set_read(STDOUT, len(data))
                worker.counts.changing.__exit__(None, None, None)

        monkeypatch.setattr(marks.time, "sleep", sleep)
        worker.marks.end(worker.progress.cells)
    assert worker.said() == [(0, 0, 4)]
    assert len(slept) < 2000, "and not in haste"


def test_a_server_that_stands_still_is_not_waited_for_without_an_end(worker, monkeypatch):
    slept = []
    monkeypatch.setattr(marks.time, "sleep", slept.append)
    worker.run(0, b"one\n")
    with worker.counts.changing:
        worker.marks.end(worker.progress.cells)
    assert 15 < sum(slept) < 40, "two streams"
