"""lfarm's counterparts of what Python does with sequences, and faults in their use."""

import operator
from typing import Any

from typing_extensions import assert_type

from farm_executor.lfarm import (
    deftask,
    pcount,
    pcount_if,
    pevery,
    pfind,
    pfind_if,
    plet,
    pmap,
    pmap_into,
    pmap_reduce,
    preduce,
    preduce_partial,
    premove,
    premove_if,
    psome,
    psort,
)


def square(x: int) -> int:
    return x * x


async def fetch(x: int) -> str:
    return str(x)


def cut(text: str, length: int) -> bytes:
    return text[:length].encode()


def total(x: float, y: float) -> float:
    return x + y


@deftask
def add(x: int, y: int = 0) -> int:
    return x + y


def mapping(rows: list[list[int]]) -> None:
    assert_type(pmap(square, [1, 2]), list[int])
    assert_type(pmap(cut, ["a"], [2], parts=3), list[bytes])
    assert_type(pmap(add, [1, 2], size=1), list[int])
    assert_type(pmap(lambda text: text.upper(), ["a"]), list[str])
    assert_type(pmap(fetch, [1, 2]), list[str])
    assert_type(pmap(lambda x: fetch(x), [1, 2], progress=True), list[str])
    assert_type(pmap(max, [1], [2], [3], [4], [5]), list[Any])
    assert_type(pmap("math:sqrt", [1, 2]), list[Any])
    assert_type(pmap_into([0], square, [1]), list[int])
    print(pmap(max, *rows), plet(total, x=lambda: 1, y=2.0).is_integer())
    pmap(square, ["a"])  # E
    pmap(cut, ["a"], ["b"])  # E
    pmap(square, [1], [2])  # E
    pmap(square)  # E
    pmap(square, [1], part=3)  # E
    pmap(add, ["a"])  # E
    pmap_into((0,), square, [1])  # E
    a: list[str] = pmap(square, [1])  # E
    b: str = plet(total, x=1, y=2)  # E
    print(a, b)


def reducing() -> None:
    assert_type(preduce(add, [1, 2]), int)
    assert_type(preduce(max, ["a", "b"]), str)
    assert_type(preduce(operator.add, [1, 2], from_end=True, recurse=True), int)
    assert_type(preduce("operator:add", [1, 2]), int)
    assert_type(preduce(total, ["a", "b"], key=len, initial_value=0.5), float)
    assert_type(preduce(lambda x, y: x + y, [1.0, 2.0], initial_value=0.0), float)
    assert_type(preduce(total, ["a"], key="builtins:len"), Any)
    assert_type(preduce_partial(add, [1, 2], parts=2), list[int])
    assert_type(preduce_partial(add, ["a"], key=len), list[int])
    assert_type(pmap_reduce(len, add, ["a"], start=0), int)
    assert_type(pmap_reduce("builtins:len", add, ["a"]), Any)
    preduce(add, ["a"])  # E
    preduce(add, ["a"], key=str.upper)  # E
    preduce(square, [1, 2])  # E
    preduce(add, [1, 2], initial="a")  # E
    preduce(add, [1, 2], initial_value="a")  # E
    preduce(add, [1], start="a")  # E
    pmap_reduce(len, add, [1])  # E
    pmap_reduce(str.upper, add, ["a"])  # E


def asking() -> None:
    assert_type(pevery(str.isupper, ["a"]), bool)
    assert_type(psome(square, [1]), int | None)
    assert_type(pfind(1, [3, 1], from_end=True), int | None)
    assert_type(pfind(1, ["a"], key=len), str | None)
    assert_type(pfind_if(str.isupper, ["a"]), str | None)
    assert_type(pfind_if("builtins:bool", ["a"], key="builtins:len"), str | None)
    assert_type(pfind_if(lambda length: length > 3, ["a"], key=len), str | None)
    assert_type(pcount(1, [1, 2], end=1), int)
    assert_type(pcount_if(str.isupper, ["a"], parts=3), int)
    assert_type(premove(1, [1, 2]), list[int])
    assert_type(premove_if(lambda x: x > 1, [1, 2]), list[int])
    pfind_if(str.isupper, [1])  # E
    pfind_if(str.isupper, ["a"], key=len)  # E
    pcount_if(str.isupper, [1])  # E
    premove_if(str.isupper, [1])  # E
    pfind(1, [1], from_ned=True)  # E
    pcount(1, [1], from_end=True)  # E
    premove(1, [1], start="a")  # E
    pevery(str.isupper, 3)  # E
    a: int = psome(square, [1])  # E
    print(a)


def sorting() -> None:
    assert_type(psort([3, 1]), list[int])
    assert_type(psort({"a": 1}, key=len, reverse=True), list[str])
    assert_type(psort([object()], key="builtins:id"), list[object])
    psort([object()])  # E
    psort([1], key=len)  # E
    psort([1], reversed=True)  # E
