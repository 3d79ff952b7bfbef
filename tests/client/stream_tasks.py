"""Tasks that yield."""

import asyncio
import contextlib
import os
import time

from contract.tasks import pass_gate

from farm_executor.server import streaming


def count(n):
    yield from range(n)
    return "counted"


def count_from_the_start(path, padding=0):
    """Yields without end, and notes how far it is, and its end; with padding, numbers as bytes that it follows."""
    number = 0
    try:
        while True:
            with open(path, "w") as file:
                file.write(str(number))
            yield number.to_bytes(8, "little") + bytes(padding) if padding else number
            number += 1
            time.sleep(0.002)
    finally:
        with open(path, "w") as file:
            file.write("closed")


def fail_after(n):
    yield from range(n)
    raise ValueError("after that")


def mixed():
    yield 1
    yield (2, [3])
    yield "text"
    yield b"x" * 100_000
    yield {"four": 4}
    yield None


def arrays(n, size):
    import numpy as np

    array = np.zeros(size, np.uint8)
    for i in range(n):
        array[:] = i  # one and the same memory
        yield array


def arrays_and_copies(n, held):
    """Yields arrays that it makes for each item, and returns how many have been copied to be kept."""
    import numpy as np

    with copies() as copied:
        for i in range(n):
            if held:
                array = np.full(1 << 20, i, np.uint8)
                yield array
            else:
                yield np.full(1 << 20, i, np.uint8)
    return copied


class ArraysAndCopies:
    """The same, as an asynchronous iterator, whose count the last item is."""

    async def __aiter__(self):
        import numpy as np

        with copies() as copied:
            for i in range(3):
                yield np.full(1 << 20, i, np.uint8)
        yield copied


@contextlib.contextmanager
def copies():
    original, copied = streaming.kept, []

    def kept(data):
        result = original(data)
        copied.append(sum(one is not other for one, other in zip(data, result, strict=True)))
        return result

    streaming.kept = kept
    try:
        yield copied
    finally:
        streaming.kept = original


async def count_async(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i


async def later(n):
    await asyncio.sleep(0)
    return list(range(n))


def unsendable():
    yield 1
    yield (i for i in "abc")


def die_after(n, path):
    """Die once there is such a file."""
    yield from range(n)
    while not os.path.exists(path):
        time.sleep(0.01)
    os._exit(3)


def die_first(path):
    if not os.path.exists(path):
        open(path, "w").close()
        os._exit(3)
    yield from range(3)


def one_then_pass(address):
    yield "one"
    pass_gate(address)
    yield "two"


def raise_at_once():
    raise ValueError("at once")
