"""What a task raises comes out of its future, with all that helps to find the reason."""

import sys
import traceback

import pytest
from contract import tasks
from contract.gate import DEADLINE


def text_of(error):
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def chain_of(error):
    """The exceptions that follow by __cause__."""
    causes = []
    while error.__cause__ is not None:
        error = error.__cause__
        causes.append(error)
    return causes


ERRORS = [
    ValueError("message", 1),
    KeyError("missing"),
    OSError(2, "No such file", "name"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    ZeroDivisionError(),
    tasks.PlainError("ours", {"a": 1}),
    AssertionError(),
    StopIteration(3),
    GeneratorExit(),
    SystemExit(3),
    KeyboardInterrupt(),
]


def test_type_and_arguments_are_kept(executor):
    for error in ERRORS:
        raised = executor.submit(tasks.raise_it, error).exception(timeout=DEADLINE)
        assert type(raised) is type(error)
        assert raised.args == error.args
        assert str(raised) == str(error)
        assert executor.submit(tasks.identity, "still at work").result(timeout=DEADLINE) == "still at work"


def test_result_raises_what_exception_returns(executor):
    future = executor.submit(tasks.raise_it, ValueError("once"))
    with pytest.raises(ValueError, match="once") as caught:
        future.result(timeout=DEADLINE)
    assert future.exception() is caught.value
    with pytest.raises(ValueError, match="once") as caught_again:
        future.result()
    assert caught_again.value is caught.value


def test_attributes_are_kept(executor):
    error = executor.submit(tasks.raise_with_attribute).exception(timeout=DEADLINE)
    assert type(error) is tasks.PlainError
    assert error.detail == {"rows": [1, 2]}


@pytest.mark.needs("rebuilds")
def test_an_exception_that_does_not_take_its_own_arguments_is_kept(executor):
    error = executor.submit(tasks.raise_detailed).exception(timeout=DEADLINE)
    assert type(error) is tasks.DetailedError
    assert (error.code, error.reason, str(error)) == (7, "too long", "too long (7)")


def test_the_traceback_shows_where_the_task_raised(executor):
    error = executor.submit(tasks.raise_in_depth, ValueError("deep")).exception(timeout=DEADLINE)
    text = text_of(error)
    assert "the_very_place" in text
    assert "raise_in_depth" in text
    assert "tasks.py" in text
    assert "raise error" in text  # the source line


@pytest.mark.needs("keeps_chain")
def test_the_frames_of_the_task_are_in_the_traceback_itself(executor):
    error = executor.submit(tasks.raise_in_depth, ValueError("deep")).exception(timeout=DEADLINE)
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert names[-2:] == ["raise_in_depth", "the_very_place"]


@pytest.mark.parametrize(
    ("function", "other"),
    [(tasks.raise_from_cause, "the deeper reason"), (tasks.raise_in_context, "the circumstance")],
)
def test_the_text_of_cause_and_context_is_kept(executor, function, other):
    error = executor.submit(function).exception(timeout=DEADLINE)
    assert type(error) is ValueError
    assert other in text_of(error)


@pytest.mark.needs("keeps_chain")
def test_the_cause_is_kept(executor):
    error = executor.submit(tasks.raise_from_cause).exception(timeout=DEADLINE)
    cause = error.__cause__
    assert type(cause) is KeyError
    assert cause.args == ("the deeper reason",)
    assert traceback.extract_tb(cause.__traceback__)[-1].name == "raise_from_cause"


@pytest.mark.needs("keeps_chain")
def test_the_context_is_kept(executor):
    error = executor.submit(tasks.raise_in_context).exception(timeout=DEADLINE)
    assert type(error.__context__) is KeyError
    assert error.__context__.args == ("the circumstance",)


@pytest.mark.needs("keeps_chain")
def test_a_suppressed_context_stays_suppressed(executor):
    error = executor.submit(tasks.raise_from_none).exception(timeout=DEADLINE)
    assert error.__suppress_context__
    assert KeyError not in [type(cause) for cause in chain_of(error)]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes came with Python 3.11")
def test_notes_are_kept(executor):
    error = executor.submit(tasks.raise_with_notes, "first", "second").exception(timeout=DEADLINE)
    assert type(error) is ValueError
    assert error.__notes__ == ["first", "second"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_groups_are_kept(executor):
    group = executor.submit(tasks.raise_group).exception(timeout=DEADLINE)
    assert type(group) is ExceptionGroup  # noqa: F821
    assert group.message == "both"
    assert [(type(error), error.args) for error in group.exceptions] == [(ValueError, (1,)), (KeyError, ("two",))]


def test_each_task_has_an_exception_of_its_own(executor):
    error = ValueError("shared by the arguments")
    errors = [executor.submit(tasks.raise_it, [error][0]) for _ in range(10)]
    assert all(type(future.exception(timeout=DEADLINE)) is ValueError for future in errors)


def test_failures_between_successes_stay_where_they_are(executor):
    futures = [executor.submit(divmod, 6, number % 4) for number in range(40)]
    for number, future in enumerate(futures):
        if number % 4:
            assert future.result(timeout=DEADLINE) == divmod(6, number % 4)
        else:
            assert type(future.exception(timeout=DEADLINE)) is ZeroDivisionError
