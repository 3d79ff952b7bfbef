"""The machine's own figures: what two Python processes take that do the least, measured beside the farm's rows.

A target that a row misses is judged by them: nothing that is written in Python on this machine gets below. It must
not use the farm, nor know the rows.
"""

import mmap
import os
import pickle
import select
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import pos
from typing import Any

_HEAD = struct.Struct("<IBBHQ")  # as many bytes as a frame's
_CALL, _RESULT = (pos, (1,)), 1


def echo_of_calls(family: int, calls: int, *, polls: bool = True) -> float:
    """Median seconds of a call and its result, pickled there and back; both ends poll for it, or both sleep."""
    timeout = 0 if polls else None
    with _answering(family, 1, polls=polls) as (sock,):
        times, come = [], _until_readable([sock])
        for _ in range(calls):
            started = time.perf_counter()
            _say(sock, _CALL)
            come(timeout)
            assert _hear(sock.recv(4096)) == _RESULT
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def echo_in_threads(family: int, threads: int, calls: int) -> float:
    """Seconds per call of that many threads, each with a connection, to two processes; all sleep as they wait."""

    def work(sock: socket.socket) -> None:
        for _ in range(calls):
            _say(sock, _CALL)
            assert _hear(sock.recv(4096)) == _RESULT

    half = threads // 2
    with _answering(family, half, polls=False) as first, _answering(family, threads - half, polls=False) as second:
        running = [threading.Thread(target=work, args=(sock,)) for sock in (*first, *second)]
        started = time.perf_counter()
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return (time.perf_counter() - started) / calls / threads


def copies(mebibytes: int) -> dict[str, float]:
    """Seconds of a copy into memory that the process has just been given, and into memory that it has filled."""
    size, found = mebibytes << 20, {}
    source = bytearray(b"x") * size  # filled: pages that have never been written to are all the same one
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as target:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            target.madvise(mmap.MADV_HUGEPAGE)
        for name in ("copied, fresh", "copied, warm"):
            started = time.perf_counter()
            target[:] = source
            found[name] = time.perf_counter() - started
    return found


def comparisons(mebibytes: int, times: int) -> float:
    """Seconds of that many comparisons of two pieces of memory with the same contents."""
    one = bytearray(b"x") * (mebibytes << 20)
    other = bytes(one)
    started = time.perf_counter()
    for _ in range(times):
        assert one == other
    return time.perf_counter() - started


def two_interpreters() -> float:
    """Seconds of an interpreter that starts another and exchanges a message with it; each has its least imports."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", _FIRST], check=True)
    return time.perf_counter() - started


_SECOND = "import pickle, selectors, socket, threading; s = socket.socket(fileno=0); s.sendall(s.recv(64))"
_FIRST = (
    "import concurrent.futures, pickle, selectors, socket, subprocess, sys, threading\n"
    "here, there = socket.socketpair()\n"
    f"child = subprocess.Popen([sys.executable, '-c', {_SECOND!r}], stdin=there)\n"
    "here.sendall(b'?')\n"
    "here.recv(64)\n"
    "child.wait()"
)


def _say(sock: socket.socket, what: object) -> None:
    body = pickle.dumps(what)
    sock.send(_HEAD.pack(len(body), 1, 0, 1, 0) + body)


def _hear(data: bytes) -> Any:
    _HEAD.unpack_from(data)
    return pickle.loads(memoryview(data)[_HEAD.size :])


def _until_readable(socks: list[socket.socket]) -> Callable[[int | None], list[int]]:
    """Return what returns the readable ones' numbers once there are some; it polls with 0, and sleeps with None."""
    poll = select.poll()
    for sock in socks:
        poll.register(sock, select.POLLIN)

    def come(timeout: int | None) -> list[int]:
        while not (found := poll.poll(timeout)):
            pass
        return [number for number, _ in found]

    return come


@contextmanager
def _answering(family: int, connections: int, *, polls: bool) -> Iterator[list[socket.socket]]:
    """Connections to a process that runs the calls that come over them."""
    pairs = [_pair(family) for _ in range(connections)]
    child = os.fork()
    if child == 0:
        try:
            for here, _ in pairs:
                here.close()
            _answer([there for _, there in pairs], 0 if polls else None)
        finally:
            os._exit(0)
    for _, there in pairs:
        there.close()
    try:
        yield [here for here, _ in pairs]
    finally:
        for here, _ in pairs:
            here.close()
        os.waitpid(child, 0)


def _answer(socks: list[socket.socket], timeout: int | None) -> None:
    by_number = {sock.fileno(): sock for sock in socks}
    come = _until_readable(socks)
    while True:
        for number in come(timeout):
            data = by_number[number].recv(4096)
            if not data:
                return  # all are closed at once
            function, args = _hear(data)
            _say(by_number[number], function(*args))


def _pair(family: int) -> tuple[socket.socket, socket.socket]:
    if family == socket.AF_UNIX:
        return socket.socketpair()
    server = socket.create_server(("127.0.0.1", 0))
    here = socket.create_connection(server.getsockname())
    there, _ = server.accept()
    server.close()
    for sock in (here, there):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return here, there
