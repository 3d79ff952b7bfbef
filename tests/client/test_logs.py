"""What tasks log is handled by the program's own loggers."""

import logging
import os
import re

import pytest
from client import log_tasks as tasks
from contract.gate import DEADLINE, Gate
from faults.proxy import Proxy
from server.processes import wait_until
from server.serving import KEY, Serving

from farm_executor import FarmExecutor, WorkerLostError, lfarm, start_server
from farm_executor.client.farm import hearing, voice
from farm_executor.client.farm.records import records_of
from farm_executor.core.frames import Frame, FrameType
from farm_executor.core.levels import decode_levels, encode_levels
from farm_executor.data import payload
from farm_executor.errors import RemoteProtocolError

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a server needs fork"),
    pytest.mark.usefixtures("no_leaks"),
]
NAME = "tasks.of.tests"


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """On a busy machine a record may take longer than a program would have to wait for it."""
    monkeypatch.setattr(hearing, "PATIENCE", DEADLINE)
    monkeypatch.setattr(voice, "STUCK_SECONDS", DEADLINE)


@pytest.fixture(scope="module")
def server():
    with start_server("127.0.0.1", 0, background=True, workers=1) as server:
        yield server


@pytest.fixture(params=["embedded", "served"])
def farm(request, server):
    with FarmExecutor(None if request.param == "embedded" else server.address, max_workers=1) as farm:
        yield farm


@pytest.fixture
def records():
    """Those that reach the program's logger, whose level is DEBUG."""
    seen = []
    handler = logging.Handler()
    handler.emit = seen.append
    logger = logging.getLogger(NAME)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield seen
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def texts(records):
    return [record.getMessage() for record in records]


def test_it_is_there_before_the_result_with_where_it_comes_from(farm, records):
    future = farm.submit(tasks.log, logging.INFO, "%s and %d", "text", 5, extra={"user": "me"})
    future.result(DEADLINE)
    (record,) = records
    assert record.getMessage() == "text and 5"
    assert (record.name, record.levelno, record.levelname, record.funcName) == (NAME, 20, "INFO", "log")
    assert (record.user, record.farm_slot, record.farm_pid) == ("me", 0, record.process)
    assert record.process != os.getpid()
    assert isinstance(record.farm_task, int)
    assert record.farm_server


def test_many_come_in_order_and_each_of_its_task(farm, records):
    futures = [farm.submit(tasks.log_many, 3) for _ in range(200)]
    for future in futures:
        future.result(DEADLINE)
    assert texts(records) == ["0", "1", "2"] * 200
    ids = [record.farm_task for record in records]
    assert ids == sorted(ids)
    assert len(set(ids)) == 200


def test_none_of_a_flood_is_lost(farm, records):
    farm.submit(tasks.log_many, 5000).result(DEADLINE)
    assert texts(records) == [str(number) for number in range(5000)]


def test_it_comes_while_the_task_runs(farm, records):
    with Gate() as gate:
        future = farm.submit(tasks.log_then_pass, gate.address)
        wait_until(lambda: texts(records) == ["at the gate"], "the record")
        gate.open()
        future.result(DEADLINE)


def test_levels_are_the_programs_also_when_they_change(farm, records):
    logger = logging.getLogger(NAME)
    for level, expected in [(logging.ERROR, []), (logging.INFO, ["now"]), (logging.NOTSET, [])]:
        records.clear()
        logger.setLevel(level)
        farm.submit(tasks.log, logging.INFO, "now").result(DEADLINE)
        assert texts(records) == expected
        assert farm.submit(tasks.level_of, NAME).result(DEADLINE) == (level, 0)
    logging.disable(logging.CRITICAL)
    try:
        assert farm.submit(tasks.level_of, NAME).result(DEADLINE)[1] == logging.CRITICAL
    finally:
        logging.disable(logging.NOTSET)
    assert farm.submit(tasks.level_of, NAME).result(DEADLINE)[1] == 0


def test_a_task_that_runs_is_told_of_a_change(server, records):
    with FarmExecutor(server.address, heartbeat=0.05) as farm:
        future = farm.submit(tasks.wait_for_level, NAME, 15)
        logging.getLogger(NAME).setLevel(15)
        assert future.result(DEADLINE) == "told"


def test_two_farms_see_the_same_change(server, records):
    with FarmExecutor(server.address) as one, FarmExecutor(server.address) as other:
        for level in (15, 25):
            logging.getLogger(NAME).setLevel(level)
            for farm in (one, other):
                assert farm.submit(tasks.level_of, NAME).result(DEADLINE)[0] == level


def test_a_level_that_a_task_sets_stays_until_the_programs_changes(farm, records):
    farm.submit(tasks.set_level, "others.of.tests", 7).result(DEADLINE)
    logging.getLogger(NAME).setLevel(15)
    assert farm.submit(tasks.level_of, "others.of.tests").result(DEADLINE)[0] == 7


def test_a_disabled_record_costs_no_byte(server, records):
    logging.getLogger(NAME).setLevel(logging.ERROR)
    with FarmExecutor(server.address) as farm:

        def size():
            farm.submit(tasks.log, logging.WARNING, "x" * 1000).result(DEADLINE)
            (connection,) = farm._engine._crew.connections()
            return connection.bytes_received

        sizes = [size() for _ in range(3)]
    assert sizes[2] - sizes[1] < 200


def test_exceptions_come_as_text_and_extras_as_plain_values(farm, records):
    farm.submit(tasks.log_failure).result(DEADLINE)
    (record,) = records
    assert record.getMessage() == "it failed"
    assert "ValueError: of the task" in record.exc_text
    assert "ValueError: of the task" in logging.Formatter().format(record)
    assert (record.where, record.number) == ("{'a': 1}", 5)


def test_what_cannot_be_shown_harms_nobody(farm, records):
    for task in (tasks.log_badly, tasks.log_unshowable, tasks.log_from_a_factory):
        farm.submit(task).result(DEADLINE)
    assert len(records) == 3
    assert "apples" in records[0].getMessage()
    assert (records[1].thing, records[1].huge) == ("<Unshowable>", str(1 << 100))
    assert (records[2].created, records[2].levelname) == (0, "5")
    for record in records:
        logging.Formatter("%(asctime)s %(levelname)s %(message)s").format(record)


def test_handlers_of_the_task_keep_theirs(server, records, capfd):
    with FarmExecutor(server.address, initializer=tasks.set_up_handlers, output="forward") as farm:
        farm.submit(tasks.log, logging.WARNING, "hello").result(DEADLINE)
    assert not records
    assert "kept hello" in capfd.readouterr().err


def test_an_initializers_records_come_and_are_no_tasks(server, records):
    with FarmExecutor(server.address, initializer=tasks.log, initargs=(logging.WARNING, "setting up")) as farm:
        farm.submit(abs, 1).result(DEADLINE)
    assert (texts(records), records[0].farm_task) == (["setting up"], None)


def test_with_logs_server_nothing_comes(server, records, capfd):
    with FarmExecutor(server.address, logs="server", output="forward") as farm:
        farm.submit(tasks.log, logging.WARNING, "stays").result(DEADLINE)
        farm.submit(tasks.log, logging.INFO, "vanishes").result(DEADLINE)
    assert not records
    assert "stays" in capfd.readouterr().err


def test_a_forked_childs_go_the_old_way(server, records, capfd):
    with FarmExecutor(server.address, output="forward") as farm:
        farm.submit(tasks.log_in_a_fork).result(DEADLINE)
    assert not records
    assert "from a child" in capfd.readouterr().err


def test_signal_handlers_may_log_and_report(farm, records):
    count = farm.submit(tasks.log_in_a_signal_handler, 50).result(DEADLINE)
    assert count >= 50
    said = texts(records)
    assert said.count("in the handler") == count
    assert set(said) == {"in the handler", "in the task"}


def test_the_last_words_of_a_worker_come(farm, records):
    with pytest.raises(WorkerLostError):
        farm.with_options(max_attempts=1).submit(tasks.log_and_die).result(DEADLINE)
    assert texts(records) == ["last words"]


def test_those_of_a_farm_within_a_task_come_once_from_the_innermost_worker(farm, records):
    farm.submit(tasks.log_in_a_farm_of_its_own).result(DEADLINE)
    (record,) = records
    assert record.getMessage() == "from within"
    assert record.farm_pid == record.process


def test_a_handler_that_raises_is_logged(farm, records, caplog):
    handler = logging.Handler()
    handler.emit = lambda record: 1 / 0
    logging.getLogger(NAME).addHandler(handler)
    try:
        farm.submit(tasks.log, logging.WARNING, "one").result(DEADLINE)
    finally:
        logging.getLogger(NAME).removeHandler(handler)
    assert "ZeroDivisionError" in caplog.text
    assert texts(records) == ["one"]


def test_views_and_lfarm(server, records):
    with lfarm.make_kernel([server.address], timeout=DEADLINE) as kernel, lfarm.use_kernel(kernel):
        lfarm.pmap(tasks.log, [logging.WARNING] * 3, ["a", "b", "c"])
    assert sorted(texts(records)) == ["a", "b", "c"]


def test_over_a_resumed_connection(server, records):
    with Proxy(server.address) as proxy, FarmExecutor(proxy.address, heartbeat=0.2) as farm:
        farm.submit(tasks.log, logging.WARNING, "before").result(DEADLINE)
        proxy.cut()
        logging.getLogger(NAME).setLevel(logging.INFO)
        farm.submit(tasks.log, logging.INFO, "after").result(DEADLINE)
        farm.submit(tasks.log, logging.DEBUG, "never").result(DEADLINE)
    assert texts(records) == ["before", "after"]


def test_of_a_long_cut_a_bounded_number_comes_and_the_rest_is_said(records, caplog, tmp_path):
    few = "import farm_executor.server.records as records\nrecords.MAX_WAITING = 100"
    with (
        Serving(workers=1, before=few) as server,
        Proxy(server.address) as proxy,
        FarmExecutor(proxy.address, key=KEY, heartbeat=0.2, resume_timeout=60) as farm,
        Gate() as gate,
    ):
        future = farm.submit(tasks.log_when_passed, gate.address, 1000, str(tmp_path / "logged"))
        gate.wait_for_arrivals()
        proxy.stall()
        proxy.cut()
        gate.open()
        wait_until((tmp_path / "logged").exists, "all to be logged")
        proxy.flow()
        future.result(DEADLINE)
        farm.submit(tasks.log, logging.WARNING, "after").result(DEADLINE)
    *numbers, after = texts(records)
    assert after == "after"
    assert list(map(int, numbers)) == sorted(map(int, numbers))
    # Those before the cut was noticed may have been on their way, and are said at the next.
    said = re.findall(r"([0-9]+) log records were lost|log records lost count=([0-9]+)", caplog.text)
    assert len(numbers) >= 100
    assert len(numbers) + sum(int(first or second) for first, second in said) == 1000


@pytest.mark.parametrize("logs", [None, 5, "foo", "Forward"])
def test_other_values_are_refused(logs):
    with pytest.raises((TypeError, ValueError), match='logs must be "forward" or "server"'):
        FarmExecutor(logs=logs)


GOOD = {"name": "a", "levelno": 30, "created": 1.0, "msg": "text"}


@pytest.mark.parametrize(
    "records",
    [
        [5],
        [[]],
        [{}],
        [{**GOOD, "levelno": "30"}],
        [{**GOOD, "name": None}],
        [{**GOOD, "msg": 5}],
        [{**GOOD, "extra": [1]}],
        [{**GOOD, 5: 1}],
        [{**GOOD, "lineno": "x"}],
        [{**GOOD, "msg": "x" * 100_000}],
        [{**GOOD, **{f"x{n}": n for n in range(200)}}],
        [GOOD, GOOD],
        {"a": 1},
    ],
)
def test_records_that_are_none_are_an_error_of_the_peer(records):
    with pytest.raises(RemoteProtocolError):
        records_of(Frame(FrameType.RECORDS, count=1, body=payload.dumps_together(records)))


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"5", b"\xff", b'{"a": "x"}', b'{"a": -1}', b'{"a": true}', b"[" * 9999]
)
def test_levels_that_are_none_are_an_error_of_the_peer(body):
    with pytest.raises(RemoteProtocolError):
        decode_levels(Frame(FrameType.LEVELS, body=body))


def test_levels_are_read_as_they_were_encoded():
    levels = {"": 30, ".": 0, "a.b": 10}
    frame = encode_levels({**levels, "x" * 1000: 10, "negative": -5})[0]
    assert decode_levels(Frame(FrameType.LEVELS, body=bytes(frame)[16:])) == levels
