"""What is sent is what is received: values, buffers, and functions, without a farm.

`received` makes of a payload what the other end gets: the same bytes in other memory.
"""

import asyncio
import collections
import copyreg
import datetime as dt
import enum
import functools
import math
import operator
import pathlib
import pickle
import re
import subprocess
import sys
import types
import weakref
from array import array
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from serialization_tasks import Adder, Backed, module_function

from farm_executor import RemoteProtocolError
from farm_executor.core.frames import BULK_THRESHOLD, FrameType, Kind, encode_payload, payload_of
from farm_executor.core.reader import FrameReader
from farm_executor.data import memory, payload
from farm_executor.data.byvalue import Resolver
from farm_executor.data.payload import by_value, dumps, dumps_call, loads, registered_by_value

relaxed = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
few = settings(relaxed, max_examples=60)


def received(parts):
    """The payload as it comes out of a socket."""
    reader = FrameReader(allocate=memory.allocate)
    (frame,) = reader.receive_data(b"".join(encode_payload(FrameType.READY, parts)))
    return payload_of(frame)


def round_trip(value, **options):
    return loads(received(dumps(value, **options)))


def same(left, right):
    """Equal in type and value all the way down; a NaN is the same as one with the same sign."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return repr(left) == repr(right)
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    if isinstance(left, (list, tuple, collections.deque)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return len(left) == len(right) and all(same(a, b) and same(left[a], right[b]) for a, b in zip(left, right))
    if isinstance(left, (set, frozenset)):
        return len(left) == len(right) and sorted(map(repr, left)) == sorted(map(repr, right))
    if isinstance(left, (Point, types.SimpleNamespace)):
        return same(vars(left), vars(right))
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    return left == right


# -- values -------------------------------------------------------------------------------------------------


@dataclass
class Point:
    x: Any
    y: Any = None
    tags: list = field(default_factory=list)


@dataclass(frozen=True)
class Fixed:
    name: str


class Color(enum.Enum):
    RED = "r"
    GREEN = "g"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mode(enum.Flag):
    READ = 1
    WRITE = 2


Pair = collections.namedtuple("Pair", "left right")


class Row(NamedTuple):
    number: int
    name: str = ""


class Slotted:
    __slots__ = ("__private", "value")

    def __init__(self, value):
        self.value = value
        self.__private = -value

    def __eq__(self, other):
        return type(other) is Slotted and (self.value, self.__private) == (other.value, other.__private)

    __hash__ = None


hashables = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(st.characters()),  # surrogates, too
    st.binary(),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.uuids(),
    st.datetimes(timezones=st.none() | st.just(dt.timezone.utc)),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 3)),
    st.sampled_from(
        [Color.RED, Level.HIGH, Mode.READ | Mode.WRITE, Fixed("f"), Row(1), pathlib.PurePosixPath("/a")]
    ),
    st.sampled_from([int, dict, type(None), len, math.sin, operator.itemgetter, Ellipsis, NotImplemented, Color]),
    st.text().map(re.escape).map(re.compile),
)
leaves = st.one_of(
    hashables,
    st.floats(),
    st.complex_numbers(),
    st.binary().map(bytearray),
    st.lists(st.integers(-128, 127)).map(lambda items: array("b", items)),
    st.builds(slice, st.integers(), st.none(), st.integers()),
    st.integers().map(Slotted),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(hashables, inner, max_size=4),
        st.dictionaries(hashables, inner, max_size=4).map(collections.OrderedDict),
        st.dictionaries(hashables, inner, max_size=4).map(lambda items: collections.defaultdict(list, items)),
        st.dictionaries(st.text(), inner, max_size=3).map(lambda items: types.SimpleNamespace(**items)),
        st.lists(inner, max_size=3).map(lambda items: collections.deque(items, maxlen=9)),
        st.sets(hashables, max_size=4),
        st.frozensets(hashables, max_size=4),
        st.builds(Point, inner, inner, st.lists(inner, max_size=2)),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=15,
)


@relaxed
@given(values)
def test_a_value_comes_out_as_it_went_in(value):
    assert same(round_trip(value), value)


@few
@given(values)
def test_a_value_comes_out_by_value_too_where_its_bytes_mention_main(value):
    parts = dumps(("__main__", value))

    assert by_value(parts)
    assert same(loads(received(parts)), ("__main__", value))


plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary())


@given(st.lists(st.one_of(plain, st.lists(plain, max_size=2))), st.dictionaries(st.text(), plain, max_size=2))
def test_a_call_comes_out_as_it_went_in(args, kwargs):
    arguments = payload.dumps_call(tuple(args), kwargs)
    assert payload.loads(arguments) == (tuple(args), kwargs)
    assert not payload.by_value(arguments) or "__main__" in repr((args, kwargs))


class Whole(int):
    pass


@pytest.mark.parametrize(
    "value", [[], (), {}, bytearray(), Whole(1), len, object(), "x" * 1025, b"x" * 1025, 1 << 8192]
)
def test_what_may_change_or_is_large_shares_no_pickle(value):
    assert not payload.is_plain(value)
    assert not payload.all_plain([1, value])


@given(st.lists(plain))
def test_plain_values_share_a_pickle(values):
    assert payload.all_plain(values)
    assert all(map(payload.is_plain, values))
    again = payload.loads_together(payload.dumps_together(values), len(values))
    assert list(map(repr, again)) == list(map(repr, values))


@pytest.mark.parametrize(
    "data", [b"", b"garbage", pickle.dumps([1]), pickle.dumps((1, 2)), pickle.dumps("ab"), pickle.dumps([1, len])]
)
def test_what_is_not_as_many_values_as_announced_is_refused(data):
    with pytest.raises(RemoteProtocolError):
        payload.loads_together(data, 2)


def test_members_of_an_enum_stay_the_same_objects():
    result = round_trip([Color.RED, Level.LOW, Mode.READ | Mode.WRITE])

    assert result[0] is Color.RED
    assert result[1] is Level.LOW
    assert result[2] is Mode.READ | Mode.WRITE


def test_an_object_that_holds_itself_does_so_afterwards():
    loop: list[Any] = [1]
    loop += [loop, {"loop": loop}]
    point = Point(loop)
    point.y = point

    result = round_trip((loop, point))

    assert result[0][1] is result[0]
    assert result[0][2]["loop"] is result[0]
    assert result[1].y is result[1]
    assert result[1].x is result[0]


def test_what_is_shared_within_a_value_stays_shared():
    shared = np.zeros(3 * BULK_THRESHOLD, np.uint8)

    first, second = round_trip([shared, shared])

    assert first is second


def test_reducers_that_the_user_registered_are_honoured(monkeypatch):
    class Handle:
        """Cannot be found by name here: in a local scope."""

    monkeypatch.setitem(copyreg.dispatch_table, Handle, lambda handle: (complex, (1, 2)))

    assert round_trip(Handle()) == 1 + 2j


def test_a_weak_mapping_travels_with_what_it_holds():
    point = Point(1)
    by_key, by_value_ = weakref.WeakKeyDictionary({Color: 1}), weakref.WeakValueDictionary(a=point)

    keys, values_, kept = round_trip((by_key, by_value_, point))

    assert dict(keys) == {Color: 1}
    assert values_["a"] is kept


# -- errors -------------------------------------------------------------------------------------------------


class Unwilling:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


@pytest.mark.parametrize("error", [ValueError("no"), KeyError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_what_a_reduction_raises_is_raised(error):
    with pytest.raises(type(error)) as caught:
        dumps(Unwilling(error))

    assert caught.value is error


def test_what_nobody_can_pickle_raises_an_error_that_says_what_it_is():
    with pytest.raises(TypeError, match="generator"):
        dumps(i for i in ())


def test_an_object_nested_too_deep_is_refused():
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]

    with pytest.raises((RecursionError, pickle.PicklingError)):
        dumps(nested)
    while nested:  # taken apart gently
        nested = nested.pop()


def test_a_module_that_is_not_here_is_named(monkeypatch, tmp_path):
    (tmp_path / "only_at_the_sender.py").write_text("def f(): pass")
    monkeypatch.syspath_prepend(tmp_path)
    import only_at_the_sender

    parts = dumps(only_at_the_sender.f)
    monkeypatch.undo()
    del sys.modules["only_at_the_sender"]

    with pytest.raises(ModuleNotFoundError, match="only_at_the_sender"):
        loads(parts)


# -- buffers ------------------------------------------------------------------------------------------------


def views(original):
    """The array and other ways to look at it: other orders, strides, dimensions, without write access."""
    read_only = original.view()
    read_only.flags.writeable = False
    ways = [original, read_only, np.asfortranarray(original), original.T, original.reshape(-1), original[..., None]]
    if original.ndim:
        ways += [original[::2], original[::-1], np.repeat(original, 2, axis=-1)[..., ::2], original[:0]]
        ways.append(np.broadcast_to(original, (2, *original.shape)))
    return ways


def assert_as_by_plain_pickle(result, original):
    """numpy itself copies what is not contiguous, what holds dates and more, in the machine's byte order."""
    plain = pickle.loads(pickle.dumps(original, 5))
    assert type(result) is np.ndarray
    assert same(result, plain)
    assert str(result.flags) == str(plain.flags)
    if result.dtype == original.dtype:
        assert same(result, original)


dtypes = st.one_of(nps.scalar_dtypes(), nps.array_dtypes(max_size=3), nps.nested_dtypes(max_leaves=3))


@relaxed
@given(st.data())
def test_an_array_of_any_type_shape_and_order_comes_out_as_it_went_in(data):
    original = data.draw(nps.arrays(dtypes, nps.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)))
    original = data.draw(st.sampled_from(views(original)))

    result = round_trip(original, out_of_band=data.draw(st.booleans()))

    assert_as_by_plain_pickle(result, original)


LARGE = {
    "bytes": np.arange(2 * BULK_THRESHOLD, dtype=np.uint32).view(np.uint8),
    "floats": np.linspace(0, 1, BULK_THRESHOLD),
    "big-endian": np.arange(BULK_THRESHOLD, dtype=">i4"),
    "truths": np.arange(2 * BULK_THRESHOLD) % 3 == 0,
    "complex": np.full(BULK_THRESHOLD, 1 + 2j),
    "strings": np.full(BULK_THRESHOLD, b"abc"),
    "texts": np.full(BULK_THRESHOLD, "äöü"),
    "dates": np.full(BULK_THRESHOLD, np.datetime64("2020-01-01", "s")),
    "records": np.zeros(BULK_THRESHOLD, [("a", "u1"), ("b", ">f8", (2,))]),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_array_travels_beside_the_pickle_and_comes_out_as_it_went_in(name):
    for original in views(LARGE[name].reshape(2, -1)):
        parts = dumps(original)
        result = loads(received(parts))

        assert_as_by_plain_pickle(result, original)
        contiguous = original.flags.c_contiguous or original.flags.f_contiguous
        if original.size and original.dtype.kind != "M" and contiguous:
            assert len(parts) == 2
            assert len(parts[0]) < 1000
            assert result.flags.writeable == original.flags.writeable


def test_an_array_of_objects_comes_out_as_it_went_in():
    data = np.array([{"a": 1}, None, "text", 1.5], object)

    result = round_trip(data)

    assert result.dtype == object
    assert result.tolist() == data.tolist()


@pytest.mark.parametrize(("size", "parts"), [(BULK_THRESHOLD - 1, 1), (BULK_THRESHOLD, 2), (BULK_THRESHOLD + 1, 2)])
def test_a_buffer_travels_beside_the_pickle_from_64_kib_on(size, parts):
    data = np.arange(size, dtype=np.uint8)

    assert BULK_THRESHOLD == 64 * 1024
    assert len(dumps(data)) == parts
    assert len(dumps(data, out_of_band=False)) == 1
    assert len(dumps(["__main__", data])) == parts
    assert len(dumps(["__main__", data], out_of_band=False)) == 1


def test_large_buffers_are_not_copied_and_keep_their_order():
    arrays = [np.full(BULK_THRESHOLD, number, np.uint8) for number in range(5)]
    small = np.zeros(3, np.uint8)

    pickled, *buffers = dumps([arrays[0], small, *arrays[1:], arrays[0]])

    assert len(pickled) < 1000
    assert [np.frombuffer(buffer, np.uint8)[0] for buffer in buffers] == [0, 1, 2, 3, 4]
    arrays[3][:] = 77
    assert bytes(buffers[3][:2]) == b"MM"


def test_more_buffers_than_a_frame_has_segments_are_put_into_the_pickle(monkeypatch):
    monkeypatch.setattr(payload, "MAX_SEGMENTS", 3)
    arrays = [np.full(BULK_THRESHOLD, number, np.uint8) for number in range(5)]

    parts = dumps(arrays)

    assert len(parts) == 3
    assert [item[0] for item in loads(received(parts))] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [0, 10, BULK_THRESHOLD])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_pickle_buffer_comes_out_as_what_it_was_made_of(size, kind):
    (result,) = round_trip([pickle.PickleBuffer(kind(size))])

    assert bytes(result) == bytes(size)
    assert memoryview(result).readonly == (kind is bytes)


def test_a_pickle_buffer_with_gaps_is_refused():
    with pytest.raises(pickle.PicklingError, match="contiguous"):
        dumps(pickle.PickleBuffer(memoryview(bytes(10))[::2]))


def test_a_memoryview_comes_out_as_its_bytes():
    assert round_trip(memoryview(b"abcdef")[::2]) == b"ace"


@pytest.mark.parametrize("size", [100, BULK_THRESHOLD])
def test_an_object_of_the_users_may_have_its_buffer_beside_the_pickle(size):
    parts = dumps(Backed(bytearray(b"x" * size)))

    assert len(parts) == 1 + (size >= BULK_THRESHOLD)
    assert bytes(loads(received(parts)).data) == b"x" * size


def test_large_bytes_and_bytearrays_come_out_as_they_went_in():
    assert round_trip([bytes(BULK_THRESHOLD * 3), bytearray(BULK_THRESHOLD * 3)]) == [
        bytes(BULK_THRESHOLD * 3),
        bytearray(BULK_THRESHOLD * 3),
    ]


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize(
    "size", [0, 1, BULK_THRESHOLD - 1, BULK_THRESHOLD, memory.MAPPED_SIZE, memory.HUGE_SIZE + 1]
)
def test_long_bytes_travel_beside_the_pickle(kind, size):
    value = kind(b"x" * size)
    for sent in (value, (1, value), (value, value)):
        parts = dumps(sent)
        assert len(parts) == 1 + (size >= BULK_THRESHOLD)
        came = loads(received(parts))
        assert came == sent
        assert type(came) is type(sent)
        last = came[-1] if isinstance(sent, tuple) else came
        assert type(last) is kind
    args, kwargs = loads(received(dumps_call((value, 2), {"a": value, "b": 3})))
    assert (args, kwargs) == ((value, 2), {"a": value, "b": 3})
    assert args[0] is kwargs["a"] or not size
    assert len(dumps(value, out_of_band=False)) == 1


def test_a_bytearray_that_came_beside_the_pickle_can_be_resized():
    came = loads(received(dumps(bytearray(BULK_THRESHOLD))))
    came += b"more"
    assert len(came) == BULK_THRESHOLD + 4


def test_a_bytearray_may_be_changed_and_resized_once_it_is_pickled():
    value = bytearray(BULK_THRESHOLD)
    parts = dumps_call((value,), {})
    value[0] = 1
    value.clear()
    ((came,), _) = loads(received(parts))
    assert came == bytearray(BULK_THRESHOLD)


@pytest.mark.parametrize("holder", [lambda value: [value], lambda value: {1: value}, lambda value: (value,)])
def test_a_bytearray_that_another_value_refers_to_stays_one_object_with_it(holder):
    value = bytearray(BULK_THRESHOLD)
    ((direct, held), _) = loads(received(dumps_call((value, holder(value)), {})))
    assert next(iter(held.values() if isinstance(held, dict) else held)) is direct
    direct, held = loads(received(dumps((value, holder(value)))))
    assert next(iter(held.values() if isinstance(held, dict) else held)) is direct


def test_long_bytes_beside_what_travels_by_value_come_out_too():
    value = bytes(BULK_THRESHOLD)
    came, function = loads(received(dumps((value, lambda: 5))), Resolver)
    assert (came, function()) == (value, 5)


def test_an_array_over_bytes_stays_as_it_is():
    readonly = np.frombuffer(bytes(BULK_THRESHOLD), np.uint8)
    writable = np.frombuffer(bytearray(BULK_THRESHOLD), np.uint8)
    came = loads(received(dumps((readonly, writable))))
    assert [array.flags.writeable for array in came] == [False, True]


def test_bytes_are_received_into_the_object_itself():
    """As CPython has it: the file gives its memory away."""
    file = memory.allocate(memory.HUGE_SIZE, Kind.BYTES)
    with file.getbuffer() as view:
        view[-1] = 7
        address = np.frombuffer(view, np.uint8).ctypes.data
    value = file.getvalue()
    assert value[-1] == 7
    assert np.frombuffer(value, np.uint8).ctypes.data == address


@pytest.mark.parametrize("size", [0, 1, BULK_THRESHOLD, memory.MAPPED_SIZE, memory.HUGE_SIZE])
def test_memory_for_what_is_received_can_be_written_to(size, monkeypatch):
    for hidden in (False, True):
        if hidden:
            monkeypatch.delitem(sys.modules, "numpy")
        for kind in Kind:
            made = memory.allocate(size, kind)
            with made.getbuffer() if kind is Kind.BYTES else memoryview(made) as view:
                assert view.nbytes == size
                assert not view.readonly


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
def test_memory_for_what_is_received_is_not_shared_with_children():
    program = (
        "import os\n"
        "from farm_executor.core.frames import Kind\n"
        "from farm_executor.data.memory import MAPPED_SIZE, allocate\n"
        "memory = allocate(MAPPED_SIZE, Kind.MEMORY)\n"
        "if not (child := os.fork()):\n"
        "    memory[0] = 1\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print(memory[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 0


class Counted:
    """Counts how often it is pickled, with a buffer of each size."""

    def __init__(self, *sizes):
        self.buffers = [bytearray(size) for size in sizes]
        self.pickled = 0

    def __reduce_ex__(self, protocol):
        self.pickled += 1
        return list, ([pickle.PickleBuffer(buffer) for buffer in self.buffers],)


@pytest.mark.parametrize(
    ("sizes", "parts", "rounds"),
    [
        ([], 1, 1),
        ([BULK_THRESHOLD], 2, 1),
        ([BULK_THRESHOLD, 2 * BULK_THRESHOLD], 3, 1),
        ([BULK_THRESHOLD, 10], 2, 2),
        ([10], 1, 2),
    ],
)
def test_what_has_only_large_buffers_is_pickled_once(sizes, parts, rounds):
    value = Counted(*sizes)

    assert len(dumps(value)) == parts
    assert value.pickled == rounds


def test_what_must_not_have_parts_has_none_however_large():
    assert len(dumps(Counted(BULK_THRESHOLD), out_of_band=False)) == 1


# -- functions ----------------------------------------------------------------------------------------------


def decorated_with_wraps(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args) * 100

    return wrapper


def local_functions():
    """Functions that no name leads to, with an argument and what they then return."""
    held = [1, 2]

    def nested(number):
        def inner():
            return number + len(held)

        return inner()

    def recursive(number):
        return number * recursive(number - 1) if number else 1

    def even(number):
        return number == 0 or odd(number - 1)

    def odd(number):
        return number != 0 and even(number - 1)

    def generator(number):
        yield from range(number)

    async def coroutine(number):
        await asyncio.sleep(0)
        return number + len(held)

    @functools.lru_cache(maxsize=7, typed=True)
    def fibonacci(number):
        return number if number < 2 else fibonacci(number - 1) + fibonacci(number - 2)

    @functools.singledispatch
    def kind(value):
        return "anything"

    @kind.register
    def _(value: int):
        return "int"

    class Local:
        def method(self, number):
            return number + len(held)

        @functools.cached_property
        def count(self):
            return len(held)

    class Child(Local):
        def method(self, number):
            return super().method(number) + 1

    @decorated_with_wraps
    def wrapped(number):
        return number

    def with_default(number, by=held, *, times=2):
        return (number + len(by)) * times

    return {
        "lambda": (lambda number: number + 1, 1, 2),
        "closure": (lambda number: [*held, number], 3, [1, 2, 3]),
        "nested": (nested, 1, 3),
        "recursive": (recursive, 5, 120),
        "mutually recursive": (even, 10, True),
        "generator": (lambda number: list(generator(number)), 3, [0, 1, 2]),
        "coroutine": (lambda number: asyncio.run(coroutine(number)), 1, 3),
        "cached": (fibonacci, 20, 6765),
        "dispatching": (lambda number: [kind(number), kind("")], 1, ["int", "anything"]),
        "method of a local class": (Local().method, 1, 3),
        "super": (Child().method, 1, 4),
        "cached property": (lambda number: Child().count, 1, 2),
        "wraps": (wrapped, 2, 200),
        "defaults": (with_default, 1, 6),
        "partial of a lambda": (functools.partial(lambda a, b: a - b, b=1), 3, 2),
    }


@pytest.mark.parametrize("name", local_functions())
def test_a_function_that_no_name_leads_to_works_elsewhere(name):
    function, argument, result = local_functions()[name]

    parts = dumps(function)

    assert by_value(parts)
    assert loads(received(parts))(argument) == result


IMPORTABLE = {
    "function": (module_function, 1, 2),
    "builtin": (len, [1, 2], 2),
    "class": (Adder, 1, Adder),
    "instance": (Adder(2), 1, 3),
    "bound method": (Adder(2).add, 1, 3),
    "class method": (Adder.shift, 1, 11),
    "static method": (Adder.double, 2, 4),
    "partial": (functools.partial(module_function, by=5), 1, 6),
    "operator": (operator.itemgetter(1), "abc", "b"),
    "builtin method": ([1, 2, 3].index, 2, 1),
    "method of the type": (str.upper, "a", "A"),
    "ufunc": (np.negative, 3, -3),
}


@pytest.mark.parametrize("name", IMPORTABLE)
def test_a_function_that_a_name_leads_to_travels_by_name(name):
    function, argument, result = IMPORTABLE[name]

    parts = dumps(function)
    answer = loads(received(parts))(argument)

    assert not by_value(parts)
    assert answer == result or type(answer) is result


def test_a_function_that_a_name_leads_to_is_itself_afterwards():
    for function in (module_function, Adder, len, Adder.cached):
        assert round_trip(function) is function
        assert round_trip(["__main__", function])[1] is function


def test_a_cached_function_that_no_name_leads_to_keeps_its_parameters_and_caches_anew():
    fibonacci = local_functions()["cached"][0]
    fibonacci(10)

    copy = round_trip(fibonacci)

    assert copy.cache_parameters() == {"maxsize": 7, "typed": True}
    assert copy.cache_info().currsize == 0
    assert copy(10) == 55
    assert copy.cache_info().currsize == 7
    assert copy.__name__ == "fibonacci"


@pytest.fixture
def registered():
    """The functions of a module that is installed travel by value."""
    module = sys.modules["serialization_tasks"]
    cloudpickle.register_pickle_by_value(module)
    yield module
    cloudpickle.unregister_pickle_by_value(module)


def test_a_registered_module_travels_by_value(registered, monkeypatch):
    cached = types.ModuleType("registered_too")
    exec("import functools\n@functools.lru_cache\ndef f(x): return x + y\ny = 5", vars(cached))
    monkeypatch.setitem(sys.modules, "registered_too", cached)
    cloudpickle.register_pickle_by_value(cached)
    try:
        assert registered_by_value()
        parts = dumps([module_function, Adder(3), cached.f])
    finally:
        cloudpickle.unregister_pickle_by_value(cached)
    monkeypatch.delitem(sys.modules, "registered_too")

    assert by_value(parts)
    function, adder, f = loads(received(parts))
    assert function is not module_function
    assert function(1) == 2
    assert adder(1) == 4
    assert f(1) == 6


def test_a_closure_is_sent_as_it_is_at_that_moment():
    held = [1]
    first = dumps(lambda: held)
    held.append(2)
    second = dumps(lambda: held)

    assert (loads(first)(), loads(second)()) == ([1], [1, 2])


def test_the_marker_of_a_by_value_payload_is_found_in_any_kind_of_buffer():
    for parts in (dumps(lambda: 1), dumps([1])):
        for kind in (bytes, bytearray, memoryview):
            assert by_value([kind(parts[0])]) == by_value(parts)
    assert not by_value(dumps(b"V"))


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("kind", [Kind.MEMORY, Kind.BYTES])
def test_more_than_there_is_memory_for_is_no_error_of_the_connection(hidden, kind, monkeypatch):
    """That is an OSError, after which the same would be sent again over another connection."""
    if hidden:
        monkeypatch.delitem(sys.modules, "numpy")
    with pytest.raises(MemoryError):
        memory.allocate(1 << 55, kind)


def test_a_segment_that_is_only_promised_takes_no_memory_without_numpy():
    program = (
        "import resource\n"
        "from farm_executor.core.frames import Kind\n"
        "from farm_executor.data.memory import allocate\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "segment = allocate(1 << 30, Kind.MEMORY)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 << 10  # KiB
