"""What the tests of serialization run in workers: importable by name in every one."""

import functools
import os
import pickle
import sys
import threading

import numpy as np

RAISED_AGAIN = ValueError("raised again and again")
SHARED = np.zeros(100_000)


def identity(value):
    return value


def add_to(array):
    array[:] += 1
    return float(array.sum())


def raise_it(error):
    raise error


def raise_again(_):
    raise RAISED_AGAIN


def count_up():
    """The same array each time, with other content."""
    SHARED[:] += 1
    return SHARED


def describe_array(array):
    return array.flags.writeable, array.dtype.str, array.shape, float(array.sum())


def write_to(array):
    array[0] = 7
    return array


def are_the_same(first, second):
    return first is second


def returns_lock():
    return threading.Lock()


def returns(make, *args):
    return make(*args)


class NoText(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class Mine(Exception):
    """Made in one way, shown in another."""

    def __init__(self, code, *, hint):
        super().__init__(f"code {code}")
        self.code, self.hint = code, hint


def raise_mine(code):
    try:
        {}["missing"]
    except KeyError as error:
        raise Mine(code, hint=[code]) from error


class FailsElsewhere:
    """Can be rebuilt in the process that made it only; in others it does what ``how`` says."""

    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        return rebuild_here, (self.how, os.getpid())


def rebuild_here(how, pid):
    if os.getpid() == pid:
        return FailsElsewhere(how)
    return misbehave(how)


def misbehave(how):
    if how == "raise":
        raise RuntimeError("the reason")
    if how == "raise without text":
        raise NoText
    if how == "exit":
        sys.exit("the reason")
    if how == "interrupt":
        raise KeyboardInterrupt("the reason")
    if how == "raise unreadably":
        raise Unreadable
    raise AssertionError(how)


class FailsToPickleUnreadably:
    def __reduce__(self):
        raise Unreadable("x")


class FailsToPickle:
    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        return misbehave(self.how)


class ErrorThatFailsElsewhere(FailsElsewhere, Exception):
    pass


class ErrorThatFailsToPickle(FailsToPickle, Exception):
    pass


class Unreadable(Exception):
    """Of which nothing can be read."""

    def __getattribute__(self, name):
        raise RuntimeError(f"{name} must not be read")

    def __setattr__(self, name, value):
        raise RuntimeError(f"{name} must not be set")


def raise_unreadable():
    raise Unreadable("x")


class Backed:
    """An object of the user's whose state is a buffer."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        return type(self), (pickle.PickleBuffer(self.data),)


def module_function(number, *, by=1):
    return number + by


class Adder:
    offset = 10

    def __init__(self, by):
        self.by = by

    def __call__(self, number):
        return number + self.by

    def add(self, number):
        return number + self.by

    @classmethod
    def shift(cls, number):
        return number + cls.offset

    @staticmethod
    def double(number):
        return 2 * number

    @functools.lru_cache
    def cached(self, number):
        return number + self.by

    @functools.cached_property
    def twice(self):
        return 2 * self.by
