"""Memory that is compared, and sampled."""

import array
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_executor.data import memory
from farm_executor.data.memory import PIECE, same, sample


@pytest.fixture(params=["numpy", "no numpy"])
def numpy(request, monkeypatch):
    if request.param == "numpy":
        pytest.importorskip("numpy")
    else:
        monkeypatch.delitem(sys.modules, "numpy", raising=False)
        monkeypatch.setitem(sys.modules, "numpy", None)


@pytest.mark.parametrize("size", [1, 2, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5])
@pytest.mark.parametrize("kind", [bytes, bytearray, lambda data: array.array("B", data)])
def test_every_byte_counts(numpy, size, kind):
    data = bytearray(range(256)) * (size // 256 + 1)
    one, other = memoryview(kind(bytes(data[:size]))), memoryview(bytearray(data[:size]))

    assert same(one, other)
    assert same(other.toreadonly(), one)
    for place in {0, size // 2, size - 1}:
        other[place] ^= 1
        assert not same(one, other)
        other[place] ^= 1
    assert same(one, other)


def test_another_size_is_not_the_same(numpy):
    assert not same(memoryview(b"1"), memoryview(b"12"))


@given(st.binary(min_size=1, max_size=100), st.binary(min_size=1, max_size=100))
def test_it_agrees_with_comparing_bytes(one, other):
    assert same(memoryview(one), memoryview(other)) == (one == other)
    assert memory._same_in_pieces(memoryview(one), memoryview(bytes(one)))
    assert sample(memoryview(one)) == sample(memoryview(bytearray(one)))


def test_a_sample_sees_changes_of_what_it_looks_at():
    data = bytearray(1000)
    before = sample(memoryview(data))
    data[:] = bytes(range(1, 251)) * 4
    assert sample(memoryview(data)) != before
