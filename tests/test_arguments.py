"""Every parameter of every public function says at once what is wrong with it."""

import decimal
import inspect
import math
import multiprocessing
import numbers
import os
import pickle
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

import numpy as np
import pytest

import farm_executor
from farm_executor import FarmExecutor, OptionsView, Server, end_server, ping, progress, start_server, status
from farm_executor.arguments import ROWS, anything

CLASSES = {"FarmExecutor": FarmExecutor, "Server": Server}
PROGRESS = {"progress.wait": progress.wait, "progress.as_completed": progress.as_completed}
FUNCTIONS = {"start_server": start_server, "ping": ping, "status": status, "end_server": end_server}
TAKES_NOTHING = {"freeze_support", "current_task"}
CHECKS_ITSELF = {"CurrentTask"}  # in tasks, where nothing else of the package need be loaded
LOOKED_AT = {"FarmFuture", "OptionsView", "OutputLine", "Progress", "Shared", "Stream"}  # what users are given


def public_methods(cls):
    for name in dir(cls):
        if not name.startswith("_") and inspect.isfunction(getattr(cls, name)):
            yield name, getattr(cls, name)


def signatures():
    """Of all that is public and is called to have something done."""
    yield "FarmExecutor", FarmExecutor.__init__
    yield from FUNCTIONS.items()
    yield from PROGRESS.items()
    for name, cls in CLASSES.items():
        for method, function in public_methods(cls):
            yield f"{name}.{method}", function


SIGNATURES = dict(signatures())


def parameters(function):
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(function).parameters.values()
    return [one.name for one in found if one.name != "self" and one.kind not in kinds]


def test_every_public_function_is_looked_at():
    """A new public name is a function here, a class of CLASSES, a view, an exception or a snapshot."""
    for name in set(farm_executor.__all__) - {
        *("__version__", *FUNCTIONS, *CLASSES, *TAKES_NOTHING, *CHECKS_ITSELF, *LOOKED_AT)
    }:
        value = getattr(farm_executor, name)
        assert isinstance(value, type), name
        assert issubclass(value, Exception) or name.endswith(("Statistics", "Outcome", "Check")), name


@pytest.mark.parametrize("name", sorted({*SIGNATURES, *ROWS}))
def test_every_parameter_has_a_row_and_every_row_a_parameter(name):
    assert sorted(ROWS[name]) == sorted(parameters(SIGNATURES[name]))


def test_a_view_has_all_of_the_farms_methods():
    assert dict(public_methods(OptionsView)) == dict(public_methods(FarmExecutor))


# -- each function uses its rows ----------------------------------------------------------------------

ZOO = [
    *(None, True, 0, -1, 1, 1.5, -1.0, math.nan, math.inf, -math.inf, 10**400, 1e300, "5", "", b"", b"x" * 15),
    *([], {}, object(), print, multiprocessing, "\0", [1], ["\0"], np.arange(3), decimal.Decimal("NaN")),
]
REQUIRED = {
    "FarmExecutor": {},
    "FarmExecutor.map": {"fn": abs},
    "FarmExecutor.broadcast": {"fn": abs},
    "FarmExecutor.share": {"value": 1},
    "FarmExecutor.kill": {"future": Future()},
    "FarmExecutor.kill_tasks": {"category": "any"},
    "FarmExecutor.remove_server": {"address": "127.0.0.1:1"},
    **{name: {"fs": []} for name in PROGRESS},
    **{name: {"host": "127.0.0.1", "port": 1} for name in FUNCTIONS},
}


def refused(check, name, value):
    try:
        check(name, value)
    except (TypeError, ValueError) as error:
        return error
    return None


def call(name, arguments):
    if name in FUNCTIONS or name in PROGRESS or name == "FarmExecutor":
        return (FUNCTIONS.get(name) or PROGRESS.get(name) or FarmExecutor)(**arguments)
    cls, _, method = name.partition(".")
    arguments = dict(arguments)
    leading = [arguments.pop(first) for first in ("fn",) if first in arguments]
    return getattr(FarmExecutor() if cls == "FarmExecutor" else Server.__new__(Server), method)(
        *leading, **arguments
    )


CHECKED = [(function, name) for function, row in ROWS.items() for name in row if row[name] is not anything]


@pytest.mark.parametrize(("function", "name"), CHECKED)
def test_what_a_row_refuses_its_function_refuses_at_once_and_names_it(function, name):
    for value in ZOO:
        row = name
        if (function, name) == ("FarmExecutor", "addresses") and isinstance(value, numbers.Number):
            row = "max_workers"  # which a number in the first place is
        expected = refused(ROWS[function][row], row, value)
        if expected is None:
            continue

        with pytest.raises(type(expected)) as caught:
            call(function, {**REQUIRED.get(function, {}), name: value})

        assert str(caught.value) == str(expected)
        if not isinstance(expected, farm_executor.AddressError):  # which shows the address, and the accepted forms
            assert row in str(expected)


# -- what the rows accept -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [os.cpu_count() / 2, 2.0, "4", True, np.float64(2), decimal.Decimal(2)], ids=repr)
def test_workers_are_counted_by_integers(value):
    with pytest.raises(TypeError, match="max_workers must be an integer"):
        FarmExecutor(max_workers=value)
    if not isinstance(value, str):  # that would be an address
        with pytest.raises(TypeError, match="max_workers must be an integer"):
            FarmExecutor(value)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)], ids=repr)
def test_numpys_integers_are_integers(value):
    """And become plain ones, which can be sent."""
    farm = FarmExecutor(value, max_attempts=value, max_tasks_per_child=value, max_pending_bytes=value)
    view = farm.with_options(priority=value, max_attempts=value)
    kept = (
        farm._max_workers,
        farm._backing.settings.max_tasks_per_child,
        view._options.priority,
        view._options.max_attempts,
    )
    assert kept == (3, 3, 3, 3)
    assert {type(number) for number in kept} == {int}


def test_numpys_numbers_do_where_they_are_used(no_leaks):
    with FarmExecutor(
        max_workers=np.int32(1),
        connect_timeout=np.float32(60),
        heartbeat=np.int64(5),
        max_memory_per_worker=np.int64(1 << 30),
        caller_leads=np.bool_(True),
    ) as farm:
        assert farm.with_options(timeout=np.float32(60)).submit(abs, -1).result(30) == 1
        results = farm.map(abs, [-1, -2], chunksize=np.int64(2), timeout=np.float32(60), buffersize=np.int8(1))
        assert list(results) == [1, 2]


WRONG_EXAMPLES = [
    (TypeError, {"connect_timeout": "5"}),
    (ValueError, {"connect_timeout": -1}),
    (ValueError, {"connect_timeout": 0}),
    (ValueError, {"connect_timeout": math.nan}),
    (ValueError, {"resume_timeout": math.inf}),
    (ValueError, {"heartbeat": math.nan}),
    (TypeError, {"key": "a key as a string"}),
    (ValueError, {"key": b"short"}),
    (ValueError, {"key_file": "/no/such/file"}),
    (TypeError, {"key_file": b"/no/such/file"}),
    (TypeError, {"max_attempts": 1.5}),
    (TypeError, {"max_attempts": True}),
    (TypeError, {"max_pending_bytes": 1e6}),
    (TypeError, {"when_full": None}),
    (ValueError, {"when_full": "block"}),
    (TypeError, {"allow_version_mismatch": "no"}),
    (TypeError, {"initargs": 5}),
    (TypeError, {"mp_context": 4}),
    (TypeError, {"mp_context": "spawn"}),
    (TypeError, {"ssl_context": "none"}),
]


@pytest.mark.parametrize(("kind", "arguments"), WRONG_EXAMPLES, ids=lambda value: str(value)[:60])
def test_the_constructor_refuses(kind, arguments):
    (name,) = arguments
    with pytest.raises(kind, match=name):
        FarmExecutor(**arguments)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (TypeError, {"category": []}),
        (TypeError, {"priority": 1.5}),
        (TypeError, {"priority": True}),
        (ValueError, {"priority": "urgent"}),
        (ValueError, {"priority": 2**60}),
        (ValueError, {"timeout": 0}),
        (ValueError, {"timeout": math.nan}),
        (TypeError, {"timeout": "5"}),
    ],
    ids=repr,
)
def test_with_options_refuses(kind, arguments):
    (name,) = arguments
    with pytest.raises(kind, match=name):
        FarmExecutor().with_options(**arguments)
    with pytest.raises(kind, match=name):
        FarmExecutor().with_options(priority="low").with_options(**arguments)


@pytest.mark.parametrize(
    ("kind", "env"),
    [
        (TypeError, ["A=1"]),
        (TypeError, "A=1"),
        (TypeError, {"A": 1}),
        (TypeError, {b"A": "1"}),
        (ValueError, {"A=B": "1"}),
        (ValueError, {"": "1"}),
        (ValueError, {"A": "\0"}),
    ],
    ids=repr,
)
def test_start_server_refuses_what_is_no_environment(kind, env):
    with pytest.raises(kind, match="env"):
        start_server("127.0.0.1", 0, background=True, env=env)


def test_a_key_is_never_shown():
    for key in (b"a secret", "a secret", [b"a secret"]):
        with pytest.raises((TypeError, ValueError)) as caught:
            FarmExecutor(key=key)
        assert "a secret" not in str(caught.value)


def test_the_order_is_that_of_process_pool_executor():
    context = multiprocessing.get_context()
    farm = FarmExecutor(2, context, print, ("hello",))
    assert farm._max_workers == 2
    assert farm._backing.settings[2:4] == (print, ("hello",))
    farm = FarmExecutor("host:1", context, print, ("hello",), max_workers=4)
    assert farm._max_workers == 4
    (address,), _, initializer, *_ = farm._backing.settings
    assert (str(address), initializer) == ("host:1", print)
    with pytest.raises(TypeError, match="max_workers= is given by its name"):
        FarmExecutor("host:1", 4)


def test_a_key_file_need_not_be_where_an_executor_is_sent(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"0123456789abcdef" * 2)
    path.chmod(0o600)
    data = pickle.dumps(FarmExecutor("host:1", key_file=path))
    path.unlink()
    assert pickle.loads(data)._backing.settings.key_file == path


def test_a_time_that_is_over_is_accepted_as_in_the_standard_library(no_leaks):
    with FarmExecutor(1) as farm, pytest.raises(FutureTimeoutError):
        list(farm.map(abs, [-1], timeout=-1))
