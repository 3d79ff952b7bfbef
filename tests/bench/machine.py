"""The machine while something is measured: cores kept awake, peak memory, what raw sockets can do."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

SPIN = "while True: pass"
SPIN_IDLY = f"import os\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\n{SPIN}"


@contextmanager
def cores_awake() -> Iterator[None]:
    """A spinner for each core that yields to anything else: a sleeping core takes longer to wake than a call."""
    with _spinners(SPIN_IDLY, os.cpu_count() or 1):
        yield


@contextmanager
def beside_busy_processes(count: int) -> Iterator[None]:
    """That many processes that never wait."""
    with _spinners(SPIN, count):
        yield


@contextmanager
def _spinners(program: str, count: int) -> Iterator[None]:
    spinners = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(count)]
    try:
        time.sleep(0.3)  # until they spin
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def raw_echo(family: int, size: int, rounds: int) -> list[float]:
    """Seconds of each of so many echoes of so many bytes between two processes."""
    server = socket.socket(family)
    server.bind(("127.0.0.1", 0) if family == socket.AF_INET else "")
    server.listen(1)
    child = os.fork()
    if child == 0:
        try:
            peer, _ = server.accept()
            _no_delay(peer)
            memory = bytearray(size)
            while _receive(peer, memory):
                peer.sendall(memory)
        finally:
            os._exit(0)
    here = socket.socket(family)
    here.connect(server.getsockname())
    _no_delay(here)
    message, memory, times = bytes(size), bytearray(size), []
    for _ in range(rounds):
        started = time.perf_counter()
        here.sendall(message)
        _receive(here, memory)
        times.append(time.perf_counter() - started)
    here.close()
    server.close()
    os.waitpid(child, 0)
    return times


def raw_one_way(family: int, size: int, *, fresh: bool) -> float:
    """Seconds until so many bytes, sent at once, are acknowledged with one, several times one after the other.

    They are received into the memory of the last ones, or, as a task's argument has to be, into fresh memory.
    """
    here, there = socket.socketpair() if family == socket.AF_UNIX else _tcp_pair()
    child = os.fork()
    if child == 0:
        try:
            here.close()
            memory = np.zeros(size, np.uint8)
            memory[:] = 1  # so that every page is there
            while _receive(there, memory.data):
                there.sendall(b"!")
                if fresh:
                    del memory
                    memory = np.empty(size, np.uint8)
        finally:
            os._exit(0)
    there.close()
    message = b"x" * size  # not of zeros: memory that nobody has written to is one page for the system
    here.sendall(message)
    here.recv(1)
    started = time.perf_counter()
    for _ in range(4):
        here.sendall(message)
        here.recv(1)
    elapsed = (time.perf_counter() - started) / 4
    here.close()
    os.waitpid(child, 0)
    return elapsed


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    server = socket.create_server(("127.0.0.1", 0))
    here = socket.create_connection(server.getsockname())
    there, _ = server.accept()
    server.close()
    return here, there


def _no_delay(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _receive(sock: socket.socket, memory: bytearray | memoryview) -> bool:
    view, got = memoryview(memory), 0
    while got < len(view):
        count = sock.recv_into(view[got:])
        if not count:
            return False
        got += count
    return True


def resident_bytes() -> int:
    """What this process holds in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descendants(pid: int) -> list[int]:
    """The processes that this one has started, and theirs."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            children = [int(child) for child in file.read().split()]
        found += children + [other for child in children for other in descendants(child)]
    return found


def cpu_seconds(pids: list[int]) -> float:
    """What these processes have used so far."""
    total = 0.0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def wait_until_idle(pids: list[int]) -> None:
    """Wait until these processes have cleared up, which may take seconds after a result; some may have ended."""
    while True:
        here = [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
        with contextlib.suppress(FileNotFoundError):  # one has ended just now
            before = cpu_seconds(here)
            time.sleep(0.25)
            if cpu_seconds(here) - before <= 0.03:
                return


@contextmanager
def peak_memory(into: list[int]) -> Iterator[None]:
    """Append the most memory that this process has held beyond what it holds now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    before = resident_bytes()
    yield
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    into.append(peak - before)


class DelayingProxy:
    """A TCP proxy after which each byte arrives so many seconds later, each way; it counts what passes."""

    def __init__(self, target: tuple[str, int], delay: float) -> None:
        self._target = target
        self._delay = delay
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = self._server.getsockname()
        self.bytes_forth = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._server.accept()
            except OSError:
                return
            there = socket.create_connection(self._target)
            for sock in (here, there):
                _no_delay(sock)
            self._pump(here, there, forth=True)
            self._pump(there, here, forth=False)

    def _pump(self, source: socket.socket, sink: socket.socket, *, forth: bool) -> None:
        waiting: list[tuple[float, bytes]] = []
        changed = threading.Condition()

        def read() -> None:
            data = b"?"
            while data:
                try:
                    data = source.recv(1 << 18)
                except OSError:
                    data = b""
                self.bytes_forth += len(data) if forth else 0
                with changed:
                    waiting.append((time.monotonic() + self._delay, data))
                    changed.notify()

        def write() -> None:
            while True:
                with changed:
                    while not waiting:
                        changed.wait()
                    due, data = waiting.pop(0)
                if (pause := due - time.monotonic()) > 0:
                    time.sleep(pause)
                try:
                    if data:
                        sink.sendall(data)
                    else:
                        sink.shutdown(socket.SHUT_WR)
                        return
                except OSError:
                    return

        for work in (read, write):
            threading.Thread(target=work, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._server.close()
