"""What belongs to one process is refused, wherever it is found, and the error says what to use instead."""

import ctypes
import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.reduction
import pickle
import socket
import sys

import pytest

from farm_executor import FarmExecutor, TaskExecutionError
from farm_executor.data import payload

DEADLINE = 30.0


@pytest.fixture(scope="module")
def farm():
    with FarmExecutor(2) as farm:
        yield farm


async def async_function(*args):
    return args


async def async_generator(*args):
    yield args


def pipe_end():
    a, b = multiprocessing.Pipe()
    b.close()
    return a, a.close


def opened(thing):
    return thing, thing.close


def opened_file(**options):
    return opened(open(__file__, "rb", **options))  # noqa: SIM115


def kept(thing):
    return thing, lambda: None


def from_queue(queue):
    def close():
        queue.close()
        if hasattr(queue, "join_thread"):
            queue.join_thread()

    return queue, close


context = multiprocessing.get_context("spawn")
BOUND = {
    "a connection": (pipe_end, TypeError, "connect by itself"),
    "a listener": (lambda: opened(multiprocessing.connection.Listener()), TypeError, "connect by itself"),
    "a socket": (lambda: opened(socket.socket()), TypeError, "connect in the task"),
    "a descriptor": (lambda: kept(multiprocessing.reduction.DupFd(1)), TypeError, "connect by itself"),
    "a queue": (lambda: from_queue(context.Queue()), RuntimeError, "Manager"),
    "a joinable queue": (lambda: from_queue(context.JoinableQueue()), RuntimeError, "Manager"),
    "a simple queue": (lambda: from_queue(context.SimpleQueue()), RuntimeError, "Manager"),
    "a lock": (lambda: kept(context.Lock()), RuntimeError, "Manager"),
    "a reentrant lock": (lambda: kept(context.RLock()), RuntimeError, "Manager"),
    "a semaphore": (lambda: kept(context.BoundedSemaphore()), RuntimeError, "Manager"),
    "a condition": (lambda: kept(context.Condition()), RuntimeError, "Manager"),
    "an event": (lambda: kept(context.Event()), RuntimeError, "Manager"),
    "a barrier": (lambda: kept(context.Barrier(2)), RuntimeError, "Manager"),
    "a value": (lambda: kept(context.Value("i")), RuntimeError, "Manager"),
    "an array": (lambda: kept(context.Array("i", 3)), RuntimeError, "Manager"),
    "a raw value": (lambda: kept(context.RawValue("i")), RuntimeError, "shared_memory"),
    "a raw array": (lambda: kept(context.RawArray("i", 3)), RuntimeError, "shared_memory"),
    "a library": (lambda: kept(ctypes.CDLL(None)), TypeError, "load the library"),
    "Python itself": (lambda: kept(ctypes.pythonapi), TypeError, "load the library"),
    "an open file": (opened_file, TypeError, "pass its path"),
    "an unbuffered file": (lambda: opened_file(buffering=0), TypeError, "pass its path"),
    "a coroutine": (lambda: opened(async_function()), TypeError, "submit the async function itself"),
    "an async generator": (lambda: kept(async_generator()), TypeError, r"stream\(\)"),
    "a generator": (lambda: kept(i for i in "abc"), TypeError, "return a list"),
}
if sys.platform == "win32":
    del BOUND["a descriptor"]
    BOUND["a library"] = BOUND["Python itself"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("what", BOUND)
def test_it_is_refused_and_the_error_says_what_to_do(what):
    make, kind, instead = BOUND[what]
    thing, close = make()
    try:
        for value in (thing, [{"deep": thing}], functools.partial(len, thing), lambda: thing):
            with pytest.raises(kind, match=instead):
                payload.dumps(value)
    finally:
        close()


def test_as_an_argument_it_fails_its_own_future(farm):
    one, other = multiprocessing.Pipe()
    with one, other:
        error = farm.submit(id, other).exception(DEADLINE)
        results = farm.map(repr, [*range(300), other, *range(300)])
        firsts = [next(results) for _ in range(300)]
        with pytest.raises(TypeError, match="connect by itself"):
            next(results)

    assert type(error) is TypeError
    assert "'multiprocessing.connection.Connection' object, which belongs to one process" in str(error)
    assert "argument 0, of type Connection" in str(error)
    assert firsts == [repr(number) for number in range(300)]


def return_connection():
    import multiprocessing.connection

    one, other = multiprocessing.Pipe()
    other.close()
    return_connection.kept = one  # the error must not depend on its end
    return one


def test_as_a_result_it_fails_its_own_future(farm):
    error = farm.submit(return_connection).exception(DEADLINE)

    assert type(error) is TypeError
    assert "connect by itself" in str(error)
    assert type(error.__cause__) is TaskExecutionError
    assert "the task's result, of type Connection, could not be pickled" in str(error.__cause__)


def test_a_future_is_refused_whether_it_is_done_or_not(farm):
    done = farm.submit(abs, -1)
    assert done.result(DEADLINE) == 1

    for future in (done, farm.submit(abs, -1)):
        error = farm.submit(id, future).exception(DEADLINE)
        assert type(error) is TypeError
        assert "send its result" in str(error)


class Reconnecting(socket.socket):
    def __reduce__(self):
        return Reconnecting, ()


def test_a_class_of_its_own_reduction_travels():
    sockets = [Reconnecting()]
    try:
        sockets += [payload.loads(payload.dumps(sockets[0]))]
        sockets += payload.loads(payload.dumps([sockets[0], lambda: None]))[:1]
        assert [type(one) for one in sockets] == [Reconnecting] * 3
    finally:
        for one in sockets:
            one.close()


def test_what_is_only_spoken_of_travels_by_name():
    for value in (["multiprocessing.connection"], {"__main__": "\x8c__main__"}):
        assert payload.loads(payload.dumps(value)) == value
    assert not payload.by_value(payload.dumps(["a __main__ or a multiprocessing.connection among words"]))


def test_what_pickle_would_take_is_recognized_by_how_a_pickle_names_it():
    one, other = multiprocessing.Pipe()
    with one, other:
        assert b"\x8c\x1amultiprocessing.connection" in pickle.dumps(one, 5)  # else nothing would be
