"""What a server tells of itself: right, small, never falling, and nothing of what tasks are about."""

import json
import os
import signal
import time
import types

import pytest
from contract import tasks
from contract.gate import Gate
from hypothesis import given, settings
from hypothesis import strategies as st
from server.peers import SessionPeer
from server.processes import wait_until
from server.serving import KEY, Serving

from farm_executor import FarmExecutor, status
from farm_executor.core import census as shape
from farm_executor.core.census import WORKER_COLUMNS
from farm_executor.core.frames import FrameType
from farm_executor.core.messages import WorkerDied, to_json
from farm_executor.server import census as census_module
from farm_executor.server import machine as machine_module
from farm_executor.server.census import Census
from farm_executor.server.counts import Counts, cause_of
from farm_executor.server.machine import machine
from farm_executor.server.process import Figures
from farm_executor.server.sessions import Terms
from farm_executor.wire.versions import local_versions


@pytest.fixture(scope="module")
def serving():
    with Serving(workers=2) as serving:
        yield serving


def look(serving):
    return status(serving.host, serving.port, key=KEY)


def workers_of(data):
    return [dict(zip(data["workers"]["columns"], row)) for row in data["workers"]["rows"]]


def test_the_document_has_these_keys_and_types(serving):
    with FarmExecutor(serving.address, key=KEY, name="gridsearch") as farm:
        farm.submit(abs, 1).result()
        data = look(serving)
    assert list(data) == list(shape.Status._fields)
    assert data["farm_status"] == 2
    assert data["workers"]["columns"] == list(WORKER_COLUMNS)
    assert set(data["totals"]) == set(shape.Totals._fields)
    (session,) = data["sessions"]
    assert (session["label"], session["state"]) == ("gridsearch", "open")
    assert session["user"]
    assert session["host"] == data["host"]
    assert session["program"]
    assert data["now"] == pytest.approx(time.time(), abs=60)
    assert data["machine"]["cpus"] > 0
    json.dumps(data, allow_nan=False)


def test_tasks_are_counted_and_a_running_one_says_since_when(serving):
    with Gate() as gate, FarmExecutor(serving.address, key=KEY, max_workers=1) as farm:
        before = look(serving)["totals"]["tasks_begun"]
        for number in range(3):
            farm.submit(abs, number).result()
        since = time.perf_counter()
        held = farm.submit(tasks.pass_gate, gate.address)
        gate.wait_for_arrivals()
        (worker,) = workers_of(look(serving))
        waited = time.perf_counter() - since
        assert worker["state"] == "busy"
        assert 0 <= worker["running_for"] <= waited + 0.05
        assert worker["begun"] == 4
        assert worker["busy_seconds"] >= worker["running_for"]
        assert worker["memory"] is None or 1 <= worker["memory"] < 10_000
        assert worker["received"] > 0
        assert look(serving)["totals"]["tasks_begun"] == before + 4
        gate.open()
        held.result()
        wait_until(lambda: workers_of(look(serving))[0]["state"] == "idle", "the worker is idle")


def test_deaths_are_told_by_cause_and_no_counter_falls(serving):
    before = look(serving)["totals"]
    with FarmExecutor(serving.address, key=KEY, max_workers=1, max_attempts=1) as farm:
        pid = farm.submit(os.getpid).result()
        os.kill(pid, signal.SIGKILL)
        # By its pid: workers of the test before may still be ending.
        wait_until(lambda: pid in [death["pid"] for death in look(serving)["deaths"]], "its death is told")
        data = look(serving)
        assert data["totals"]["workers_ended"] != before["workers_ended"]
        (death,) = (death for death in data["deaths"] if death["pid"] == pid)
        assert death["cause"] in ("signal", "oom")
        assert death["code"] == -9
        assert death["peak"] > 0
        assert farm.submit(abs, -1).result() == 1
    wait_until(lambda: not look(serving)["sessions"], "the session is over")
    after = look(serving)["totals"]
    for name in ("sessions", "workers_started", "tasks_begun", "busy_seconds", "received", "sent"):
        assert after[name] >= before[name], name
    assert after["tasks_begun"] >= before["tasks_begun"] + 2


@pytest.mark.parametrize(
    ("report", "told", "cause"),
    [
        ({"code": 0}, False, "ended"),
        ({"code": 3}, False, "exit"),
        ({"code": 3}, True, "ended"),
        ({"code": -9}, True, "ended"),
        ({"code": -11}, False, "signal"),
        ({"code": -9, "oom": True}, False, "oom"),
        ({"code": -9, "oom": False}, False, "signal"),
        ({"code": -9, "killed": 3}, True, "killed"),
        ({"code": -9, "held": 3, "limit": 2}, False, "held"),
        ({"code": -9, "frozen": 3.0}, False, "frozen"),
    ],
)
def test_causes(report, told, cause):
    assert cause_of(WorkerDied(1, 1, 1, begun=0, **report), told=told) == cause


def test_the_client_says_what_waits_with_each_heartbeat(serving):
    with Gate() as gate, FarmExecutor(serving.address, key=KEY, max_workers=1, heartbeat=0.05) as farm:
        first = farm.submit(tasks.pass_gate, gate.address)
        gate.wait_for_arrivals()
        rest = [farm.submit(abs, number) for number in range(10)]
        farm.submit(len, 3).add_done_callback(lambda future: None)

        def told():
            (session,) = look(serving)["sessions"]
            farm_ = session.get("farm") or {}
            return farm_.get("queued", 0) + farm_.get("running", 0) == 12 and farm_["submitted"] == 12

        wait_until(told, "the client has told its queue")
        gate.open()
        first.result()
        assert [future.result() for future in rest] == list(range(10))

        def ended():
            farm_ = look(serving)["sessions"][0]["farm"]
            return (farm_.get("succeeded"), farm_.get("failed")) == (11, 1) and not farm_.get("queued")

        wait_until(ended, "the client has told how its calls ended")


def test_items_of_a_map_are_told_one_by_one(serving):
    with Gate() as gate, FarmExecutor(serving.address, key=KEY, max_workers=1, heartbeat=0.05) as farm:
        held = farm.submit(tasks.pass_gate, gate.address)
        gate.wait_for_arrivals()
        results = farm.map(abs, range(1000))
        wait_until(
            lambda: (look(serving)["sessions"][0].get("farm") or {}).get("submitted") == 1001, "all are told"
        )
        farm_ = look(serving)["sessions"][0]["farm"]
        assert farm_["queued"] + farm_["running"] == 1001
        gate.open()
        held.result()
        assert list(results) == list(range(1000))


@pytest.mark.parametrize(
    "body",
    [
        *(b"x", b"[]", b"3", b'{"queued": NaN}', b'{"queued": -1}', b'{"queued": true}', b'{"queued": 1.5}'),
        *(b'{"queued": "3"}', b'{"queued": 1' + b"0" * 400 + b"}", b"[" * 10_000, b"\xff\xfe"),
        b'{"queued": {"queued": 1}}',
    ],
    ids=lambda body: body[:20].decode("ascii", "replace"),
)
def test_a_client_that_says_nonsense_ends_its_own_session_and_no_other(serving, body):
    with SessionPeer(serving.address) as peer, SessionPeer(serving.address) as other:
        peer.send_frame(FrameType.PING, seq=1, body=body)
        peer.wait_for_end()
        other.send_frame(FrameType.PING, seq=1, body=b'{"queued": 3, "more": "than we know"}')
        assert other.receive().type is FrameType.PONG


def test_names_are_cut_and_cleaned(serving):
    with SessionPeer(serving.address, host="h\x1b]0;x\x07" + "y" * 500, user="\u202eu", program="p\n", label="l"):
        data = look(serving)
    (session,) = data["sessions"]
    for name in ("host", "user", "program", "label", "client"):
        assert session[name].isprintable()
        assert len(session[name]) <= 200


# -- the size and the cost ---------------------------------------------------------------------------------


class FakeWorker:
    stopped = False
    measured = None

    def __init__(self, pid):
        self.pid, self.slot, self.started = pid, 63, time.time() - 86_400
        self.looks = 0

    def figures(self):
        self.looks += 1
        return Figures(123_456, time.perf_counter() - 12.3, 86_399.123, 12_345_678, 12_345_678, True)


class FakeSession:
    number, client, connection, farm, opened = 3, "pid 1 at x", None, None, 0.0
    who = type("Who", (), {"host": "h", "user": "u", "program": "p", "label": ""})

    def __init__(self, workers):
        self.workers = {worker.pid: worker for worker in workers}


class FakeSessions(list):
    opened, draining = 3, False

    @property
    def workers(self):
        pairs = [(session, worker) for session in self for worker in session.workers.values()]
        return types.SimpleNamespace(everyone=lambda: pairs, counts=Counts())


def census_of(sessions):
    return Census(Terms("a", "", 64, local_versions(), (), "", False), FakeSessions(sessions))


def test_a_worker_takes_at_most_80_bytes(monkeypatch):
    monkeypatch.setattr(census_module, "private_bytes", lambda pid: 1_278_800 * 1024)
    monkeypatch.setattr(census_module, "_cpu_seconds", lambda pid: 86_399.1)
    few, many = [census_of([FakeSession([FakeWorker(1_234_000 + n) for n in range(count)])]) for count in (1, 101)]
    assert (len(many.encoded(2**22)) - len(few.encoded(2**22))) / 100 <= 80


def test_the_document_serves_all_who_ask_within_half_a_second(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(census_module.time, "monotonic", lambda: clock[0])
    worker = FakeWorker(os.getpid())
    census = census_of([FakeSession([worker])])
    first = census.encoded(2**20)
    clock[0] += 0.49
    assert census.encoded(2**20) is first
    assert worker.looks == 1
    clock[0] += 0.02
    assert census.encoded(2**20) is not first


def test_the_system_is_not_asked_again_of_a_worker_that_rests(monkeypatch):
    clock, asked = [100.0], []
    monkeypatch.setattr(census_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(census_module, "private_bytes", lambda pid: asked.append(pid) or 2**20 * len(asked))
    worker = FakeWorker(os.getpid())
    worker.begun, worker.since = 1, time.perf_counter()
    worker.figures = lambda: Figures(worker.begun, worker.since, 0.0, 0, 0, bool(worker.since))
    census = census_of([FakeSession([worker])])

    def memory_after(seconds):
        clock[0] += seconds
        return workers_of(json.loads(json.dumps(to_json(census.status(2**20)))))[0]["memory"]

    assert [memory_after(0.5), memory_after(0.5), memory_after(0.5)] == [1, 1, 2], "it works"
    worker.since = 0.0
    assert [memory_after(0.1), memory_after(9.0), memory_after(2.0)] == [3, 3, 4], "it rests"
    worker.begun = 2
    assert memory_after(0.1) == 5, "it has run something"


def test_nobody_looks_and_nothing_is_looked_at():
    worker = FakeWorker(os.getpid())
    census_of([FakeSession([worker])])
    assert not worker.looks


def test_what_has_no_room_is_left_out_with_its_workers():
    sessions = [FakeSession([FakeWorker(n)]) for n in range(50)]
    for number, session in enumerate(sessions):
        session.number = number
    data = census_of(sessions).status(2000)
    assert 0 < len(data.sessions) < 20
    assert len(data.workers.rows) == len(data.sessions)
    assert len(data.sessions) + data.sessions_left_out == 50
    assert data.totals.tasks_begun == 50 * 123_456, "totals leave nothing out"


# -- the machine -------------------------------------------------------------------------------------------


def test_a_control_group_limits_the_machine(tmp_path, monkeypatch):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "a" / "memory.max").write_text("1000000\n")
    (tmp_path / "a" / "memory.current").write_text("600000\n")
    (tmp_path / "a" / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    (inner / "memory.max").write_text("max\n")
    monkeypatch.setattr(machine_module, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine_module, "_cgroups", lambda: iter([inner, tmp_path / "a", tmp_path]))
    _, _, memory, available = machine()
    assert (memory, available) == (1_000_000, 500_000)


@given(st.binary(max_size=60))
@settings(max_examples=50, deadline=None)
def test_whatever_a_control_group_says_there_is_an_answer(tmp_path_factory, junk):
    folder = tmp_path_factory.mktemp("group")
    for name in ("memory.max", "memory.current", "memory.stat"):
        (folder / name).write_bytes(junk)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_module, "_cgroups", lambda: iter([folder]))
        assert machine()[0] > 0
