"""The standard library's executor tests of the interpreter that runs this, and how they are bound to farms.

Each class is bound to an embedded farm, and to one over two servers that the tests, and their scripts, start.

Nothing of CPython is copied: its test classes are imported, and the executor they test is put in their place.
Importing this module needs `test.test_concurrent_futures`, which some builds of Python leave out.
"""

import gc
import importlib
import logging
import multiprocessing
import pkgutil
import sys
import unittest
from types import ModuleType
from typing import Any
from unittest import mock

import own_servers
from conformance.tables import BOUND, DEADLOCK_OUTCOMES, EXCLUDED, NOT_BOUND_MODULES
from test import support
from test.support.script_helper import assert_python_ok

from farm_executor import FarmExecutor
from farm_executor.client.farm.future import FarmFuture

PACKAGE = "test.test_concurrent_futures"


def load_modules() -> list[ModuleType]:
    """The modules of the suite: one up to Python 3.11, a package's since."""
    package = importlib.import_module(PACKAGE)
    if not hasattr(package, "__path__"):
        return [package]
    names = [info.name for info in pkgutil.iter_modules(package.__path__) if info.name not in NOT_BOUND_MODULES]
    return [importlib.import_module(f"{PACKAGE}.{name}") for name in names]


MODULES = load_modules()


def find(name: str) -> Any:
    """The class of the suite of that name, as its own module has it."""
    for module in MODULES:
        found = vars(module).get(name)
        if found is not None and found.__module__ == module.__name__:
            return found
    raise LookupError(f"{PACKAGE} of Python {sys.version} has no {name}")


def tests_of(cls: type) -> list[str]:
    return [name for name in dir(cls) if name.startswith("test_") and callable(getattr(cls, name))]


def classes_with_tests() -> dict[str, type]:
    """Every class of the suite that has a test written in its body: those made by crossing have none."""
    return {
        cls.__name__: cls
        for module in MODULES
        for cls in vars(module).values()
        if isinstance(cls, type) and cls.__module__ == module.__name__
        if any(name.startswith("test_") for name in vars(cls))
    }


class FarmTestCase(find("BaseTestCase")):  # type: ignore[misc]
    """The suite's base class, for which a thread or a dead child process left behind is a failure."""

    def setUp(self) -> None:
        support.environment_altered = False
        super().setUp()

    def tearDown(self) -> None:
        gc.collect()  # the suite counts thread objects, also of threads that have ended
        super().tearDown()
        self.assertFalse(support.environment_altered, "threads or dead processes were left behind")


class FarmMixin(find("ExecutorMixin")):  # type: ignore[misc]
    """What the suite crosses its tests with, for a farm."""

    executor_type = FarmExecutor

    def get_context(self) -> Any:
        """A context for those tests that pass one: the farm ignores it. Managers start fastest from this one."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pytest"])
        return context

    def create_event(self) -> Any:
        """An event that tasks can be given (asked for since Python 3.14)."""
        manager = self.get_context().Manager()
        self.addCleanup(manager.shutdown)
        return manager.Event()


class OwnServersMixin(FarmMixin):
    """The same, over servers that are started by whoever makes the executor."""

    executor_type = own_servers.FarmExecutor
    import_of_scripts = own_servers.IMPORT

    def setUp(self) -> None:
        super().setUp()
        if self._testMethodName == "test_cancel_futures":
            # Nothing is kept for a server that has yet to answer, as it may never do so.
            self.executor.connect(60.0)


class ScriptsMixin:
    """The scripts of the shutdown tests import the executor by its class's name: from the farm's package."""

    import_of_scripts = "from farm_executor import FarmExecutor"

    def setUp(self) -> None:
        module = sys.modules[find("ExecutorShutdownTest").__module__]
        patch = mock.patch.object(module, "assert_python_ok", self._run_script)
        patch.start()
        self.addCleanup(patch.stop)  # type: ignore[attr-defined]
        super().setUp()  # type: ignore[misc]

    def _run_script(self, flag: str, script: str) -> Any:
        path = f"import sys; sys.path[:] = {sys.path!r}\n"  # it runs isolated, and the package may not be installed
        theirs = "from concurrent.futures import FarmExecutor"
        return assert_python_ok(flag, path + script.replace(theirs, self.import_of_scripts))


class OutcomesMixin:
    """Each deadlock test asserts one exception: for the tests in the table, the farm's documented one."""

    TIMEOUT = 60.0

    def assertRaises(self, expected: type[BaseException], *args: Any, **kwargs: Any) -> Any:
        outcome, _ = DEADLOCK_OUTCOMES.get(self._testMethodName, (expected, ""))  # type: ignore[attr-defined]
        return super().assertRaises(outcome, *args, **kwargs)  # type: ignore[misc]

    def _fail_on_deadlock(self, executor: FarmExecutor) -> None:
        self.fail("the farm hangs")  # type: ignore[attr-defined]


class FarmFutureMixin:
    """FutureTests, with each future of the module made by the farm's class."""

    def setUp(self) -> None:
        # The tests look for the class's name in messages.
        future_type = type("Future", (FarmFuture,), {})
        module = sys.modules[find("FutureTests").__module__]
        maker = sys.modules[module.create_future.__module__]
        for patched in {module, maker}:
            self._patch(patched, "Future", future_type)
        for name, future in list(vars(module).items()):
            if name.endswith("_FUTURE"):
                ours = module.create_future(future._state, future._exception, future._result)
                self._patch(module, name, ours)
        # They read what is logged from stderr, where it does not go while pytest has handlers of its own.
        logger = logging.getLogger("concurrent.futures")
        logger.addHandler(logging.lastResort)  # type: ignore[arg-type]
        self.addCleanup(logger.removeHandler, logging.lastResort)  # type: ignore[attr-defined]
        super().setUp()  # type: ignore[misc]

    def _patch(self, module: ModuleType, name: str, value: object) -> None:
        patch = mock.patch.object(module, name, value)
        patch.start()
        self.addCleanup(patch.stop)  # type: ignore[attr-defined]


CROSSED_WITH: dict[str, tuple[type, ...]] = {
    "ProcessPoolShutdownTest": (ScriptsMixin,),
    "ExecutorDeadlockTest": (OutcomesMixin,),
    "FutureTests": (FarmFutureMixin,),
}
"""What comes before a bound class in its crossing, where that is not nothing."""

WITHOUT_EXECUTOR = {"FutureTests"}


def bind(name: str, farm: type = FarmMixin) -> type[unittest.TestCase]:
    """The class of that name as a test case for such a farm, without its excluded tests."""
    before: tuple[type, ...] = CROSSED_WITH.get(name, ())
    after = () if name in WITHOUT_EXECUTOR else (farm,)
    excluded = {test.test.partition(".")[2]: None for test in EXCLUDED if test.test.startswith(f"{name}.")}
    source = find(name)
    if issubclass(source, find("BaseTestCase")):
        bases = (FarmTestCase, *before, source, *after)
    else:
        bases = (*before, source, *after, FarmTestCase)
    return type(f"{farm.__name__.removesuffix('Mixin')}{name}", bases, excluded)


def bind_all() -> dict[str, type[unittest.TestCase]]:
    embedded = [bind(name) for name in BOUND]
    on_own_servers = [bind(name, OwnServersMixin) for name in BOUND if name not in WITHOUT_EXECUTOR]
    return {cls.__name__: cls for cls in embedded + on_own_servers}


def end_helpers() -> None:
    """End the servers. What multiprocessing keeps for managers stays, as other tests of this process may use it."""
    own_servers.end()
