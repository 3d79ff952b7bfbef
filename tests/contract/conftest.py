"""One contract, many executors: the rows on which every test of this folder runs.

A test takes `executor` (two workers) or `executor_factory`, and runs once per row. What only some executors promise
is a capability: a test marked `@pytest.mark.needs("by_value")` runs on the rows that have it. The tests themselves
know no executor by name.
"""

import contextlib
import gc
import multiprocessing
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest
from contract.gate import Gate
from engines.alone import ON

SERVERS = "FARM_EXECUTOR_TESTS_SERVERS"
"""An environment variable: the addresses of two such servers that run already, with a comma in between."""
KEY = b"the key of the contract suite's servers"

# What an executor may promise beyond what all of them do.
CAPABILITIES = {
    "isolates": "a task has a copy of its arguments and its own globals; what does not pickle fails that task only",
    "by_value": "functions and classes that cannot be imported by name",
    "keeps_chain": "the task's own __cause__ and __context__ come back as raised",
    "rebuilds": "exceptions whose __init__ does not take their args come back as themselves",
    "chunks": "map checks and uses chunksize",
    "buffers": "map takes buffersize",
    "recycles": "max_tasks_per_child",
    "recycles_under_load": "no task is lost when workers reach that limit (the process pool hangs: gh-115634)",
    "notifies": "wait() hears of what shutdown(cancel_futures=True) cancels (the pools tell nobody)",
    "closes_in_parallel": "several threads may call shutdown at once (the process pool raises)",
    "shares_managers": "tasks may use objects of the client's multiprocessing.Manager",
    "survives": "a task that cannot be delivered costs that task only",
}


@dataclass(frozen=True)
class Row:
    """One executor under test: how it is made, what it can, and the fixtures that go around it, outermost first."""

    name: str
    make: Callable[..., Executor]
    can: frozenset[str]
    fixtures: tuple[str, ...] = ()


def make_thread_pool(request: pytest.FixtureRequest, max_workers: int | None, **options: Any) -> Executor:
    return ThreadPoolExecutor(max_workers, **options)


def make_process_pool(request: pytest.FixtureRequest, max_workers: int | None, **options: Any) -> Executor:
    context = request.getfixturevalue("fork_server")
    return ProcessPoolExecutor(max_workers, mp_context=context, **options)


def make_embedded_farm(request: pytest.FixtureRequest, max_workers: int | None, **options: Any) -> Executor:
    from farm_executor import FarmExecutor

    return FarmExecutor(max_workers=max_workers, **options)


def make_farm_of_servers(request: pytest.FixtureRequest, max_workers: int | None, **options: Any) -> Executor:
    from farm_executor import FarmExecutor

    addresses = request.getfixturevalue("two_servers")
    # The embedded farm is led, this one not: the contract is the same.
    return FarmExecutor(addresses, max_workers=max_workers, key=KEY, **{"caller_leads": False, **options})


def make_farm_on_a_cluster(request: pytest.FixtureRequest, max_workers: int | None, **options: Any) -> Executor:
    from farm_executor import FarmExecutor

    placed = request.getfixturevalue("placed")
    return FarmExecutor(placed.get(max_workers, placed[2]), max_workers=max_workers, **options)


BUFFERS = {"buffers"} if sys.version_info >= (3, 14) else set()
RECYCLES = {"recycles"} if sys.version_info >= (3, 11) else set()

THREADS = {"by_value", "keeps_chain", "rebuilds", "closes_in_parallel", "shares_managers"}
PROCESSES = {"isolates", "chunks", "shares_managers"}
FARM = set(CAPABILITIES)

ROWS = (
    Row("thread", make_thread_pool, frozenset(THREADS | BUFFERS), ("no_leaks",)),
    Row("process", make_process_pool, frozenset(PROCESSES | BUFFERS | RECYCLES), ("fork_server", "no_leaks")),
    Row("farm-embedded", make_embedded_farm, frozenset(FARM), ("no_leaks",)),
    Row("farm-servers", make_farm_of_servers, frozenset(FARM), ("two_servers", "no_leaks")),
)
# Where `tests/engines` has started one, and the row is asked for; with "-engine", the engine carries all bytes.
ON_CLUSTERS = tuple(
    Row(f"farm-{kind}", make_farm_on_a_cluster, frozenset(FARM - {"shares_managers"}), ("placed", "no_leaks"))
    for kind in ("dask", "dask-engine", "ray", "ray-engine", "slurm")
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*capabilities): runs on the executors of the contract that have them")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "row" not in metafunc.fixturenames:
        return
    needed = {name for mark in metafunc.definition.iter_markers("needs") for name in mark.args}
    unknown = needed - set(CAPABILITIES)
    assert not unknown, f"no such capability: {unknown}"
    chosen = (metafunc.config.getoption("--rows") or ",".join(row.name for row in ROWS)).split(",")
    assert {row.name for row in (*ROWS, *ON_CLUSTERS)} >= set(chosen), f"no such row: {chosen}"
    rows = [row for row in (*ROWS, *ON_CLUSTERS) if needed <= row.can and row.name in chosen]
    metafunc.parametrize("row", rows, ids=[row.name for row in rows])


@pytest.fixture
def executor_factory(row: Row, request: pytest.FixtureRequest) -> Iterator[Callable[..., Executor]]:
    """Makes executors of the row's kind, `executor_factory(max_workers=2, **options)`; shut down at the end."""
    for fixture in row.fixtures:
        request.getfixturevalue(fixture)
    made: list[weakref.ref[Executor]] = []  # weak, for a test may drop its executor without a shutdown

    def make(max_workers: int | None = 2, **options: Any) -> Executor:
        executor = row.make(request, max_workers, **options)
        made.append(weakref.ref(executor))
        return executor

    yield make
    for reference in made:
        if (executor := reference()) is not None:
            executor.shutdown(wait=True, cancel_futures=True)


@pytest.fixture
def executor(executor_factory: Callable[..., Executor]) -> Executor:
    return executor_factory()


@pytest.fixture
def gate(executor_factory: Callable[..., Executor]) -> Iterator[Gate]:
    """A closed gate. It asks for the factory so as to open before the executors are shut down, whatever happens."""
    with Gate() as gate:
        yield gate


@pytest.fixture(scope="session")
def two_servers() -> Iterator[list[str]]:
    """The addresses of two servers with one worker each, whose workers can import the tests' modules."""
    if started := os.environ.get(SERVERS):
        yield started.split(",")
        return
    with start_two_servers() as addresses:
        yield addresses


@contextlib.contextmanager
def start_two_servers() -> Iterator[list[str]]:
    """Start such servers, for as long as the block lasts."""
    from farm_executor import start_server

    tests = str(Path(__file__).parents[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", tests, prepend=os.pathsep)
        servers = [start_server("127.0.0.1", 0, background=True, workers=1, key=KEY) for _ in range(2)]
    with servers[0], servers[1]:
        yield [server.address for server in servers]


@pytest.fixture(scope="session")
def servers_on_a_cluster() -> Iterator[Callable[[str], list[Any]]]:
    """Servers that a cluster holds, for executors with one worker and with two, who are on two "nodes"."""
    if not (cluster := os.environ.get(ON)):
        pytest.skip("run by one of tests/engines/*_cluster.py")
    from engines.placed import Placed

    kept: dict[str, list[Any]] = {}

    def servers(via: str) -> list[Any]:
        if via not in kept:
            options = f"per=1{'&via=' if via else ''}{via}"
            kept[via] = [Placed(f"{cluster}?workers={workers}&{options}", workers) for workers in (1, 2)]
        return kept[via]

    yield servers
    for each in [each for servers in kept.values() for each in servers][::-1]:
        each.release()


@pytest.fixture
def placed(servers_on_a_cluster: Callable[[str], list[Any]], row: Row) -> dict[int, str]:
    """Their addresses, by the number of workers."""
    _, kind, *via = row.name.split("-")
    assert os.environ[ON].partition(":")[0] == kind, "that is another cluster"
    found = servers_on_a_cluster("".join(via))
    for each in found:
        each.wait()
    return {workers: each.address for workers, each in enumerate(found, 1)}


@pytest.fixture(scope="session")
def fork_server() -> Iterator[BaseContext]:
    """The context for process pools and managers: not "fork", for pytest's process may have threads.

    Its helper processes start here, outside of any test, and end with the session.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "contract.tasks"])  # pytest is everybody's __main__
    resource_tracker.ensure_running()
    forkserver.ensure_running()
    yield context
    gc.collect()
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
