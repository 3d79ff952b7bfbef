"""The standard library's own executor tests, run on farms, and checks of the tables that choose them.

See `tables.py` for which tests run and which do not, and why; `suite.py` for how they are bound.
"""

import sys

import pytest

pytest.importorskip("test.test_concurrent_futures", reason="this interpreter ships no test.test_concurrent_futures")

from conformance import suite, tables

globals().update(suite.bind_all())


@pytest.fixture(scope="module", autouse=True)
def _no_servers_left():
    yield
    suite.end_helpers()


def test_every_class_of_the_suite_is_bound_or_the_table_says_why_not():
    bound = {cls for name in tables.BOUND for cls in suite.find(name).__mro__}
    for name, cls in suite.classes_with_tests().items():
        assert cls in bound or name in tables.NOT_BOUND, f"{name} is new: bind it, or say why not"


@pytest.mark.parametrize("excluded", tables.EXCLUDED, ids=lambda excluded: excluded.test)
def test_every_excluded_test_exists(excluded):
    cls, _, test = excluded.test.partition(".")
    if sys.version_info >= excluded.since:
        assert test in suite.tests_of(suite.find(cls))


def test_no_test_is_excluded_twice():
    names = [excluded.test for excluded in tables.EXCLUDED]
    assert sorted(names) == sorted(set(names))


def test_an_excluded_test_is_not_run_and_every_other_is():
    excluded = {excluded.test for excluded in tables.EXCLUDED}
    for name in tables.BOUND:
        every = {f"{name}.{test}" for test in suite.tests_of(suite.find(name))}
        for farm in ("Farm",) if name in suite.WITHOUT_EXECUTOR else ("Farm", "OwnServers"):
            ran = {f"{name}.{test}" for test in suite.tests_of(globals()[f"{farm}{name}"])}
            assert ran == every - excluded


def test_every_test_with_an_outcome_of_its_own_runs():
    ran = suite.tests_of(suite.bind("ExecutorDeadlockTest"))
    missing = set(tables.DEADLOCK_OUTCOMES) - set(ran)
    assert missing <= ({"test_crash_big_data"} if sys.version_info < (3, 13) else set())
