"""An exception rises on the client as it was raised on the worker, or says why it does not. Without a farm."""

import asyncio
import contextlib
import copy
import copyreg
import functools
import importlib
import io
import json
import linecache
import pdb
import pickle
import subprocess
import sys
import textwrap
import threading
import traceback
import types
import urllib.error
from dataclasses import dataclass

import pytest
import tblib.pickling_support
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm_executor import errors
from farm_executor.data import failure
from farm_executor.data.failure import (
    MAX_FRAMES,
    MAX_NODES,
    Origin,
    describe,
    dump_failure,
    dump_unsendable,
    load_failure,
)
from farm_executor.errors import FarmError, TaskExecutionError

ORIGIN = Origin("host:1", 77, 2)
GROUPS = sys.version_info >= (3, 11)

relaxed = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


def travel(error, message=""):
    """What the client raises for what the worker caught."""
    return load_failure([bytearray(part) for part in dump_failure(error, message)], ORIGIN)


def caught(function, *args):
    """What the function raises, with its traceback."""
    try:
        function(*args)
    except BaseException as error:
        return BaseException.with_traceback(error, sys.exc_info()[2].tb_next)
    raise AssertionError("nothing was raised")


def causes(error):
    """The exceptions that follow by ``__cause__``."""
    chain = []
    while error.__cause__ is not None:
        error = error.__cause__
        chain.append(error)
    return chain


def text_of(error):
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def assert_reported(error, *, of):
    """At the end of the causes stands the report, with all that helps to find the place."""
    report = causes(error)[-1]
    assert type(report) is TaskExecutionError
    assert (report.server, report.pid, report.attempt) == ("host:1", 77, 2)
    assert report.type_name.endswith(type(of).__qualname__)
    assert type(of).__name__ in report.remote_traceback
    return report


# -- exceptions of all sorts --------------------------------------------------------------------------------


class Plain(Exception):
    pass


class OtherSignature(Exception):
    def __init__(self, code, reason):
        super().__init__(f"{reason} ({code})")
        self.code, self.reason = code, reason


class KeywordOnly(Exception):
    def __init__(self, *, code):
        super().__init__("with", code)
        self.code = code


class WithoutSuper(Exception):
    def __init__(self, code):
        self.code = code


class Changing(ValueError):
    """Would say more each time that it is made."""

    def __init__(self, text):
        super().__init__(f"<{text}>")


class OtherNew(Exception):
    def __new__(cls, first, second, third):
        self = super().__new__(cls, first)
        self.rest = (second, third)
        return self

    def __init__(self, *ignored):
        pass


class Slotted(Exception):
    __slots__ = ("__private", "code", "unset")

    def __init__(self, code):
        super().__init__("slotted")
        self.code, self.__private = code, -code

    @property
    def private(self):
        return self.__private


class SlottedAxis(ValueError):
    """As numpy's AxisError is."""

    __slots__ = ("axis", "text")

    def __init__(self, text, axis=None):
        super().__init__(text, axis)
        self.text, self.axis = text, axis

    def __str__(self):
        return self.text if self.axis is None else f"axis {self.axis}"


class WithReduce(Exception):
    def __init__(self, code, extra=None):
        super().__init__(f"code {code}")
        self.code, self.extra = code, extra

    def __reduce__(self):
        return type(self), (self.code, "made by reduce")


class WithState(Exception):
    def __setstate__(self, state):
        self.restored = state

    def __reduce__(self):
        return type(self), self.args, {"state": 1}


@dataclass
class Data(Exception):
    code: int
    name: str = "n"


@dataclass(frozen=True)
class FrozenData(Exception):
    code: int


class NoAttributesSet(Exception):
    def __setattr__(self, name, value):
        raise RuntimeError(f"{name} must not be set")


class NoAttributesRead(Exception):
    def __getattribute__(self, name):
        raise RuntimeError(f"{name} must not be read")


class OverriddenAttributes(Exception):
    """Whose own attributes of these names would mislead."""

    args = ("not these",)
    __cause__ = __context__ = property(lambda self: 1 / 0)
    __traceback__ = property(lambda self: "not a traceback")
    __notes__ = property(lambda self: 1 / 0)
    __suppress_context__ = property(lambda self: sys.exit())

    def with_traceback(self, tb):
        raise RuntimeError("no")


class NoText(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class ExitingText(Exception):
    def __str__(self):
        sys.exit("no text")

    __repr__ = __str__


class SeveralBases(ValueError, OSError):
    pass


class SeveralOwnBases(Plain, KeyError, AttributeError):
    pass


class OwnOSError(OSError):
    def __init__(self, path):
        super().__init__(2, "no such thing", path)
        self.path = path


class MixedIn(contextlib.ContextDecorator, LookupError):
    pass


def with_attributes(error, **attributes):
    vars(error).update(attributes)
    return error


def changed(error, **attributes):
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


# What is raised, and the attributes that must be there again.
ERRORS = {
    "empty": (ValueError(), ""),
    "several arguments": (ValueError("a", 1, [2]), ""),
    "key": (KeyError("missing"), ""),
    "attributes": (with_attributes(ValueError("a"), detail={"rows": [1]}, _private=2), "detail _private"),
    "own": (Plain("a", 1), ""),
    "other signature": (OtherSignature(3, "too long"), "code reason"),
    "keyword-only": (KeywordOnly(code=3), "code"),
    "without super": (WithoutSuper(3), "code"),
    "changing": (Changing("text"), ""),
    "other __new__": (OtherNew(1, 2, 3), "rest"),
    "slots": (with_attributes(Slotted(3), other=1), "code private other"),
    "a slot that holds None": (SlottedAxis("text"), "text axis"),
    "own reduction": (WithReduce(3), "code"),
    "dataclass": (Data(3, name="x"), "code name"),
    "frozen dataclass": (FrozenData(3), "code"),
    "no setting": (with_attributes(NoAttributesSet("a"), x=1), "x"),
    "several bases": (SeveralBases(2, "text", "file"), "errno strerror filename"),
    "several own bases": (SeveralOwnBases("a"), ""),
    "own OSError": (OwnOSError("/x"), "errno strerror filename path"),
    "mixed in": (MixedIn("a"), ""),
    "OSError": (OSError(5, "text"), "errno strerror filename filename2"),
    "no file": (FileNotFoundError(2, "text", "file"), "errno strerror filename filename2"),
    "two files": (FileExistsError(17, "text", "file", None, "other"), "errno strerror filename filename2"),
    "blocking": (BlockingIOError(11, "text", 7), "errno characters_written"),
    "path": (changed(OSError("a"), filename=b"\xff"), "filename errno"),
    "decoding": (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"), "encoding object start end reason"),
    "encoding": (UnicodeEncodeError("ascii", "ä", 0, 1, "why"), "encoding object start end reason"),
    "translating": (UnicodeTranslateError("ä", 0, 1, "why"), "object start end reason"),
    "import": (ImportError("text", name="n", path="p"), "name path msg"),
    "no module": (ModuleNotFoundError("text", name="n"), "name path msg"),
    "syntax": (SyntaxError("text", ("file", 3, 4, "a b", 3, 5)), "msg filename lineno offset text end_offset"),
    "syntax, changed": (changed(SyntaxError("a"), filename="f", lineno=7), "msg filename lineno"),
    "stop": (StopIteration(3), "value"),
    "stop, changed": (changed(StopIteration(3), value=None), "value"),
    "async stop": (StopAsyncIteration(3), ""),
    "exit": (SystemExit(3), "code"),
    "exit, changed": (changed(SystemExit("text"), code=None), "code"),
    "interrupt": (KeyboardInterrupt(), ""),
    "generator exit": (GeneratorExit(), ""),
    "name": (caught(eval, "unknown_name"), "name"),
    "attribute": (caught(getattr, 1, "unknown_name"), "name"),
    "arguments, changed": (changed(OSError(5, "text"), args=("new", 2, 3)), "errno strerror"),
    "json": (caught(json.loads, "{"), "msg doc pos lineno colno"),
    "http": (urllib.error.URLError("why", "file"), "reason filename"),
    "process": (subprocess.CalledProcessError(3, ["cmd"], "out", "err"), "returncode cmd output stderr"),
    "expired": (subprocess.TimeoutExpired(["cmd"], 3.5), "cmd timeout"),
    "cancelled": (asyncio.CancelledError(), ""),
    "incomplete": (asyncio.IncompleteReadError(b"ab", 3), "partial expected"),
    "ours": (TaskExecutionError("text", server="s", pid=3, remote_traceback="r"), "server pid remote_traceback"),
    "mismatch": (errors.VersionMismatchError("text", {"a": ("1", "2")}), "mismatches"),
}


@pytest.fixture
def _reducers_of_tblib():
    """As in a program that has imported Dask's distributed."""
    before = dict(copyreg.dispatch_table)
    tblib.pickling_support.install()
    yield
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(before)


@pytest.mark.usefixtures("_reducers_of_tblib")
@pytest.mark.parametrize("name", ERRORS)
def test_an_exception_rises_as_itself_in_spite_of_tblibs_own_reducers(name):
    test_an_exception_rises_as_itself(name)


@pytest.mark.usefixtures("_reducers_of_tblib")
def test_reductions_of_the_users_own_count_in_spite_of_tblibs():
    test_one_and_the_same_object_may_rise_again_and_again()
    test_one_that_is_no_exception_once_rebuilt_is_told_of()


@pytest.mark.parametrize("name", ERRORS)
def test_an_exception_rises_as_itself(name):
    error, attributes = ERRORS[name]

    result = travel(error)

    assert type(result) is type(error)
    assert result.args == error.args
    assert [getattr(result, name) for name in attributes.split()] == [
        getattr(error, name) for name in attributes.split()
    ]
    assert str(result) == str(error)
    assert type(error) is WithReduce or vars(result) == vars(error)
    assert_reported(result, of=error)


def test_what_was_not_set_is_not_set_afterwards():
    result = travel(Slotted(1))

    assert not hasattr(result, "unset")
    assert not hasattr(travel(BlockingIOError()), "characters_written")
    assert travel(OSError()).errno is None


def test_an_own_reduction_counts():
    assert travel(WithReduce(3)).extra == "made by reduce"
    assert travel(WithState(3)).restored == {"state": 1}


def test_a_registered_reduction_counts(monkeypatch):
    monkeypatch.setitem(copyreg.dispatch_table, Plain, lambda error: (OtherSignature, (1, "registered")))

    assert str(travel(Plain())) == "registered (1)"


@pytest.mark.parametrize("cls", [NoAttributesRead, OverriddenAttributes, NoText, ExitingText])
def test_an_exception_that_cannot_be_looked_at_rises_as_itself(cls):
    error = caught(raise_from, cls("a"), KeyError("cause"))

    result = travel(error)

    assert type(result) is cls
    assert BaseException.__dict__["args"].__get__(result) == ("a",)
    cause = BaseException.__dict__["__cause__"].__get__(result)
    assert type(cause) is KeyError
    assert cls.__name__ in cause.__cause__.args[0]


def raise_from(error, cause):
    raise error from cause


def test_a_local_class_rises_as_itself_where_it_is_known():
    class Local(Exception):
        def __init__(self, *, code):
            self.code = code

    result = travel(Local(code=3))

    assert type(result) is Local
    assert result.code == 3


# -- what cannot travel -------------------------------------------------------------------------------------


class PicklingFails(Exception):
    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        raise self.how


class RebuildingFails(Exception):
    def __init__(self, how=None):
        self.how = how

    def __reduce__(self):
        return fail, (self.how,)


def fail(how):
    raise how


class NotAnException(Exception):
    def __reduce__(self):
        return str, ("only a text",)


@pytest.mark.parametrize("cls", [PicklingFails, RebuildingFails])
@pytest.mark.parametrize(
    "how", [RuntimeError("the reason"), SystemExit("the reason"), KeyboardInterrupt("the reason"), NoText()]
)
def test_one_that_fails_to_be_pickled_or_rebuilt_is_told_of(cls, how):
    result = travel(caught(raise_from, cls(how), KeyError("the cause")))

    assert type(result) is TaskExecutionError
    assert cls.__name__ in str(result)
    assert ("pickled" if cls is PicklingFails else "rebuilt") in str(result)
    assert type(how).__name__ in result.args[0]
    assert "the reason" in result.args[0] or "Text" in type(how).__name__
    assert result.type_name.endswith(cls.__name__)
    assert "raise_from" in result.remote_traceback
    assert (result.server, result.pid, result.attempt) == ("host:1", 77, 2)
    assert type(result.__cause__) is KeyError
    assert [frame.name for frame in traceback.extract_tb(result.__traceback__)] == ["raise_from"]


def test_why_a_result_could_not_be_pickled_is_raised_with_an_explanation():
    result = load_failure(dump_unsendable(caught(raise_from, Plain("a", 1), KeyError("cause")), []), ORIGIN)

    assert type(result) is Plain
    assert result.args == ("a", 1)
    assert type(result.__cause__) is KeyError
    report = assert_reported(result, of=result)
    assert report.args[0].startswith("the task's result, of type list, could not be pickled: ")


def test_if_that_cannot_be_pickled_either_the_explanation_is_raised():
    result = load_failure(dump_unsendable(caught(fail, PicklingFails(ValueError("the reason"))), []), ORIGIN)

    assert type(result) is TaskExecutionError
    assert "the task's result, of type list, could not be pickled" in str(result)
    assert "the reason" in str(result.__cause__)


def test_one_that_is_no_exception_once_rebuilt_is_told_of():
    result = travel(NotAnException())

    assert type(result) is TaskExecutionError
    assert "gives a str, not an exception" in str(result)


@pytest.mark.parametrize("where", ["args", "attribute"])
def test_one_that_holds_what_cannot_be_pickled_is_told_of(where):
    lock = threading.Lock()
    error = Plain("text", lock) if where == "args" else with_attributes(Plain("text"), lock=lock)

    result = travel(error)

    assert type(result) is TaskExecutionError
    assert "text" in str(result)
    assert "lock" in str(result)


def test_one_whose_class_is_not_here_is_told_of(tmp_path, monkeypatch):
    (tmp_path / "only_on_the_worker.py").write_text(
        "class Remote(Exception): pass\ndef f(): raise Remote('text', 1)"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("only_on_the_worker")
    inner = caught(module.f)
    data = dump_failure(inner), dump_failure(caught(raise_from, ValueError("outer"), inner))
    monkeypatch.delitem(sys.modules, "only_on_the_worker")
    sys.path.remove(str(tmp_path))
    importlib.invalidate_caches()

    alone, cause = (load_failure(each, ORIGIN) for each in data)

    assert type(alone) is TaskExecutionError
    assert alone.type_name == "only_on_the_worker.Remote"
    assert "No module named 'only_on_the_worker'" in str(alone)
    assert "raise Remote('text', 1)" in str(alone)
    assert type(cause) is ValueError
    assert type(cause.__cause__) is TaskExecutionError
    assert "('text', 1)" in str(cause.__cause__)
    assert cause.__cause__.__cause__.remote_traceback.count("Traceback") == 2


def test_only_what_cannot_travel_is_replaced():
    error = caught(raise_from, ValueError("outer"), PicklingFails(RuntimeError("the reason")))
    error.__cause__.__cause__ = KeyError("deepest")

    result = travel(error)

    assert [type(exc) for exc in causes(result)] == [TaskExecutionError, KeyError, TaskExecutionError]
    assert type(result) is ValueError
    assert "the reason" in str(result.__cause__)


@given(st.binary(max_size=50))
@relaxed
def test_what_makes_no_sense_at_all_is_told_of(data):
    result = load_failure([data], ORIGIN)

    assert type(result) is TaskExecutionError
    assert result.server == "host:1"


def test_one_and_the_same_object_may_rise_again_and_again():
    SINGLE.__cause__ = None
    data = dump_failure(SINGLE)
    for _ in range(3):
        result = load_failure(data, ORIGIN)

        assert result is SINGLE
        assert len(causes(result)) == 1


class Single(Exception):
    def __reduce__(self):
        return "SINGLE"


SINGLE = Single("the only one")


@pytest.mark.parametrize(
    "cls", [NoText, ExitingText, NoAttributesRead, OverriddenAttributes, SyntaxError, KeyError]
)
def test_any_exception_can_be_described(cls):
    assert cls.__name__ in describe(cls("a"))


# -- causes, contexts, groups: any graph --------------------------------------------------------------------

values = st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
makers = st.sampled_from(
    [
        *(lambda *args, cls=cls: cls(*args) for cls in (ValueError, KeyError, StopIteration, SystemExit, Plain)),
        *(lambda *args: OtherSignature(len(args), args), lambda *args: KeywordOnly(code=args)),
        *(
            lambda *args: OSError(2, "text", *args[:1]),
            lambda *args: WithReduce(args),
            lambda *args: Slotted(len(args)),
        ),
        lambda *args: UnicodeDecodeError("utf-8", b"\xff", 0, 1, str(args)),
    ]
)


@st.composite
def graphs(draw):
    """An exception with others behind it in any order, circles included, and groups of those made before."""
    excs = []
    for _ in range(draw(st.integers(1, 8))):
        members = draw(st.lists(st.sampled_from(excs), max_size=3)) if excs and GROUPS else []
        if members:
            exc = BaseExceptionGroup(draw(st.text(max_size=5)), members)  # noqa: F821 - from Python 3.11 on
        else:
            exc = draw(makers)(*draw(st.lists(values, max_size=3)))
        if not isinstance(exc, WithReduce):
            vars(exc).update(draw(st.dictionaries(st.sampled_from(["x", "y"]), values)))
        if notes := draw(st.lists(st.text(max_size=9), max_size=2)):
            exc.__notes__ = notes
        excs.append(exc)
    for exc in excs:
        exc.__cause__ = draw(st.none() | st.sampled_from(excs))
        exc.__context__ = draw(st.none() | st.sampled_from(excs))
        exc.__suppress_context__ = draw(st.booleans())
    return draw(st.sampled_from(excs))


def assert_same_graph(sent, got):
    pairs, counterpart = [(sent, got)], {}
    while pairs:
        left, right = pairs.pop()
        if id(left) in counterpart:
            assert counterpart[id(left)] is right
            continue
        counterpart[id(left)] = right
        assert type(left) is type(right)
        assert left.__suppress_context__ == right.__suppress_context__
        assert getattr(left, "__notes__", None) == getattr(right, "__notes__", None)
        members = getattr(left, "exceptions", ())
        if members:
            assert left.message == right.message
            pairs += zip(members, right.exceptions, strict=True)
        else:
            assert left.args == right.args
        if not isinstance(left, WithReduce):
            assert vars(left) == vars(right)
        if left.__cause__ is None:
            assert right.__cause__ is None or type(right.__cause__) is TaskExecutionError
        else:
            pairs.append((left.__cause__, right.__cause__))
        assert (left.__context__ is None) == (right.__context__ is None)
        if left.__context__ is not None:
            pairs.append((left.__context__, right.__context__))


@relaxed
@given(graphs())
def test_any_graph_of_exceptions_comes_out_as_it_went_in(error):
    result = travel(error)

    assert_same_graph(error, result)
    seen, end = {id(result)}, result
    while end.__cause__ is not None and id(end.__cause__) not in seen:
        end = end.__cause__
        seen.add(id(end))
    assert type(end) is TaskExecutionError or end.__cause__ is not None  # a circle has no end


def test_the_report_does_not_change_what_is_shown_of_a_context():
    def bare():
        try:
            raise KeyError("context")
        except KeyError:
            raise ValueError("raised")

    def from_none():
        try:
            raise KeyError("context")
        except KeyError:
            raise ValueError("raised") from None

    shown, hidden = travel(caught(bare)), travel(caught(from_none))

    assert (shown.__suppress_context__, hidden.__suppress_context__) == (False, True)
    assert type(shown.__context__) is type(hidden.__context__) is KeyError
    assert "KeyError: 'context'" in text_of(shown)
    assert "KeyError" not in text_of(hidden)


def test_a_chain_longer_than_the_stack_is_deep_keeps_its_beginning():
    error = first = ValueError(0)
    for number in range(1, 5000):
        error.__cause__ = ValueError(number)
        error = error.__cause__
    first.__context__ = KeyError("near, too")

    result = travel(first)

    chain = [result, *causes(result)]
    assert [exc.args[0] for exc in chain[:-1]] == list(range(MAX_NODES - 1))
    assert type(result.__context__) is KeyError
    assert "ValueError: 0" in chain[-1].remote_traceback


def test_a_chain_of_contexts_may_be_long_as_well():
    error = first = ValueError(0)
    for number in range(1, 5000):
        error.__context__ = ValueError(number)
        error = error.__context__

    result = travel(first)

    assert_reported(result, of=first)
    assert result.__context__.__context__.args == (2,)


@pytest.mark.skipif(not GROUPS, reason="exception groups came with Python 3.11")
class TestGroups:
    def test_a_group_comes_with_its_members_and_their_causes(self):
        def raise_group():
            members = [caught(raise_from, ValueError(1), KeyError("cause")), caught(int, "x")]
            raise ExceptionGroup("both", [*members, ExceptionGroup("inner", [Plain(2)])])  # noqa: F821

        result = travel(caught(raise_group))

        assert type(result) is ExceptionGroup  # noqa: F821
        assert result.message == "both"
        first, second, inner = result.exceptions
        assert (type(first), type(first.__cause__), type(second)) == (ValueError, KeyError, ValueError)
        assert first.__traceback__.tb_frame.f_code.co_name == "raise_from"
        assert inner.exceptions[0].args == (2,)
        assert "KeyError: 'cause'" in text_of(result)

    def test_except_star_takes_it_apart(self):
        members = [ValueError(1), KeyError(2), KeyboardInterrupt()]
        names = {"error": travel(BaseExceptionGroup("all", members)), "taken": []}  # noqa: F821
        source = """
            try:
                raise error
            except* ValueError as group: taken.append(group.exceptions)
            except* KeyError as group: taken.append(group.exceptions)
            except* KeyboardInterrupt as group: taken.append(group.exceptions)
        """

        exec(textwrap.dedent(source), names)

        assert [list(map(type, excs)) for excs in names["taken"]] == [[type(exc)] for exc in members]

    def test_an_own_group_is_rebuilt_whatever_it_is_made_of(self):
        result = travel(OwnGroup(3, [ValueError(1)]))

        assert type(result) is OwnGroup
        assert (result.message, result.code) == ("code 3", 3)
        assert type(result.exceptions[0]) is ValueError
        assert type(result.subgroup(ValueError)) is OwnGroup

    def test_a_member_that_cannot_travel_costs_itself_only(self):
        result = travel(ExceptionGroup("g", [ValueError(1), PicklingFails(RuntimeError("r"))]))  # noqa: F821

        assert [type(exc) for exc in result.exceptions] == [ValueError, TaskExecutionError]

    def test_a_wide_group_keeps_its_first_members(self):
        result = travel(ExceptionGroup("g", [ValueError(n) for n in range(3000)]))  # noqa: F821

        assert [exc.args[0] for exc in result.exceptions] == list(range(MAX_NODES - 1))

    def test_a_deep_group_is_rebuilt_as_deep_as_it_goes(self):
        error = ValueError("inside")
        for number in range(900):
            error = ExceptionGroup(str(number), [error])  # noqa: F821

        result = travel(error)

        assert result.message == "899"
        assert result.exceptions[0].message == "898"
        assert_reported(result, of=error)


if GROUPS:

    class OwnGroup(ExceptionGroup):  # noqa: F821
        def __new__(cls, code, exceptions):
            self = super().__new__(cls, f"code {code}", exceptions)
            self.code = code
            return self

        def derive(self, exceptions):
            return OwnGroup(self.code, exceptions)


@pytest.mark.skipif(GROUPS, reason="exception groups are builtin")
def test_groups_of_the_package_exceptiongroup_come_with_their_members():
    exceptiongroup = pytest.importorskip("exceptiongroup")
    member = caught(raise_from, ValueError(1), KeyError("cause"))

    result = travel(with_attributes(exceptiongroup.ExceptionGroup("both", [member, KeyError(2)]), code=3))

    assert type(result) is exceptiongroup.ExceptionGroup
    assert (result.message, result.code) == ("both", 3)
    assert [type(exc) for exc in result.exceptions] == [ValueError, KeyError]
    assert type(result.exceptions[0].__cause__) is KeyError
    assert result.subgroup(KeyError).exceptions == (result.exceptions[1],)


# -- what the farm could not do -----------------------------------------------------------------------------


def test_what_the_farm_could_not_do_is_told_with_its_reason_as_the_cause():
    error = caught(raise_from, ValueError("the reason"), KeyError("cause"))

    result = travel(error, "the result could not be had")

    assert type(result) is TaskExecutionError
    assert result.args == ("the result could not be had",)
    assert "the reason" in result.remote_traceback
    assert (result.server, result.pid, result.attempt) == ("host:1", 77, 2)
    assert [type(exc) for exc in causes(result)] == [ValueError, KeyError]
    assert result.__cause__.__traceback__.tb_frame.f_code.co_name == "raise_from"


def test_its_reason_may_be_unable_to_travel():
    result = travel(PicklingFails(RuntimeError("why not")), "the result could not be had")

    assert result.args == ("the result could not be had",)
    assert type(result.__cause__) is TaskExecutionError
    assert "why not" in str(result.__cause__)


def test_the_catchers_own_frames_are_left_out_if_there_are_others():
    def catch(function, *args):
        try:
            function(*args)
        except Exception as error:
            return load_failure(dump_failure(error, skip_frames=1), ORIGIN)

    assert [frame.name for frame in traceback.extract_tb(catch(fail, ValueError()).__traceback__)] == ["fail"]
    assert [frame.name for frame in traceback.extract_tb(catch(int, "x").__traceback__)] == ["catch"]


# -- tracebacks ---------------------------------------------------------------------------------------------


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


@decorated
def several_lines(value):
    return [
        value,
        (
            lambda x: x
            / 0
        )(value)
    ]  # fmt: skip


class Somewhere:
    def method(self, value):
        return [several_lines(x) + {"ä": 1}["ä"] for x in [value]]


def test_a_traceback_is_shown_exactly_as_it_was_on_the_worker():
    error = caught(Somewhere().method, 1)

    result = travel(error)

    shown = traceback.format_tb(result.__traceback__)
    assert shown == traceback.format_tb(error.__traceback__)
    assert "".join(shown) in causes(result)[-1].remote_traceback
    assert text_of(error).splitlines() == text_of(result).splitlines()[-len(text_of(error).splitlines()) :]
    assert "several_lines" in "".join(shown)


def test_each_frame_has_file_name_line_and_module():
    error = caught(Somewhere().method, 1)
    frames = list(traceback.walk_tb(travel(error).__traceback__))

    for (frame, line), (original, original_line) in zip(
        frames, traceback.walk_tb(error.__traceback__), strict=True
    ):
        assert line == original_line == frame.f_lineno
        for name in ("co_filename", "co_name", "co_firstlineno"):
            assert getattr(frame.f_code, name) == getattr(original.f_code, name)
        assert frame.f_globals["__name__"] == __name__
        assert frame.f_locals == {}


def test_a_notebooks_cell_is_shown_with_its_source():
    source = "def cell():\n    return 1 / 0\n"
    linecache.cache["<cell 7>"] = (len(source), None, source.splitlines(keepends=True), "<cell 7>")
    names = {"__name__": "__main__"}
    exec(compile(source, "<cell 7>", "exec"), names)

    assert '  File "<cell 7>", line 2, in cell\n    return 1 / 0\n' in text_of(travel(caught(names["cell"])))


def test_a_file_that_is_not_here_is_named():
    names = {}
    exec(compile("def f(): return 1 / 0", "/not/here.py", "exec"), names)

    assert '  File "/not/here.py", line 1, in f\n' in text_of(travel(caught(names["f"])))


def test_a_debugger_shows_the_place():
    result = travel(caught(Somewhere().method, 1))
    output = io.StringIO()
    debugger = pdb.Pdb(stdin=io.StringIO("where\nup\nup\nlist\nargs\nquit\n"), stdout=output)
    debugger.use_rawinput = False

    with contextlib.suppress(SystemExit):
        debugger.reset()
        debugger.interaction(None, result.__traceback__)

    assert "return function(*args)" in output.getvalue()
    assert "several_lines" in output.getvalue()


def test_of_a_traceback_too_long_both_ends_are_kept():
    def begin():
        return dive(0)

    def dive(depth):
        return dive(depth + 1)

    result = travel(caught(begin))
    names = [frame.name for frame in traceback.extract_tb(result.__traceback__)]

    assert type(result) is RecursionError
    assert len(names) == MAX_FRAMES
    assert (names[0], names[1], names[-1]) == ("begin", "dive", "dive")
    assert "more times" in causes(result)[-1].remote_traceback  # where Python folds what repeats


@relaxed
@given(
    filename=st.text(st.characters(), max_size=9),
    name=st.text(st.characters(), max_size=9),
    line=st.integers(0, 2**31 - 2),
    module=st.text() | st.none() | st.integers(),
)
def test_any_frame_can_be_shown(filename, name, line, module):
    code = compile("1 / 0", "x", "exec").replace(co_filename=filename, co_name=name, co_firstlineno=line)

    result = travel(caught(exec, code, {"__name__": module}))

    assert type(result) is ZeroDivisionError
    (frame, _) = list(traceback.walk_tb(result.__traceback__))[-1]
    assert (frame.f_code.co_filename, frame.f_code.co_name) == (filename, name)


def test_a_made_up_line_leaves_the_frame_out():
    error = caught(fail, ValueError())
    tb = error.__traceback__
    error.__traceback__ = types.TracebackType(tb, tb.tb_frame, tb.tb_lasti, -7)

    result = travel(error)

    assert type(result) is ValueError
    assert [frame.name for frame in traceback.extract_tb(result.__traceback__)][-1:] == ["fail"]


def test_frames_do_not_keep_anything_alive():
    big = Plain("the local of a frame")
    result = travel(caught(fail, ValueError()))

    assert all(not frame.f_locals for frame, _ in traceback.walk_tb(result.__traceback__))
    assert type(big) is Plain


# -- the package's own exceptions ---------------------------------------------------------------------------

SAMPLES = {
    "VersionMismatchError": ("text", {"python": ("3.10", "3.11")}),
    "BroadcastError": ("text", [errors.BroadcastOutcome("host:1", 0, 5, None)]),
}


def own_errors():
    for name in sorted({*errors.__all__} - {"BroadcastOutcome"}):  # which is part of one
        yield getattr(errors, name)(*SAMPLES.get(name, ("text",)))
    yield TaskExecutionError(
        "text", remote_traceback="Traceback\n", type_name="x.Y", server="host:1", pid=3, attempt=2
    )
    yield errors.WorkerLostError("text", 1)


@pytest.mark.parametrize("error", list(own_errors()), ids=lambda error: type(error).__name__)
def test_an_own_exception_survives_pickling_and_copying(error):
    error.extra = [1]
    copies = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]

    for twin in [*copies, copy.copy(error), copy.deepcopy(error), travel(error)]:
        assert type(twin) is type(error)
        assert isinstance(twin, FarmError)
        assert (twin.args, str(twin), vars(twin)) == (error.args, str(error), vars(error))


def test_the_report_says_where_it_happened():
    report = assert_reported(travel(caught(fail, ValueError("a"))), of=ValueError("a"))

    assert str(report).startswith("raised on a worker: ValueError: a [server host:1, worker pid 77, attempt 2]")
    assert 'in fail\n    raise how\nValueError: a\n"""' in str(report)
    assert failure.__name__ not in report.remote_traceback
