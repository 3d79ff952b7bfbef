"""Tasks of the client's tests, in a module that workers can import."""

import ctypes
import functools
import gc
import os
import pickle
import threading
import time
import typing

from contract.tasks import pass_gate


def pid_after(seconds):
    time.sleep(seconds)
    return os.getpid()


def nested(farm, depth, deadline):
    if depth == 0:
        return os.getpid()
    return farm.submit(nested, farm, depth - 1, deadline).result(timeout=deadline)


def append(path, text):
    with open(path, "a") as file:
        file.write(text + "\n")


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.005)


def die_after_noting(path):
    append(path, "begun")
    os._exit(7)


def after(seconds, value):
    time.sleep(seconds)
    return value


def divide(number, by):
    return number / by


def echo(value):
    return value


def sign(path, text):
    with open(path, "a") as file:
        file.write(f"{text}\n")


def sign_after(path, seconds, number):
    time.sleep(seconds)
    sign(path, number)
    return number


def fail_at(path, place, number):
    if number == place:
        sign(path, "failed")
        raise ZeroDivisionError(number)
    return number


def lock_at(place, number):
    return threading.Lock() if number == place else number


class NotThere:
    def __reduce__(self):
        return refuse, (os.getpid(),)


def refuse(pid):
    if pid != os.getpid():
        raise ValueError("not here")
    return


def unreadable_at(place, number):
    return NotThere() if number == place else number


class Point(typing.NamedTuple):
    x: int
    y: int


def die_at(path, place, number):
    if number == place:
        sign(path, "died")
        os._exit(3)
    return number


def die_once_at(path, place, number):
    if number == place and not os.path.exists(path):
        sign(path, "died")
        os._exit(3)
    return number


def after_unless(seconds, number, bad):
    time.sleep(seconds)
    return 1 / 0 if number == bad else number


def append_one(items):
    items.append(1)
    return items


def mark(value):
    import builtins

    builtins.mark_of_a_broadcast = value
    return os.getpid()


def look():
    import builtins

    return getattr(builtins, "mark_of_a_broadcast", None)


def die_once(path):
    if not os.path.exists(path):
        append(path, "dead")
        os._exit(3)
    return os.getpid()


def fail_on(pid):
    if os.getpid() == pid:
        raise ZeroDivisionError("on this one alone")
    return "fine"


def sign_and_compute(path):
    """In C, holding the interpreter's lock."""
    append(path, str(os.getpid()))
    return sum(range(10**14))


def die_in_the_second(path):
    with open(path) as file:
        words = file.read().split()
    if words[-1] == "made":
        append(path, "dead")
        os._exit(3)
    append(path, "made")


def pass_gate_when(address, flag):
    if os.path.exists(flag):
        pass_gate(address)


def sign_and_make(path, number, size):
    sign(path, f"{os.getpid()} {number}")
    return bytes(size)


def sign_slowly(path, number, seconds):
    sign(path, f"{os.getpid()} {number}")
    time.sleep(seconds)
    return number


def sign_and_look(path, number):
    sign(path, f"{os.getpid()} {number}")
    return look()


def sign_pass_gate(path, address, number):
    sign(path, number)
    return pass_gate(address, number)


def sign_and_hold_the_lock(path, seconds):
    """In C, holding the interpreter's lock: no other thread of the worker runs."""
    sign(path, "begun")
    return ctypes.PyDLL(None).sleep(seconds)


def held_of_functions():
    """How many bytes this worker keeps of functions: pickles, and what partials hold."""
    objects = gc.get_objects()
    pickles = sum(len(one.data[0]) for one in objects if type(one).__name__ == "SentFunction" and one.data)
    partials = [one for one in objects if type(one) is functools.partial]
    return pickles + sum(len(arg) for one in partials for arg in one.args if type(arg) is bytes)


def pass_first(path, number):
    """The call of 0 waits at the gate."""
    if not number:
        pass_gate(path)
    return number


class Large:
    """An object with a buffer that travels beside the pickle, as an array of numpy's has."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        return Large, (pickle.PickleBuffer(self.data),)
