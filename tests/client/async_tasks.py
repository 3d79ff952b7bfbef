"""Async functions that are run as tasks."""

import asyncio
import functools
import os
import socket
import time


async def add(a, b=1):
    await asyncio.sleep(0)
    return a + b


class Adder:
    def __init__(self, b):
        self.b = b

    async def __call__(self, a):
        return await add(a, self.b)

    async def method(self, a):
        return await add(a, self.b)


def gives_coroutine(a):
    return add(a)


FORMS = {
    "a function": add,
    "a partial": functools.partial(add, b=1),
    "a method": Adder(1).method,
    "an object": Adder(1),
    "a function that returns what another gives": gives_coroutine,
}


async def fail(text):
    await asyncio.sleep(0)
    raise ValueError(text)


async def fail_at(number, bad):
    if number == bad:
        raise ValueError(str(number))
    return number


async def hang(address, how):
    arrived = socket.socket(socket.AF_UNIX)
    arrived.connect(address)
    if how == "await":
        await asyncio.Event().wait()
    while True:
        time.sleep(1)


async def leave_behind():
    async def linger():
        try:
            await asyncio.sleep(3600)
        finally:
            os.environ["LINGERED"] = "cancelled"

    task = asyncio.get_running_loop().create_task(linger())
    await asyncio.sleep(0)
    return task.done()


def what_lingers():
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return os.environ.pop("LINGERED", "")
    return "a loop"


async def set_up():
    await asyncio.sleep(0)
    os.environ["SET_UP"] = "yes"


async def run_within():
    coroutine = add(1)
    try:
        asyncio.run(coroutine)
    finally:
        coroutine.close()


async def yields():
    yield 1
