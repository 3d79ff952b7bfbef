"""The kernels on which the adapter's tests run: over threads, over an embedded farm, over two servers.

A test takes `kernel` and runs on each, or `farm_kernel` and runs on the latter two, where it needs what only a farm
can do. The kernel has two workers, and is the current one in every thread.
"""

import gc
import os
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from contract.gate import Gate

from farm_executor import FarmExecutor, lfarm, start_server
from farm_executor.lfarm.kernel import Kernel

KEY = b"the key of the lfarm suite's servers"
FARMS = ("embedded", "servers")
KINDS = ("threads", *FARMS)


@pytest.fixture(scope="session")
def addresses() -> Iterator[list[str]]:
    """The addresses of two servers with one worker each, whose workers can import the tests' modules."""
    tests = str(Path(__file__).parents[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", tests, prepend=os.pathsep)
        servers = [start_server("127.0.0.1", 0, background=True, workers=1, key=KEY) for _ in range(2)]
    with servers[0], servers[1]:
        yield [server.address for server in servers]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", FARMS if "farm_kernel" in metafunc.fixturenames else KINDS)


def make(kind: str, request: pytest.FixtureRequest) -> Kernel:
    """A kernel of that kind, which ends with its executor."""
    if kind == "threads":
        return Kernel(ThreadPoolExecutor(2), owned=True)
    if kind == "embedded":
        return Kernel(FarmExecutor(2), owned=True)
    return lfarm.make_kernel(request.getfixturevalue("addresses"), timeout=30, key=KEY)


@pytest.fixture
def kernel(kind: str, request: pytest.FixtureRequest) -> Iterator[Kernel]:
    if kind == "servers":
        request.getfixturevalue("addresses")  # before leaks are looked for
    request.getfixturevalue("no_leaks")
    made = make(kind, request)
    lfarm.set_kernel(made)
    yield made
    lfarm.set_kernel(None)
    made._owned = True
    made.end(wait=True)


@pytest.fixture
def farm_kernel(kernel: Kernel) -> Kernel:
    return kernel


@pytest.fixture
def gate(kernel: Kernel) -> Iterator[Gate]:
    """A closed gate; it opens before the kernel ends, whatever happens."""
    with Gate() as gate:
        yield gate


@pytest.fixture
def absent_module() -> Iterator[Callable[[str, str], types.ModuleType]]:
    """Makes modules that exist in this process alone, `absent_module(name, source)`."""
    made = []

    def make(name: str, source: str) -> types.ModuleType:
        module = types.ModuleType(name)
        sys.modules[name] = module
        made.append(name)
        exec(source, vars(module))
        return module

    yield make
    for name in made:
        del sys.modules[name]
    gc.collect()
