"""What is kept of an outcome holds, whatever happens to what it was made of; and is copied only for that."""

import array
import pickle
import weakref

import pytest

from farm_executor.data import payload
from farm_executor.server.keeping import kept

SIZE = 1 << 17

owner = bytearray(SIZE)


def dumped(value):
    """As a worker has it: the value itself has been forgotten."""
    data = payload.dumps(value)
    assert len(data) == 2, "it travels by itself"
    return data


def numpy_arrays():
    numpy = pytest.importorskip("numpy")
    base = numpy.zeros(2 * SIZE, numpy.uint8)
    return numpy, base


ALONE = {
    "bytearray": lambda: pickle.PickleBuffer(bytearray(SIZE)),
    "array": lambda: pickle.PickleBuffer(array.array("b", bytes(SIZE))),
    "bytes": lambda: pickle.PickleBuffer(bytes(SIZE)),
    "an array of numpy's": lambda: numpy_arrays()[0].zeros(SIZE),
}


@pytest.mark.parametrize("make", ALONE.values(), ids=ALONE)
def test_what_nobody_else_holds_is_kept_as_it_is(make):
    data = dumped(make())
    assert all(one is other for one, other in zip(kept(data), data, strict=True))


SHARED = {
    "a buffer that is held": lambda: (pickle.PickleBuffer(owner), owner),
    "a part of it": lambda: (pickle.PickleBuffer(memoryview(owner)[SIZE // 4 :]), owner),
    "an array of numpy's that is held": lambda: (lambda base: (base, base))(numpy_arrays()[1]),
    "a view": lambda: (lambda base: (base[SIZE:], base))(numpy_arrays()[1]),
    "a view over a buffer": lambda: (numpy_arrays()[0].frombuffer(owner, "uint8"), owner),
}


@pytest.mark.parametrize("make", SHARED.values(), ids=SHARED)
def test_what_others_may_write_to_is_copied(make):
    value, writable = make()
    writable[-1] = 1
    data = dumped(value)
    del value
    copied = kept(data)
    writable[-1] = 2
    assert bytes(copied[1])[-1] == 1
    assert bytes(data[1])[-1] == 2


def test_what_might_be_found_again_is_copied():
    found = array.array("b", bytes(SIZE))
    weak = weakref.ref(found)
    data = dumped(pickle.PickleBuffer(found))
    del found
    copied = kept(data)
    weak()[-1] = 2
    assert bytes(copied[1])[-1] == 0


class Strange(bytearray):
    """Who knows where its memory is."""


def test_what_is_of_an_unknown_kind_is_copied():
    data = dumped(pickle.PickleBuffer(Strange(SIZE)))
    assert kept(data)[1] is not data[1]
