"""A function is pickled again exactly when its pickle may be another one."""

import array
import functools
import json
import sys
import types
import weakref
from collections.abc import Callable

import cloudpickle
import pytest
from client.tasks import Large
from contract import tasks
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from farm_executor.client.farm.functions import MAX_FUNCTIONS, MAX_LARGE_BYTES, SMALL, FunctionTable, Kept
from farm_executor.core.frames import BULK_THRESHOLD, payload_size
from farm_executor.data import payload


def in_main(source, name="f", **globals_):
    """What the source defines under that name, as if in ``__main__``."""
    namespace = {"__name__": "__main__", **globals_}
    exec(source, namespace)
    return namespace[name]


@pytest.fixture
def pickled(monkeypatch):
    """What was pickled."""
    seen = []
    dumps = payload.dumps

    def noted(value, **options):
        seen.append(value)
        return dumps(value, **options)

    monkeypatch.setattr(payload, "dumps", noted)
    return seen


class Listed:
    value = []


def with_attribute(fn):
    fn.note = 1
    return fn


WAYS_TO_STAY = {
    "a module's function": lambda: tasks.identity,
    "a builtin function": lambda: len,
    "a module's class": lambda: functools.partial,
    "no names": lambda: in_main("def f(x): return x"),
    "an attribute that is no global": lambda: in_main("def f(x): return x.real"),
    "a number and a string": lambda: in_main("def f(x): return n, s", n=5, s="s"),
    "a builtin": lambda: in_main("def f(x): return len(x), print"),
    "a module": lambda: in_main("def f(x): return json.dumps(x)", json=json),
    "a module's function as a global": lambda: in_main("def f(x): return g(x)", g=tasks.identity),
    "a module's class as a global": lambda: in_main("def f(x): return g(x)", g=functools.partial),
    "another function of main": lambda: in_main("def g(x): return n\ndef f(x): return g(x)", n=1),
    "itself": lambda: in_main("def f(x): return f(x - 1) if x else 0"),
    "a default": lambda: in_main("def f(x, y=3, z=(1, 'a')): return x"),
    "annotations": lambda: in_main("def f(x: int | None) -> list[int]: return x"),
    "a callable's annotation": lambda: in_main("def f(x: C[[int], str]): return x", C=Callable),
    "a closure": lambda: (lambda n: lambda x: x + n)(5),
    "a nested function": lambda: in_main("def f(x):\n  def g(): return n\n  return g()", n=1),
    "a partial in a closure": lambda: (lambda f: lambda x: f(x))(functools.partial(tasks.identity, 1)),
    "a name that is not there yet": lambda: in_main("def f(x): return later"),
}

WAYS_TO_CHANGE = {
    "a list": lambda: in_main("def f(x): return n", n=[]),
    "a list within a tuple": lambda: in_main("def f(x): return n", n=([],)),
    "a list within a nested function": lambda: in_main("def f(x):\n  def g(): return n\n  return g()", n=[]),
    "a class of main": lambda: in_main("class C: pass\ndef f(x): return C"),
    "an annotation of main": lambda: in_main("class C: pass\ndef f(x: list[C]): return x"),
    "an object": lambda: in_main("def f(x): return n", n=Listed()),
    "a dict as a default": lambda: in_main("def f(x, y={}): return y"),
    "keyword defaults": lambda: in_main("def f(x, *, y=1): return y"),
    "an attribute of its own": lambda: in_main("def f(x): return f.n\nf.n = 1"),
    "a list in a closure": lambda: (lambda n: lambda x: n)([]),
    "a function of main that holds a list": lambda: in_main("def g(): return n\ndef f(x): return g()", n=[]),
    "a partial over a list": lambda: functools.partial(tasks.identity, []),
    "a partial with an attribute": lambda: with_attribute(functools.partial(tasks.identity, 1)),
    "a partial of a function that holds a list": lambda: functools.partial((lambda n: lambda x: n)([])),
    "a module made by hand": lambda: in_main("def f(x): return m", m=types.ModuleType("made_by_hand")),
}


@pytest.mark.parametrize("what", WAYS_TO_STAY)
def test_what_cannot_have_changed_is_pickled_once(what, pickled):
    table, fn = FunctionTable(), WAYS_TO_STAY[what]()

    first = table.find(fn)
    pickled.clear()

    assert table.find(fn) is first
    assert pickled == []


@pytest.mark.parametrize("what", WAYS_TO_CHANGE)
def test_what_may_have_changed_is_pickled_again(what, pickled):
    table, fn = FunctionTable(), WAYS_TO_CHANGE[what]()
    first = table.find(fn)
    pickled.clear()

    assert table.find(fn).data == first.data
    assert pickled == [fn]


class Counter:
    def count(self):
        return 1


@pytest.mark.parametrize(
    "fn", [Counter().count, functools.partial(pow, 2), [].append, in_main("class C: pass", "C"), dict.fromkeys]
)
def test_what_is_no_function_is_pickled_each_time_and_known_by_its_bytes(fn, pickled):
    table = FunctionTable()

    assert table.find(fn) is table.find(fn)
    assert len(pickled) == 2


class SameAsPickledAnew(RuleBasedStateMachine):
    """Whatever is done to a function and to what it names, its bytes are those of now."""

    SOURCE = (
        "def deep(): return e\n"
        "def g(): return b, deep()\n"
        "def maker(c):\n"
        "  def f(x, y=1):\n"
        "    def inner(): return d\n"
        "    return a, g(), c, y, inner()\n"
        "  def set_c(value):\n"
        "    nonlocal c\n"
        "    c = value\n"
        "  return f, set_c\n"
        "f, set_c = maker(0)\n"
    )
    values = st.one_of(st.none(), st.integers(0, 3), st.text("ab", max_size=2), st.just([]), st.just((1, 2)))

    def __init__(self):
        super().__init__()
        self.table = FunctionTable()
        self.f = in_main(self.SOURCE)
        self.globals = self.f.__globals__

    @rule(name=st.sampled_from("abde"), value=values)
    def set_global(self, name, value):
        self.globals[name] = value

    @rule(name=st.sampled_from("abde"))
    def delete_global(self, name):
        self.globals.pop(name, None)

    @rule(value=values)
    def set_closure(self, value):
        self.globals["set_c"](value)

    @rule(value=values)
    def set_default(self, value):
        self.f.__defaults__ = (value,)

    @rule(value=values)
    def set_attribute(self, value):
        self.globals["g"].note = value

    @rule()
    def delete_attribute(self):
        vars(self.globals["g"]).clear()

    @rule(number=st.integers(0, 3))
    def redefine(self, number):
        exec(f"def deep(): return e, {number}", self.globals)

    @rule(number=st.integers(0, 3))
    def exchange_code(self, number):
        self.globals["g"].__code__ = in_main(f"def g(): return {number}, b, deep()", "g").__code__

    @rule(other=st.sampled_from([json, sys, tasks.identity]))
    def name_something_importable(self, other):
        self.globals["a"] = other

    @rule()
    def append_to_a_list(self):
        for name in "abde":
            if isinstance(self.globals.get(name), list):
                self.globals[name].append(1)

    @rule()
    def send(self):
        assert self.table.find(self.f).data[0] == payload.dumps(self.f)[0]


TestSameAsPickledAnew = SameAsPickledAnew.TestCase
TestSameAsPickledAnew.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_submodules_imported_later_are_sent_along(monkeypatch):
    package = types.ModuleType("a_package")
    package.__path__ = []
    package.__package__ = "a_package"
    monkeypatch.setitem(sys.modules, "a_package", package)
    table, f = FunctionTable(), in_main("def f(): return a_package.part.x", a_package=package)
    before = table.find(f).data

    package.part = types.ModuleType("a_package.part")
    monkeypatch.setitem(sys.modules, "a_package.part", package.part)

    assert b"a_package.part" not in before[0]
    assert b"a_package.part" in table.find(f).data[0]


def test_nothing_is_taken_for_unchanged_while_a_module_travels_by_value(pickled):
    table, f = FunctionTable(), in_main("def f(): return g()", g=tasks.identity)
    by_name = table.find(f).data, table.find(tasks.identity).data
    cloudpickle.register_pickle_by_value(tasks)
    try:
        assert table.find(f).data != by_name[0]
        assert payload.by_value(table.find(tasks.identity).data)
    finally:
        cloudpickle.unregister_pickle_by_value(tasks)

    assert (table.find(f).data, table.find(tasks.identity).data) == by_name


def test_a_lambda_made_anew_for_each_call_is_one_function_and_is_not_kept_for_ever():
    table, f, namespace = FunctionTable(), None, {"__name__": "__main__"}
    exec("def of_the_same(): pass", namespace)
    known = {table.find(f := eval("lambda x: x", namespace)).number for _ in range(3 * MAX_FUNCTIONS)}

    assert len(known) == 1
    assert len(table._unchanged) <= MAX_FUNCTIONS
    assert f is not None


def kept_by(table):
    return sum(payload_size(content.parts) for content in table._by_content)


def test_what_is_kept_is_bounded():
    table = FunctionTable()
    for number in range(3 * MAX_FUNCTIONS):
        table.find(in_main(f"def f(): return {number}"))
    assert len(table._by_content) <= MAX_FUNCTIONS
    for number in range(40):
        table.find(functools.partial(len, bytes(1_000_000) + bytes([number])))
    assert kept_by(table) <= MAX_LARGE_BYTES + MAX_FUNCTIONS * SMALL
    for number in range(40):
        table.find(functools.partial(len, array.array("Q", bytes(1_000_000)) + array.array("Q", [number])))
    assert kept_by(table) <= MAX_LARGE_BYTES + MAX_FUNCTIONS * SMALL
    for number in range(40):  # their objects weigh as much as their pickles
        table.find(in_main("def f(): return large", large=bytes(1_000_000) + bytes([number])))
    held = sum(len(fn.__globals__["large"]) for fn in table._unchanged if "large" in fn.__globals__)
    assert kept_by(table) + held <= MAX_LARGE_BYTES + MAX_FUNCTIONS * SMALL


def test_large_functions_cost_small_ones_nothing_and_the_last_is_kept_whatever_its_size():
    table = FunctionTable()
    small = table.find(functools.partial(pow, 2))
    large = functools.partial(len, bytes(3 * MAX_LARGE_BYTES))
    first = table.find(large)
    for number in range(3):
        assert table.find(functools.partial(pow, number)).number
        assert table.find(large) is first
    assert table.find(functools.partial(pow, 2)) is small
    table.find(functools.partial(len, bytes(MAX_LARGE_BYTES)))

    assert table.find(large).number > first.number, "another large one has come"
    assert table.find(functools.partial(pow, 2)) is small


def test_large_functions_can_be_forgotten():
    table = FunctionTable()
    small, large = functools.partial(pow, 2), in_main("def f(): return large", large=bytes(100_000))
    numbers = table.find(small).number, table.find(large).number

    table.forget_large()

    assert large not in table._unchanged
    assert [content.parts[0] for content in table._by_content] == [table.find(small).data[0]]
    assert table.find(small).number == numbers[0]
    assert table.find(large).number > numbers[1]


def test_a_function_over_a_large_buffer_has_one_number_until_the_buffer_changes():
    data = bytearray(BULK_THRESHOLD)
    table, function = FunctionTable(), functools.partial(len, Large(data))
    first = table.find(function)
    assert len(first.data) == 2
    assert table.find(functools.partial(len, Large(bytearray(data)))) is first
    data[-1] = 1
    second = table.find(function)
    assert second.number != first.number
    assert [bytes(found.data[1])[-1] for found in (first, second)] == [0, 1], "what was sent is a copy"
    data[-1] = 0
    assert table.find(function) is first
    assert table.find(functools.partial(len, Large(data), Large(data))).number not in (first.number, second.number)


def test_functions_over_buffers_of_bytes_and_of_memory_are_told_apart():
    table = FunctionTable()
    content = bytes(BULK_THRESHOLD)
    kinds = [table.find(functools.partial(len, Large(kind(content)))) for kind in (bytes, bytearray)]
    assert len({found.number for found in kinds}) == 2, "one can be written to, the other cannot"
    assert [table.find(functools.partial(len, Large(kind(content)))) for kind in (bytes, bytearray)] == kinds


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60))
def test_what_is_kept_is_what_was_used_last(uses):
    """Ten functions, each weighing a third of what is allowed."""
    kept, model = Kept(), []
    for key, trim in uses:
        assert kept.use(key, MAX_LARGE_BYTES // 3) == (key not in model)
        model = [other for other in model if other != key] + [key]
        if trim:
            assert kept.trim() == model[:-3]
            model = model[-3:]
    assert list(kept.large) == model
    assert kept.forget_large() == model
    assert not kept.large
    assert kept.trim() == []


def over(array):
    return lambda: array


def test_a_function_over_an_array_is_pickled_again_only_if_the_array_has_changed(pickled):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(BULK_THRESHOLD, dtype=float).reshape(2, -1)
    table, fn = FunctionTable(), over(array)
    first = table.find(fn)
    pickled.clear()

    assert table.find(fn) is first
    assert pickled == []
    array[1, -1] += 1
    second = table.find(fn)
    assert (second.number, pickled) == (first.number + 1, [fn])
    array[1, -1] -= 1
    assert table.find(fn).number == first.number
    assert table.find(fn).number == first.number
    assert pickled == [fn] * 2


def _reshape(array):
    array.shape = (-1,)


def _reinterpret(array):
    array.dtype = "u8"


def _swap(array):
    array.dtype = array.dtype.newbyteorder()


def _describe(array):
    array.dtype = sys.modules["numpy"].dtype(array.dtype, metadata={"unit": "m"})


def _protect(array):
    array.flags.writeable = False


@pytest.mark.parametrize("change", [_reshape, _reinterpret, _swap, _describe, _protect])
@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
def test_an_array_whose_looks_have_changed_is_another(change, pickled):
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros((2, BULK_THRESHOLD))
    table, fn = FunctionTable(), over(array)
    before = table.find(fn)
    pickled.clear()
    change(array)

    after = table.find(fn)
    assert pickled == [fn]
    assert after.number != before.number
    assert payload.loads(after.data)().flags.writeable is array.flags.writeable
    assert payload.loads(after.data)().dtype.str == array.dtype.str
    assert payload.loads(after.data)().dtype.metadata == array.dtype.metadata


@pytest.mark.parametrize("what", ["small", "strided", "of objects", "a subclass", "one of two", "with fields"])
def test_a_function_over_any_other_array_is_pickled_again(what, pickled):
    numpy = pytest.importorskip("numpy")
    large = numpy.zeros((4, BULK_THRESHOLD))
    fn = {
        "small": lambda: over(numpy.zeros(8)),
        "strided": lambda: over(large[:, ::2]),
        "of objects": lambda: over(large.astype(object)),
        "a subclass": lambda: over(large.view(numpy.matrix)),
        "one of two": lambda: over((large, large.copy())),
        "with fields": lambda: over(large.view([("a", "f8")])),
    }[what]()
    table = FunctionTable()
    table.find(fn)
    pickled.clear()

    table.find(fn)
    assert pickled == [fn]


def test_an_array_that_a_function_names_twice_is_one(pickled):
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(BULK_THRESHOLD)
    table, fn = FunctionTable(), over((array, array))
    first = table.find(fn)
    pickled.clear()

    assert table.find(fn) is first
    assert pickled == []


def test_at_most_one_array_of_the_programs_is_kept_alive_and_none_once_it_is_forgotten():
    numpy = pytest.importorskip("numpy")
    table = FunctionTable()

    def find(size):
        array = numpy.zeros(size)
        table.find(over(array))
        return weakref.ref(array)

    same = [find(BULK_THRESHOLD) for _ in range(5)]
    assert [array() is not None for array in same] == [False] * 4 + [True]
    others = [find(MAX_LARGE_BYTES + number) for number in range(3)]
    assert [array() is not None for array in same + others] == [False] * 7 + [True]
    table.forget_large()
    assert others[-1]() is None


def test_a_partial_whose_keywords_or_state_have_changed_is_pickled_again(pickled):
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(BULK_THRESHOLD)

    def changes(fn):
        yield lambda: fn.keywords.update(value=1)
        yield lambda: fn.keywords.update(value=True)
        yield lambda: fn.keywords.pop("value")
        yield lambda: fn.__setstate__((tasks.identity, (array, 5), {}, {}))
        yield lambda: fn.__setstate__((tasks.identity, (array, 5, "value", 7), {}, {}))
        yield lambda: fn.__setstate__((tasks.identity, (array, 5), {"value": 7}, {}))
        yield lambda: fn.__dict__.update(note=1)

    fn = functools.partial(tasks.identity, array, value=2)
    table = FunctionTable()
    for change in changes(fn):
        table.find(fn)
        change()
        pickled.clear()
        found = table.find(fn)
        assert pickled == [fn]
        again = payload.loads(found.data)
        assert (again.args[1:], again.keywords, again.__dict__) == (fn.args[1:], fn.keywords, fn.__dict__)
        assert type(again.keywords.get("value")) is type(fn.keywords.get("value"))


def test_a_partial_that_holds_itself_can_be_held():
    numpy = pytest.importorskip("numpy")
    for args in ((), (numpy.zeros(BULK_THRESHOLD),)):
        fn = functools.partial(tasks.identity, *args)
        fn.keywords["fn"] = fn
        for each in (fn, lambda fn=fn: fn):
            assert FunctionTable().find(each)


def test_a_partial_over_an_array_is_pickled_again_only_if_the_array_has_changed(pickled):
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(BULK_THRESHOLD)
    table, fn = FunctionTable(), functools.partial(tasks.identity, array)
    first = table.find(fn)
    pickled.clear()

    assert table.find(fn) is first
    assert pickled == []
    array[-1] = 1
    assert table.find(fn).number != first.number
