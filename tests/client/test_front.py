"""The front with a fake farm behind it: what is asked of the farm, and what its answers mean to the caller."""

from concurrent.futures import Future
from typing import NamedTuple

import pytest
from server.processes import wait_until

from farm_executor import FarmExecutor
from farm_executor.client.backing import Backing
from farm_executor.client.farm.statistics import FarmStatistics, ServerStatistics, WorkerStatistics
from farm_executor.client.launching import registry
from farm_executor.core.options import TaskOptions
from farm_executor.wire.address import Address, parse_address


class FakeServers:
    def __init__(self):
        self.added, self.removed, self.missing, self.waited = [], [], [], []
        self.gone = None

    def add(self, address, locate):
        self.added.append((address, locate(False)))

    def remove(self, address, *, drain):
        self.removed.append((address, drain))
        return self.gone

    def await_answers(self, timeout):
        self.waited.append(timeout)
        return self.missing

    def in_reach(self):
        return True

    def describe(self):
        return "fakes"


class FakeFarm:
    """A `protocol.Farm` whose tasks end at once, with their arguments."""

    counts_tasks = broken = False
    workers = 3

    def __init__(self):
        self.servers, self.said, self.ended = FakeServers(), [], True
        self.worker = WorkerStatistics(0, 1, 0, 0.0, outstanding=2)

    def start(self):
        self.said.append("start")

    def shutdown(self, *, cancel_futures=False):
        self.said.append(f"shutdown {cancel_futures}")

    def join(self, timeout=None):
        return self.ended

    def abort(self, reason):
        self.said.append(f"abort: {reason}")

    def abandon(self):
        self.said.append("abandon")

    def statistics(self):
        return FarmStatistics("open", (ServerStatistics("a:1", True, (self.worker,), ""),), queued=5, running=2)

    def prepare(self, fn):
        return fn

    def submit(self, fn, args, kwargs, options, *, goes_on=False, calls=1, before_settling=None):
        self.said.append(options)
        future = Future()
        future.set_result((fn, args, kwargs))
        return future

    def check_may_wait(self):
        self.said.append("may wait?")

    def broadcast(self, fn, args, options, *, persistent):
        raise NotImplementedError

    def forget(self, broadcast):
        raise NotImplementedError

    def kill(self, category, *, dry_run=False):
        self.said.append((category, dry_run))
        return 4

    def kill_one(self, future):
        return True

    def cancel_all(self):
        self.said.append("cancel all")

    def lead_until(self, done):
        raise NotImplementedError

    def nudge(self):
        raise NotImplementedError


@pytest.fixture
def farm(monkeypatch):
    fake = FakeFarm()
    monkeypatch.setattr(Backing, "make_engine", lambda self: fake)
    monkeypatch.setattr("farm_executor.client.lifetime.track", lambda engine: None)
    return fake


@pytest.fixture
def executor(farm):
    return FarmExecutor(["a:1"], max_attempts=2)


def test_nothing_is_started_before_it_is_needed(farm, executor):
    assert (executor.kill_tasks("x"), executor.kill(Future())) == (0, False)
    executor.cancel_all()
    assert executor.statistics().state == "new"
    assert farm.said == []


def test_a_view_s_options_go_with_its_tasks(farm, executor):
    assert executor.with_options(priority="high", category="c").submit(max, 1, default=2).result() == (
        max,
        (1,),
        {"default": 2},
    )
    start, options = farm.said
    assert start == "start"
    assert options == TaskOptions(priority=options.priority, category="c", max_attempts=2)
    assert options.priority > 0


def test_what_is_killed_is_the_farms_answer(farm, executor):
    executor.submit(abs)
    assert executor.kill_tasks("c", dry_run=True) == 4
    assert executor.kill(Future())
    assert farm.said[-1] == ("c", True)


def test_servers_are_added_and_removed_by_address(farm, executor):
    executor.submit(abs)
    other = parse_address("b:2")
    executor.add_server("b:2")
    executor.add_server("b:2")
    assert farm.servers.added == [(other, other)]
    with pytest.raises(ValueError, match="no server c:3"):
        executor.remove_server("c:3")
    farm.servers.gone = Future()
    with pytest.raises(TimeoutError, match="server b:2 still works after 0 s"):
        executor.remove_server("b:2", timeout=0)
    farm.servers.gone.set_result(None)
    executor.remove_server("b:2", drain=False)
    assert farm.servers.removed[-2:] == [(other, True), (other, False)]


def test_connect_names_the_servers_that_have_not_answered(farm, executor):
    executor.connect()
    farm.servers.missing = ["a:1 (no answer)", "b:2 (refused)"]
    with pytest.raises(TimeoutError, match=r"within 1.5 s: a:1 \(no answer\); b:2 \(refused\)"):
        executor.connect(1.5)
    assert farm.servers.waited == [None, 1.5]


def test_shutdown_says_what_it_has_not_waited_for(farm, executor):
    executor.submit(abs)
    farm.ended = False
    with pytest.raises(TimeoutError, match="after 0 s 1 tasks run and 6 wait"):
        executor.shutdown(timeout=0)
    executor.kill_workers()
    assert farm.said[-2:] == ["shutdown True", "abort: its workers were killed"]
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.add_server("b:2")


def test_other_libraries_find_how_many_workers_there_are(farm, executor):
    executor.submit(abs)
    assert executor._max_workers == 3
    assert not executor._broken


class Granted:
    """A source of servers that come and go, as a cluster's scheduler would be."""

    def __init__(self, address):
        self.address, self.said = address, []

    def look(self):
        self.said.append("look")
        return [
            (parse_address("127.0.0.1:1"), lambda lost: self.said.append("locate") or parse_address("127.0.0.1:1"))
        ]

    def watch(self, changed):
        self.said.append("watch")

    def attend(self, view, remove):
        assert view().state == "open"

    def let_go(self):
        self.said.append("let go")

    def end(self):
        self.said.append("end")

    def abandon(self):
        self.said.append("abandon")


class Cluster(NamedTuple):
    scheme: str = "cluster"

    def __str__(self):
        return "cluster://"


@pytest.mark.parametrize("every", [True, False])
def test_another_kind_of_servers_is_one_entry_in_the_registry(monkeypatch, every):
    made = []
    monkeypatch.setitem(registry, "cluster", lambda address, find_key: made.append(Granted(address)) or made[-1])
    with FarmExecutor([Address(every=every, grant=Cluster())]) as farm:
        future = farm.submit(abs, -1)
        (source,) = made
        wait_until(lambda: "locate" in source.said, "the granted server is dialled")
        assert "cluster://" in repr(farm)
        assert future.cancel()
    assert source.said[-2:] == ["let go", "end"]
