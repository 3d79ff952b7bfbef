"""Somebody in between who does not hold the key, and changes what travels.

This module owns the ways in which he does. It must not know whether they are of any use to him.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

from server.peers import dial
from server.processes import DEADLINE

__all__ = ["Chances", "Meddler", "Pipe", "exactly", "pump", "relay_words"]

WORDS = (48, 48, 32, 33)  # the four of a handshake, the first by the client, then in turns


def exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes, or an EOFError."""
    data = sock.recv(size, socket.MSG_WAITALL) if size else b""
    if len(data) < size:
        raise EOFError("it has ended")
    return data


def relay_words(client: socket.socket, server: socket.socket) -> list[bytes]:
    """Pass on a handshake as it is."""
    said = []
    for place, size in enumerate(WORDS):
        source, sink = (server, client) if place % 2 else (client, server)
        said.append(exactly(source, size))
        sink.sendall(said[-1])
    return said


def pump(source: socket.socket, sink: socket.socket, change: Callable[[bytes], list[bytes]] | None = None) -> None:
    """Pass on what comes until the end, in threads of its own kind."""
    with contextlib.suppress(OSError, EOFError):
        while data := source.recv(65536):
            for piece in [data] if change is None else change(data):
                sink.sendall(piece)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


Pipe = Callable[[socket.socket, socket.socket], None]
"""What he does with a connection: the client's end, the server's."""


class Meddler:
    """Listens where clients believe the server to be.

    Args:
        server: Its address.
        attack: Done with every connection, in a thread of its own.

    Attributes:
        address: For clients.
    """

    def __init__(self, server: str, attack: Pipe) -> None:
        self._server = server
        self._attack = attack
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name="meddler", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = dial(self._server)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                self._ends += [client, server]
                self._start(self._meet, client, server)

    def _meet(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError, IndexError):
            self._attack(client, server)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def both_ways(self, client: socket.socket, server: socket.socket) -> None:
        """Pass on the rest as it is."""
        self._start(pump, server, client)
        pump(client, server)

    def __enter__(self) -> Meddler:
        """Use as a context manager."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Leave."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE)
        for end in [self._listener, *self._ends]:
            end.close()


class Chances:
    """Changes to streams at random, until he has had enough.

    Args:
        seed: Of the random numbers.
        times: How often he does something.
    """

    def __init__(self, seed: int, times: int) -> None:
        self._random = random.Random(seed)
        self._left = times
        self._lock = threading.Lock()
        self._kept: list[bytes] = []  # for another connection, or a later time
        self.done: list[str] = []

    def attack(self, meddler: Callable[[], Meddler]) -> Pipe:
        """For `Meddler`."""

        def pipe(client: socket.socket, server: socket.socket) -> None:
            meddler()._start(pump, server, client, self.change)
            pump(client, server, self.change)

        return pipe

    def change(self, data: bytes) -> list[bytes]:
        """What becomes of bytes that travel."""
        with self._lock:
            return list(self._change(data))

    def _change(self, data: bytes) -> Iterator[bytes]:
        chance = self._random
        if self._left <= 0 or chance.random() > 0.15:
            yield data
            return
        self._left -= 1
        place = chance.randrange(len(data))
        kind = chance.choice(["flip", "flip", "drop", "cut out", "repeat", "insert", "swap", "exchange", "end"])
        self.done.append(kind)
        if kind == "flip":
            flipped = bytearray(data)
            flipped[min(place, chance.choice([place, 3, 16]))] ^= 1 << chance.randrange(8)
            yield bytes(flipped)
        elif kind == "cut out":
            yield data[:place] + data[place + chance.choice([1, 20, 100]) :]
        elif kind == "repeat":
            yield data + data
        elif kind == "insert":
            yield data[:place] + chance.randbytes(chance.choice([1, 20, 300])) + data[place:]
        elif kind == "swap":
            middle = len(data) // 2
            yield data[middle:] + data[:middle]
        elif kind == "exchange":
            self._kept.append(data)
            yield self._kept.pop(chance.randrange(len(self._kept)))
        elif kind == "end":
            raise EOFError
