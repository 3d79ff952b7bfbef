"""The log records of tasks that cannot be told for long: a bounded number, and what is lost is said."""

import logging

import pytest

from farm_executor.core.frames import FrameType
from farm_executor.core.reader import FrameReader
from farm_executor.data import payload
from farm_executor.server import records as module
from farm_executor.server.records import Records


@pytest.fixture
def records(monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 50)
    monkeypatch.setattr(logging.Logger, "callHandlers", logging.Logger.callHandlers)  # put back afterwards
    records = Records(lambda: 7, lambda: None)
    records.install()
    return records


def told(records):
    """Those of the next frames, and how many each frame says have been before."""
    found, numbers = [], []
    for frame in FrameReader().receive_data(b"".join(bytes(buffer) for buffer in records.take())):
        assert (frame.type, frame.seq) == (FrameType.RECORDS, 7)
        some = payload.loads_together(frame.body, frame.count)
        numbers.append(some[0]["farm_number"])
        found += [record["msg"] for record in some]
    return found, numbers


def test_what_exceeds_the_limit_is_lost_and_said_where_it_is_missing(records):
    logger = logging.getLogger("records.of.tests")
    logger.propagate = False
    for number in range(1000):
        logger.warning("%d", number)
    found, numbers = told(records)
    assert found[:-1] == [str(number) for number in range(50)]
    assert found[-1] == "950 log records were lost while the client could not be reached"
    logger.warning("after")
    assert told(records) == (["after"], [51])
    assert numbers == [0]
    assert not records.waiting
