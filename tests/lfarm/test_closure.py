"""What lfarm's own closure tests assert, under their names.

Most of theirs are about the form that the macro writes; here it is what the closure gives that counts.
"""

import threading

import pytest
from lfarm import tasks

from farm_executor.lfarm import broadcast_task, deftask, make_channel, receive_result, submit_task


def call(task, *args, **kwargs):
    channel = make_channel()
    submit_task(channel, task, *args, **kwargs)
    return receive_result(channel)


def test_closure_a(kernel):
    a, b = 3, 4
    assert call(lambda c: (a, b, c), 5) == (3, 4, 5)


def test_closure_b(kernel):
    def outer(x):
        return lambda y: lambda z: x + y + z

    assert call(outer(1)(2), 3) == 6


def test_closure_c(kernel):
    """Each round of a loop, bound as Python has it: by a default."""
    assert [call(lambda i=i: i * i) for i in range(4)] == [0, 1, 4, 9]


def test_closure_d(kernel):
    values = [1, 2, 3]
    assert call(lambda: sum(values)) == 6


def test_closure_e(kernel):
    point = tasks.Point(3, 4)
    assert call(lambda: point.x * point.y) == 12


def test_closure_f(kernel):
    scale = 10
    assert call(lambda a, *rest, by=2, **more: (a * scale, rest, by, more), 1, 2, by=3, d=4) == (
        10,
        (2,),
        3,
        {"d": 4},
    )


def test_closure_task(kernel):
    x, y = 1, 2

    def inner_wins(y):
        x = 10
        return x + y

    assert call(lambda: x + y) == 3
    assert call(inner_wins, 20) == 30
    assert call(lambda: inner_wins(y)) == 12


def test_closure_task_over_a_class_that_was_broadcast(farm_kernel):
    point = tasks.Point(3, 4)
    broadcast_task(lambda: tasks.Point)
    assert call(lambda: (point.x, point.y, type(point).__name__)) == (3, 4, "Point")


def test_deftask_closure(kernel):
    scale = 10

    @deftask
    def scaled(x: int) -> int:
        return x * scale

    assert call(scaled, 4) == 40
    assert scaled(4) == 40
    scale = 100
    assert call(scaled, 4) == 400
    assert scaled(4) == 400


def counting():
    """A recursive closure that changes what it captures."""
    n = 0

    def count(depth):
        nonlocal n
        n += depth
        return n if depth == 0 else count(depth - 1)

    return count, lambda: n


def test_imperative_closure(farm_kernel):
    """Each submit takes the current value; what the task changes never comes back."""
    count, current = counting()
    for _ in range(3):
        assert call(count, 4) == 10
        assert current() == 0
    assert [count(4) for _ in range(3)] == [10, 20, 30]
    assert call(count, 4) == 40
    assert current() == 30


def test_imperative_deftask_closure(farm_kernel):
    count, current = counting()
    task = deftask(count)
    for _ in range(3):
        assert call(task, 4) == 10
        assert current() == 0


def test_symbol_macrolet(kernel):
    """Three names deep, each computed from the one around it."""
    a = 1

    def task():
        b = a + 1

        def inner():
            c = b + 1
            return lambda: (a, b, c)

        return inner()()

    assert call(task) == (1, 2, 3)


def test_another_function_that_the_task_calls_travels_along(kernel):
    """Where the original's task fails with "undefined function"."""

    def helper(x):
        return x + offset

    offset = 5
    assert call(lambda x: helper(x) * 2, 1) == 12


def test_a_closure_over_what_cannot_travel_fails_by_itself(farm_kernel):
    lock = threading.Lock()
    with pytest.raises(TypeError, match="lock"):
        call(lambda: lock)
    assert call(lambda: 1) == 1
