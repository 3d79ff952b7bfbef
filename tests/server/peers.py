"""Peers that speak the protocol by hand, well or badly: what a client's engine would never say."""

import contextlib
import os
import random
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from items import TaskItem
from server.processes import DEADLINE
from server.serving import KEY

from farm_executor.core.batches import decode_results, decode_results_together, encode_tasks
from farm_executor.core.features import COUNTS
from farm_executor.core.frames import TOGETHER, Frame, FrameType, encode_frame, encode_payload, payload_of
from farm_executor.core.handshake import NONCE_SIZE, ClientHandshake, Security, decode_hello
from farm_executor.core.liveness import decode_counts
from farm_executor.data import payload
from farm_executor.data.failure import Origin, load_failure
from farm_executor.wire.address import parse_address
from farm_executor.wire.connection import Connection
from farm_executor.wire.dialling import connect
from farm_executor.wire.sealed import SealedSocket
from farm_executor.wire.security import Key
from farm_executor.wire.versions import local_versions


def values_of(frame: Frame) -> list[Any]:
    """The outcomes in a RESULTS frame: values, or the exceptions themselves."""
    if frame.flags & TOGETHER:
        return payload.loads_together(decode_results_together(frame)[1], frame.count)
    outcomes = decode_results(frame)[1]
    return [load_failure(data, Origin()) if error else payload.loads(data) for data, error in outcomes]


class Peer:
    """One connection, blocking, with a deadline for everything."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._frames: deque[Frame] = deque()
        connection.socket.settimeout(DEADLINE)

    def send(self, *buffers: Any) -> None:
        self.connection.send_all(buffers)

    def send_frame(self, kind: FrameType, **fields: Any) -> None:
        self.connection.send_all(encode_frame(kind, **fields))

    def receive(self) -> Frame:
        """The next frame.

        Raises:
            EOFError: There is none, for the other end is gone.
        """
        deadline = time.monotonic() + DEADLINE
        while not self._frames:
            if time.monotonic() > deadline:
                raise TimeoutError("no frame in time")
            self._frames.extend(self.connection.receive())
        return self._frames.popleft()

    def wait_for_end(self) -> None:
        """Wait until the other end hangs up; it must say nothing more."""
        try:
            frame = self.receive()
        except EOFError:
            return
        raise AssertionError(f"instead of the end came {frame}")

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LanePeer(Peer):
    """The client's end of a lane."""

    def __init__(self, connection: Connection, pid: int = 0) -> None:
        super().__init__(connection)
        self.pid = pid

    def start(self, initializer: Callable[..., Any] | None = None, *arguments: Any) -> None:
        """Send the initializer and wait until the worker is ready."""
        call = None if initializer is None else (initializer, arguments)
        self.send(*encode_payload(FrameType.INIT, payload.dumps(call)))
        frame = self.receive()
        assert frame.type is FrameType.READY, frame
        assert not frame.flags, load_failure(payload_of(frame), Origin())

    def teach(self, number: int, function: Callable[..., Any]) -> None:
        self.send(*encode_payload(FrameType.FUNCTION, payload.dumps(function, out_of_band=False), seq=number))

    def forget(self, number: int) -> None:
        self.send_frame(FrameType.FORGET, body=number.to_bytes(4, "little"))

    def submit(self, seq: int, *calls: tuple[Any, ...]) -> None:
        """Send calls, each a function's number and its arguments, as one batch."""
        items = [TaskItem(number, payload.dumps((arguments, {}))) for number, *arguments in calls]
        self.send(*encode_tasks(seq, items))

    def recall(self, count: int) -> None:
        self.send_frame(FrameType.RECALL, count=count)

    def cut(self) -> None:
        """End the connection, without a goodbye."""
        self.connection.hang_up()

    def resume(self, lacking: int) -> int:
        """Say which outcome is lacking; return the number of the task that the worker expects."""
        self.send_frame(FrameType.RESUME, seq=lacking)
        frame = self.receive()
        assert frame.type is FrameType.RESUMED, frame
        return frame.seq

    def acknowledge(self, number: int) -> None:
        self.send_frame(FrameType.ACK, seq=number)

    def outcomes(self, count: int) -> dict[int, Any]:
        """The next outcomes by their numbers: values, or the exceptions themselves."""
        found: dict[int, Any] = {}
        while len(found) < count:
            frame = self.receive()
            assert frame.type is FrameType.RESULTS, frame
            for number, value in enumerate(values_of(frame), frame.seq):
                assert number not in found
                found[number] = value
        return found


class SessionPeer(Peer):
    """The control connection of a session of one's own."""

    def __init__(
        self,
        address: str,
        key: bytes | Key = KEY,
        client: str = "a peer by hand",
        timeout: float = DEADLINE,
        **hello: Any,
    ) -> None:
        self.address = parse_address(address)
        self._key = key if isinstance(key, Key) else Key(key)
        versions = local_versions()._asdict()
        said = {"role": "control", "versions": versions, "client": client, **hello}
        connection, answer = connect(self.address, self._key, said, timeout)
        self.id = str(answer["session"])
        self.slots = int(answer["slots"])
        self.hello = answer
        self.lanes: list[LanePeer] = []
        self.former: list[Peer] = []
        super().__init__(connection)

    def open_lane(self, lane: Any = 1, slot: Any = 0, session: Any = None) -> LanePeer:
        hello = {"role": "lane", "session": session or self.id, "slot": slot, "lane": lane}
        connection, answer = connect(self.address, self._key, hello, DEADLINE)
        self.lanes.append(LanePeer(connection, int(answer["pid"])))
        return self.lanes[-1]

    def resume_lane(self, lane: Any = 1, session: Any = None) -> LanePeer:
        """Another connection to a lane's worker; what it lacks has not been said."""
        hello = {"role": "lane", "session": session or self.id, "lane": lane, "resume": True}
        connection, answer = connect(self.address, self._key, hello, DEADLINE)
        self.lanes.append(LanePeer(connection, int(answer["pid"])))
        return self.lanes[-1]

    def come_back(self) -> None:
        """Go on over another connection; the one so far is left as it is."""
        hello = {"role": "control", "resume": self.id, "versions": local_versions()._asdict()}
        connection, self.hello = connect(self.address, self._key, hello, DEADLINE)
        self.former.append(Peer(self.connection))
        super().__init__(connection)

    def ping(self, number: int = 1) -> dict[str, Any]:
        """The answer to a sign of life."""
        self.send_frame(FrameType.PING, seq=number)
        frame = self.receive()
        assert frame.type is FrameType.PONG, frame
        assert frame.seq == number
        counted = COUNTS in self.hello.get("features", ())
        return {"lanes": list(decode_counts(frame))} if counted else decode_hello(frame)

    def wait_for_death(self) -> dict[str, Any]:
        """The next report of a worker's death."""
        frame = self.receive()
        assert frame.type is FrameType.WORKER_DIED, frame
        return decode_hello(frame)

    def close(self) -> None:
        for peer in [*self.lanes, *self.former]:
            peer.close()
        super().close()


def dial(address: str) -> socket.socket:
    """A connection to a server, on which nothing has been said."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE)


def prove_key(sock: socket.socket, key: bytes = KEY) -> SealedSocket:
    """The handshake, and no hello after it; returns what goes on with seals."""
    handshake = ClientHandshake(key, os.urandom(NONCE_SIZE), Security.SEALED)
    sock.sendall(handshake.start())
    while not handshake.done:
        data = sock.recv(handshake.wanted)
        if not data:
            raise EOFError("the server hung up")
        sock.sendall(handshake.receive_data(data))
    return SealedSocket(sock, handshake.secret, server_side=False)


def read_to_end(sock: socket.socket | SealedSocket) -> bytes:
    """All that comes until the other end hangs up, politely or not."""
    pieces = []
    try:
        while True:
            with contextlib.suppress(BlockingIOError):  # less than a record
                if not (piece := sock.recv(65536)):
                    break
                pieces.append(piece)
    except ConnectionError:
        pass
    return b"".join(pieces)


@contextlib.contextmanager
def listening() -> Iterator[tuple[socket.socket, str]]:
    """A listening socket of the test's own, for it to be a server that is none; and its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE)
        yield listener, f"127.0.0.1:{listener.getsockname()[1]}"


def free_address() -> str:
    """Where nobody listens, nor will soon: not among the ports that systems choose from where none is named."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return f"127.0.0.1:{port}"
