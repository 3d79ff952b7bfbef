"""Everything that reads bytes of a peer, made to read any bytes at all.

This module owns the targets: each takes bytes, and raises if anything comes of them that is not provided for. It
must not know who makes the bytes up: hypothesis (`test_hostile`) or a fuzzer (`fuzz`).

Nothing is started: the supervisor runs in this process, over socket pairs, and its forks and kills are counted and
not made. Unpickling is a trap everywhere.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import mmap
import os
import pickle
import resource
import selectors
import shutil
import signal
import socket
import struct
import tempfile
import types
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any
from unittest import mock

from faults import hostile_memory
from skipped import without_skipped

from farm_executor import FarmExecutor
from farm_executor import admin as admin_module
from farm_executor.admin import Watch
from farm_executor.client.farm import link as server_module
from farm_executor.client.farm import outcomes as outcomes_module
from farm_executor.client.farm.inlet import Inlet
from farm_executor.client.farm.link import ServerLink
from farm_executor.client.farm.parcels import Parcels
from farm_executor.client.farm.reactor import Reactor
from farm_executor.client.farm.settling import Settler
from farm_executor.client.farm.voice import Voice
from farm_executor.core.batches import (
    decode_results,
    decode_results_together,
    decode_tasks,
    decode_tasks_together,
    encode_results,
    encode_results_together,
    encode_tasks,
    encode_tasks_together,
)
from farm_executor.core.census import WORKER_COLUMNS, FarmStatus
from farm_executor.core.features import ALWAYS, FUNCTIONS, MODULES, OUTPUT, RECORDS, RINGS
from farm_executor.core.frames import (
    BULK,
    ERROR,
    HEADER_SIZE,
    MAX_BODY,
    MAX_HELLO,
    RING,
    TOGETHER,
    Frame,
    FrameType,
    Kind,
    Reference,
    decode_number,
    encode_frame,
    encode_payload,
)
from farm_executor.core.handshake import (
    NONCE_SIZE,
    ClientHandshake,
    Security,
    ServerHandshake,
    decode_hello,
    encode_hello,
)
from farm_executor.core.liveness import CUT_EXIT_CODE, encode_counts
from farm_executor.core.messages import TABLE, from_json, to_json
from farm_executor.core.options import TaskOptions
from farm_executor.core.reader import FrameReader
from farm_executor.core.ring import LEAST, USUAL, Shape, shape_of
from farm_executor.core.secret import monitor_secret
from farm_executor.core.sharing import (
    State,
    decode_answer,
    decode_piece,
    encode_answer,
    encode_piece,
    layout_of,
    read_layout,
)
from farm_executor.core.sharing import decode_offer as decode_share
from farm_executor.core.sharing import encode_offer as encode_share
from farm_executor.core.shipment import (
    Contents,
    Difference,
    Package,
    decode_contents,
    decode_differences,
    decode_offer,
    decode_question,
    encode_contents,
    encode_differences,
    encode_offer,
    encode_question,
)
from farm_executor.core.streams import encode_credit, encode_items, encode_items_together
from farm_executor.data import payload
from farm_executor.data.memory import allocate
from farm_executor.errors import AuthenticationError, RemoteProtocolError, VersionMismatchError
from farm_executor.observe.frame import Choices
from farm_executor.observe.frame import frame as frame_of
from farm_executor.observe.model import Server
from farm_executor.observe.top import paint
from farm_executor.server import lane as lane_module
from farm_executor.server import sessions as sessions_module
from farm_executor.server import workers as workers_module
from farm_executor.server.channel import Channel, Line
from farm_executor.server.depot import Room
from farm_executor.server.lane import WorkerLane
from farm_executor.server.modules import ModuleFinder
from farm_executor.server.packages import PackageCheck
from farm_executor.server.progress import BEGUN, NOT_BEGUN, Progress
from farm_executor.server.sent import SentTask
from farm_executor.server.shared import SharedObjects
from farm_executor.server.supervisor import Supervisor
from farm_executor.wire.address import parse_address
from farm_executor.wire.connection import Connection
from farm_executor.wire.ring import Ring
from farm_executor.wire.security import Key
from farm_executor.wire.versions import local_versions

__all__ = ["SEEDS", "TARGETS", "no_unpickling"]

KEY = b"the key of those who may come in"
_MONITOR = monitor_secret(KEY)
NONCE = bytes(NONCE_SIZE)
ROOM = 1 << 20  # bytes that a reader is given for one segment here
SLOTS = 2


class Unpickled(BaseException):
    """A peer's bytes were about to be unpickled."""


def _trap(*args: Any, **kwargs: Any) -> Any:
    raise Unpickled


@contextlib.contextmanager
def no_unpickling() -> Iterator[None]:
    """Whoever unpickles anything in here is caught."""
    with (
        mock.patch.object(pickle, "loads", _trap),
        mock.patch.object(pickle, "Unpickler", _trap),
        mock.patch.object(payload, "loads", _trap),
    ):
        yield


def _give(size: int, kind: Kind) -> Any:
    if size > ROOM:
        raise MemoryError
    return allocate(size, kind)


def _bounded(sock: socket.socket) -> Connection:
    """A lane's connection that has no more than that room."""
    return Connection(sock, MAX_BODY, _give)


# -- decisions without effects ------------------------------------------------------------------------------------


def frames(data: bytes) -> None:
    """The reader, in pieces of as many bytes as the first one says; then what each frame means."""
    size = (data[0] if data else 0) + 1
    reader = FrameReader(MAX_BODY, _give)
    whole: list[Frame] = []
    with contextlib.suppress(RemoteProtocolError):
        for start in range(1, len(data), size):
            whole += reader.receive_data(data[start : start + size])
    assert len(reader._pending) <= len(data)
    read = b"".join(b"".join(_encoded(frame)) for frame in whole)
    assert without_skipped(data[1:]).startswith(read)
    for frame in whole:
        _understand(frame)


def _encoded(frame: Frame) -> Any:
    fields = {"flags": frame.flags, "count": frame.count, "seq": frame.seq}
    # Nothing is sent for a reference.
    segments = [b"" if type(segment) is Reference else segment for segment in frame.segments]
    return encode_frame(frame.type, body=frame.body, segments=segments, **fields)


def _understand(frame: Frame) -> None:
    with contextlib.suppress(RemoteProtocolError):
        if frame.type is FrameType.TASKS:
            if frame.flags & TOGETHER:
                assert len(decode_tasks_together(frame)[0]) == frame.count
            else:
                assert len(decode_tasks(frame)) == frame.count
        elif frame.type is FrameType.RESULTS:
            if frame.flags & TOGETHER:
                decode_results_together(frame)
            else:
                assert len(decode_results(frame)[1]) == frame.count
        elif frame.type is FrameType.FORGET:
            decode_number(frame)
        elif frame.type is FrameType.PIECE:
            number, begin, size, piece = decode_piece(frame)
            assert 0 < len(piece) <= size - begin
            read = FrameReader(allocate=_give).receive_data(b"".join(encode_piece(number, begin, size, piece)))
            assert decode_piece(read[0]) == (number, begin, size, piece)
        elif frame.type is FrameType.SHARE:
            assert b"".join(encode_share(*decode_share(frame)))[16:] == frame.body
        elif frame.type is FrameType.SHARED:
            number, state, reason = decode_answer(frame)
            assert reason.isprintable() or not reason
        else:
            hello = decode_hello(frame)
            for kind in TABLE:
                with contextlib.suppress(RemoteProtocolError):
                    message = from_json(kind, hello)
                    assert from_json(kind, to_json(message)) == message


def shipment(data: bytes) -> None:
    """The messages about modules: what can be read at all is what could have been sent."""
    for decode, encode in (
        (decode_offer, lambda offer: encode_offer(*offer)),
        (decode_question, lambda question: encode_question(*question)),
        (decode_contents, encode_contents),
        (decode_differences, encode_differences),
    ):
        with contextlib.suppress(RemoteProtocolError):
            message = decode(data)
            assert decode(encode(message)) == message


def shared(data: bytes) -> None:
    """The memory of a shared object that somebody else has filled."""
    with contextlib.suppress(RemoteProtocolError):
        layout = read_layout(data)
        ends = [begin + size for begin, size, _ in layout.parts]
        assert all(end <= part.begin for end, part in zip(ends, layout.parts[1:], strict=False))
        assert max(ends) <= layout.size == len(data)


_place = tempfile.TemporaryDirectory(prefix="hostile-")


def unpacking(data: bytes) -> None:
    """Modules that a client sends: all that comes of them is files of theirs, in the session's folder.

    The first two bytes say how long the list is; the next say the same of each module's files.
    """
    segments = []
    while data and len(segments) < 4:
        end = 2 + int.from_bytes(data[:2], "little")
        segments.append(data[2:end])
        data = data[end:]
    outer = tempfile.mkdtemp(dir=_place.name)
    room = Room(os.path.join(outer, "room"))
    finder = ModuleFinder(room, lambda name, own: segments or [b""], PackageCheck(lambda differences: None))
    with contextlib.suppress(ModuleNotFoundError):
        finder.fetch("pkg")
    assert os.listdir(outer) == ["room"]
    for folder, folders, files in os.walk(room.folder):
        top = folder == room.folder
        hidden = [name for name in (*folders, *files) if name.startswith(".")]
        assert all(name.endswith((".lock", ".json", ".files")) for name in hidden) if top else not hidden
        assert not any(os.path.islink(os.path.join(folder, name)) for name in (*folders, *files))
    shutil.rmtree(outer)


def server_handshake(data: bytes) -> None:
    """What a stranger says first."""
    handshake = ServerHandshake({KEY: {Security.PLAIN}}, NONCE)
    with contextlib.suppress(RemoteProtocolError):
        while data and not handshake.refused:
            assert 0 < handshake.wanted <= 48
            handshake.receive_data(data[: handshake.wanted])
            data = data[handshake.wanted :] if handshake.wanted else b""
    assert not handshake.done, "who does not hold the key has proven it"


def client_handshake(data: bytes) -> None:
    """What something that is no server answers."""
    handshake = ClientHandshake(KEY, NONCE)
    handshake.start()
    with contextlib.suppress(RemoteProtocolError, VersionMismatchError, AuthenticationError):
        while data:
            assert 0 < handshake.wanted <= 48
            taken, data = data[: handshake.wanted], data[handshake.wanted :]
            handshake.receive_data(taken)
    assert not handshake.done, "who does not hold the key has proven it"


# -- the supervisor -----------------------------------------------------------------------------------------------


class _System:
    """The module `os`, for a supervisor whose workers exist on paper only."""

    STATUS = {signal.SIGSTOP: 0x7F | signal.SIGSTOP << 8, signal.SIGCONT: 0xFFFF, signal.SIGKILL: signal.SIGKILL}

    def __init__(self) -> None:
        self._pids = itertools.count(1 << 24)  # the system itself gives none that large
        self._alive: set[int] = set()
        self._news: list[tuple[int, int]] = []
        self.forked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fork(self) -> int:
        self.forked += 1
        pid = next(self._pids)
        self._alive.add(pid)
        return pid

    def kill(self, pid: int, number: int) -> None:
        assert pid in self._alive, "somebody else would have been killed"
        self._news.append((pid, self.STATUS[signal.Signals(number)]))
        if number == signal.SIGKILL:
            self._alive.remove(pid)

    def all_die(self) -> None:
        self._news += [(pid, 0) for pid in self._alive]
        self._alive.clear()

    def wait4(self, pid: int, options: int) -> tuple[int, int, resource.struct_rusage]:
        if not self._news:
            raise ChildProcessError
        return *self._news.pop(0), resource.getrusage(resource.RUSAGE_SELF)


@contextlib.contextmanager
def _paper(system: _System) -> Iterator[None]:
    """With these workers, and over connections that are taken for TCP's, which can be resumed."""
    with (
        mock.patch.object(workers_module, "os", system),
        mock.patch.object(sessions_module, "is_tcp", lambda sock: True),
    ):
        yield


class _Door:
    """A listening socket that is none: who connects is handed in."""

    def __init__(self) -> None:
        self._bell, self._rope = socket.socketpair()
        self._guests: list[socket.socket] = []

    def fileno(self) -> int:
        return self._bell.fileno()

    def setblocking(self, flag: bool) -> None:
        self._bell.setblocking(flag)

    def enter(self) -> socket.socket:
        here, there = socket.socketpair()
        self._guests.append(there)
        self._rope.send(b"\0")
        return here

    def accept(self) -> tuple[socket.socket, str]:
        self._bell.recv(1)
        return self._guests.pop(), ""

    def close(self) -> None:
        self._bell.close()
        self._rope.close()


def _pieces(data: bytes) -> Iterator[bytes]:
    """The bytes as somebody sends them; if their number is even, the first frame alone, to wait for an answer."""
    first = HEADER_SIZE + int.from_bytes(data[:4], "little")
    place = min(first, 1 << 14) if len(data) % 2 == 0 else 0
    yield data[:place]
    for start in range(place, len(data), 1 << 14):
        yield data[start : start + (1 << 14)]


class _House:
    """A supervisor that takes its steps when told to."""

    def __init__(self) -> None:
        self.door = _Door()
        self.supervisor = Supervisor(
            [self.door],  # type: ignore[list-item]
            address="here",
            keys=[Key(KEY, random=True)],
            slots=SLOTS,
        )
        self.supervisor._door.open()

    def work(self) -> None:
        """Until nothing is left to do."""
        while ready := self.supervisor._selector.select(0):
            for key, _ in ready:
                key.data()

    def visit(self, data: bytes, *, proven: bytes | None) -> None:
        """Somebody comes, proves that key, says this, and goes; nothing may stay of it."""
        supervisor = self.supervisor
        system = _System()
        here = self.door.enter()
        with here, _paper(system):
            self.work()
            if proven is not None:
                self._prove(here, proven)
            for piece in _pieces(data):
                with contextlib.suppress(BrokenPipeError):
                    here.send(piece)
                self.work()
                supervisor._workers.reap()
            admitted = proven == KEY
            assert admitted or not supervisor._sessions, "without the key, a session"
            assert admitted or not system.forked, "without the key, a worker"
            here.close()
            self.part(system)
        assert not supervisor._door._guests
        assert not supervisor._sessions
        assert not supervisor._admin._watchers
        assert not supervisor._sessions.draining or admitted

    def part(self, system: _System) -> None:
        """Everybody has gone, and is not waited for."""
        supervisor = self.supervisor
        self.work()
        for session in supervisor._sessions:
            supervisor._sessions.end(session, 0.0)
        system.all_die()
        supervisor._workers.reap()
        assert not supervisor._workers

    def _prove(self, here: socket.socket, key: bytes = KEY) -> None:
        handshake = ClientHandshake(key, NONCE)
        here.send(handshake.start())
        self.work()
        here.send(handshake.receive_data(here.recv(48)))
        self.work()
        handshake.receive_data(here.recv(33))
        assert handshake.done

    def close(self) -> None:
        self.supervisor._close_all()


_houses: dict[str, _House] = {}


def _house(name: str) -> _House:
    """A house lasts, as a server does, unless it was told to end."""
    house = _houses.get(name)
    if house is None or house.supervisor._sessions.draining:
        if house is not None:
            house.close()
        logging.getLogger("farm_executor").setLevel(logging.CRITICAL)  # a line for each would take most of the time
        house = _houses[name] = _House()
    return house


def stranger(data: bytes) -> None:
    """Somebody without the key, at a server."""
    _house("stranger").visit(data, proven=None)


def guest(data: bytes) -> None:
    """Somebody with the key says hello."""
    _house("guest").visit(data, proven=KEY)


def monitor(data: bytes) -> None:
    """Somebody with a monitor's key, who may look and do nothing else."""
    _house("monitor").visit(data, proven=_MONITOR)


def session(data: bytes) -> None:
    """Somebody with the key has a session with a worker, and goes on on its control connection."""
    house = _house("session")
    supervisor = house.supervisor
    system = _System()
    control, lane = house.door.enter(), None
    with _paper(system):
        house.work()
        house._prove(control)
        control.send(_CONTROL_HELLO)
        house.work()
        (only,) = supervisor._sessions
        lane = house.door.enter()
        house.work()
        house._prove(lane)
        lane.send(b"".join(encode_hello({"role": "lane", "session": only.id, "slot": 0, "lane": 1})))
        house.work()
        assert system.forked == 1
        only.forwarding.say(1, 1, 0, b"x" * 1000)  # of which the client may have heard
        with contextlib.suppress(BrokenPipeError):
            control.send(data)
        house.work()
        supervisor._workers.reap()
        house.work()
        control.close()
        lane.close()
        house.part(system)
    assert not supervisor._door._guests
    assert not supervisor._sessions


# -- a worker -----------------------------------------------------------------------------------------------------


class _Ended(BaseException):
    """A worker has ended itself, in an orderly way."""


def _end(code: int) -> None:
    assert code in (0, 70, CUT_EXIT_CODE)
    raise _Ended


_progress = Progress()


def _unpickle_nothing(data: Any, count: int) -> list[Any]:
    """In place of `payload.loads_together`: who holds the key may send any pickle, so that would prove nothing."""
    if bytes(data[:1]) != b"\x80":
        raise RemoteProtocolError
    if count == 3:  # a report's
        return [0.5, None, bytes(data[1:]).decode("utf-8", "surrogateescape")]
    return [()] * count


def _do_now(voice: Voice, deed: Callable[[], object]) -> None:
    """In place of `Voice.put`, which would do it in a thread."""
    deed()
    voice._rest(False)


def worker(data: bytes) -> None:
    """A lane, as its worker reads it; its tasks are settled, and not run.

    The first two bytes say how many come over a first connection, which breaks then; the rest comes over another.
    """
    place = 2 + int.from_bytes(data[:2], "little")
    _progress.cells[BEGUN] = NOT_BEGUN
    supervisor, channel = Channel.pair()
    pairs = [socket.socketpair() for _ in range(2)]
    for (here, _), part in zip(pairs, (data[2:place], data[place : place + (1 << 16)]), strict=True):
        here.setblocking(False)
        here.send(part)
        here.shutdown(socket.SHUT_WR)
    steps = iter([lambda: supervisor.pass_on(pairs[1][1], 0, b""), supervisor.say_end])
    lane = WorkerLane(pairs[0][1], _progress, channel, resumable=True, secure=lambda sock, *_: sock)
    lane._connection = _bounded(pairs[0][1])
    lane.features = frozenset((*ALWAYS, FUNCTIONS, RECORDS, RINGS))
    lane.on_offer = lambda modules, packages: None
    line, theirs = Line.pair()
    theirs._socket.setblocking(False)  # nobody listens
    lane.shared = SharedObjects(theirs)
    question = lane._questions.new("hostile", "")
    lane._questions.add(question)
    await_more = lane._await

    def await_or_go_on(poll: Any, timeout: float | None, came: Any = ()) -> list[int]:
        if not (came or poll.poll(0)):
            next(steps)()
        return await_more(poll, timeout, came)

    lane._await = await_or_go_on  # type: ignore[method-assign]
    system = types.SimpleNamespace(_exit=_end, getpid=os.getpid)
    try:
        with (
            contextlib.suppress(_Ended),
            mock.patch.object(lane_module, "os", system),
            mock.patch.object(lane_module, "Connection", _bounded),
            mock.patch.object(payload, "loads_together", _unpickle_nothing),
            mock.patch.object(lane_module, "print", lambda *args, **kwargs: None, create=True),
        ):
            while (task := lane.next()) is not None:
                if isinstance(task, SentTask):
                    lane.begin(task.seq, 1.0)
                    lane.settle([b"done"], False, 0.0, once=task.once)
                else:
                    lane.ready(None)
    finally:
        lane.close()
        with contextlib.suppress(ModuleNotFoundError):
            question.result()
        for one in (lane._wanted, supervisor, channel, line, theirs, *pairs[0], *pairs[1]):
            one.close()


# -- a client ----------------------------------------------------------------------------------------------------


class _Client:
    """A farm that takes its steps when told to, and whose server is at the other ends of socket pairs.

    Attributes:
        control, lane: The server's ends, once they have been dialled.
    """

    def __init__(self) -> None:
        self._links: list[ServerLink] = []
        self._lanes_left = 2
        self.control: socket.socket | None = None
        self.lane: socket.socket | None = None
        self._patches = contextlib.ExitStack()
        links = self._links
        stand_ins: list[tuple[Any, str, Any]] = [
            (server_module, "connect", self._connect),
            (server_module, "_lane_ids", itertools.count(1)),  # the lanes of every client are 1 and 2
            (ServerLink, "_dial_more", lambda link, **hurry: links.append(link)),
            (Reactor, "start", lambda reactor: None),
            (
                Settler,
                "answer",
                lambda settler, *answers: self._answer(*answers),
            ),  # it would unpickle, as it has to
            (Settler, "succeed", lambda settler, *answers: self._answer(*answers)),
            (payload, "loads_together", _unpickle_nothing),
            (Parcels, "do", lambda parcels, job: job()),
            (Voice, "put", _do_now),
            (outcomes_module, "load_failure", lambda *args: RuntimeError("it failed there")),
        ]
        for owner, name, stand_in in stand_ins:
            self._patches.enter_context(mock.patch.object(owner, name, stand_in))
        farm = FarmExecutor(
            ["127.0.0.1:1"], key=KEY, caller_leads=False, resume_timeout=10.0, ship=[__file__], output=len
        )
        self.engine = farm._backing.make_engine()
        self.engine.start()
        self.work()
        self._answered = 0
        for number in range(3):
            future = self.engine.submit(pow, (number, 2), {}, TaskOptions(), inlet=None if number else Inlet())
            future.add_progress_callback(lambda future: repr(future.progress))

    def _connect(self, address: Any, key: bytes, hello: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        here, there = socket.socketpair()
        if hello["role"] == "control" and self.control is None:
            self.control = there
            versions = local_versions()._asdict()
            answer = {"session": "session", "slots": 1, "name": "", "versions": versions, "resume_seconds": 10}
            answer["features"] = hello["features"]
            return Connection(here, MAX_HELLO, _give), answer
        if hello["role"] == "lane" and self._lanes_left:
            self._lanes_left -= 1
            if self.lane is not None:
                self.lane.close()
            self.lane = there
            return _bounded(here), {"pid": 4711}
        here.close()
        there.close()
        raise ConnectionRefusedError("there is no more")

    def _answer(self, answers: Any, *others: Any) -> None:
        self._answered += len(list(answers))
        assert self._answered <= 3, "more outcomes than tasks"

    def work(self) -> None:
        """Until nothing is left to do but what the clock would tell it to."""
        reactor = self.engine._reactor
        while self._links or reactor._inbox or self._ready():
            while self._links:
                link = self._links.pop()
                while (found := link._plan.next()) is not None:
                    try:
                        link._make(found[0])
                    except ConnectionRefusedError:
                        break  # it would be dialled again later, and not here
                    finally:
                        link._plan.drop(found[0])
                    reactor._run_inbox()
            reactor._run_inbox()
            for key, events in self._ready():
                key.data(events)

    def _ready(self) -> list[Any]:
        found = self.engine._reactor._selector.select(0)
        return [(key, events) for key, events in found if events & selectors.EVENT_READ]

    def say(self, sock: socket.socket | None, data: bytes) -> None:
        """Have the server say something."""
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.send(data)
            self.work()

    def break_lane(self) -> None:
        """Have the server's end of the lane end; it may be dialled again."""
        if self.lane is not None:
            with contextlib.suppress(OSError):
                self.lane.shutdown(socket.SHUT_WR)
            self.work()

    def close(self) -> None:
        self.engine._break(RuntimeError)
        self.engine._reactor._close()
        self._patches.close()
        for sock in filter(None, (self.control, self.lane)):
            sock.close()


def client(data: bytes) -> None:
    """A client's engine, whose server proves the key and then says anything.

    The first byte says how many bytes come over the control connection, the second how many over the lane, which
    breaks then; the rest comes over the lane's next connection.
    """
    logging.getLogger("farm_executor").setLevel(logging.CRITICAL)
    lengths = [*data[:2], 0, 0][:2]
    places = [2, 2 + lengths[0], 2 + sum(lengths), 2 + sum(lengths) + (1 << 16)]
    control, lane, resumed = (data[begin:end] for begin, end in pairwise(places))
    one = _Client()
    try:
        one.say(one.control, control)
        for part in (lane, resumed):
            one.say(one.lane, part)
            one.break_lane()
    finally:
        one.close()


def watcher(data: bytes) -> None:
    """Somebody who watches a server that proves the key and then says anything; and what a terminal shows of it."""
    here, there = socket.socketpair()
    with there, mock.patch.object(admin_module, "connect", lambda *args: (Connection(here), {})):
        watch = Watch(parse_address("127.0.0.1:1"), Key(KEY), 1.0)
        server = Server("127.0.0.1:1")
        watch.ask()
        try:
            for number, place in enumerate(range(0, len(data), 1 << 10)):
                there.send(data[place : place + (1 << 10)])
                status = watch.take()
                if status is not None:
                    assert from_json(type(status), to_json(status)) == status
                    server.take(status, float(number))
        except RemoteProtocolError as error:
            server.lose(str(error))
        finally:
            watch.close()
    for width in (20, 100):
        for line in paint(frame_of([server], Choices(), width, 30), colour=False, plain=True):
            assert line.isprintable()


def ring(data: bytes) -> None:
    """A lane with a ring, as its client receives and sends through it.

    The first byte says how many follow as what describes an offered ring, the second how many credits come.
    """
    shape, credits = (data[0], data[1]) if len(data) > 1 else (0, 0)
    with contextlib.suppress(RemoteProtocolError):
        assert shape_of(data[2 : 2 + shape]).size <= 1 << 31
    pairs = [socket.socketpair() for _ in range(2)]
    (here, there), (bell, other) = pairs
    for sock in (here, there, bell, other):
        sock.setblocking(False)
    connection = _bounded(here)
    small = Shape(1 << 16, 2)
    assert connection.expect_ring(Ring(mmap.mmap(-1, small.size), bell, small, at_client=True)) is None
    assert connection.use_ring()
    place = 2 + shape + credits
    other.send(data[2 + shape : place])
    there.send(data[place : place + (1 << 14)])
    there.shutdown(socket.SHUT_WR)
    try:
        connection.send(encode_payload(FrameType.TASKS, [b"", bytes(LEAST)], prefix=bytes(4)))
        connection.flush()
        while True:
            for frame in connection.receive():
                _understand(frame)
    except (EOFError, RemoteProtocolError):
        pass
    finally:
        connection.close()
        there.close()
        other.close()


# -- genuine bytes, for others to spoil ---------------------------------------------------------------------------


def _joined(*parts: Any) -> bytes:
    return b"".join(b"".join(part) for part in parts)


_CONTROL_HELLO = _joined(
    encode_hello(
        {
            "role": "control",
            "versions": local_versions()._asdict(),
            "client": "somebody",
            "features": [*ALWAYS, FUNCTIONS, OUTPUT, RECORDS, RINGS, MODULES],
        }
    )
)
_PULSE = _joined(encode_hello(to_json(FarmStatus(*range(1, 10))), FrameType.PING, 1))
_HEARD = _joined(encode_frame(FrameType.HEARD, seq=1024), encode_frame(FrameType.HEARD, seq=1024))
_WATCH = _joined(
    encode_hello({"role": "admin", "command": "watch"}),
    encode_frame(FrameType.PING, seq=1),
    encode_frame(FrameType.PING, seq=2),
)
_KILL = {"order": 1, "lane": 1, "first": 0, "recalls": 0, "ranges": [[0, 3], [5, 5]]}
_BEGINNING = _joined(
    encode_payload(FrameType.INIT, [pickle.dumps(None)]),
    encode_payload(FrameType.FUNCTION, [pickle.dumps(pow)], seq=7),
    encode_tasks(0, [(7, [b"one"]), (7, [b"two"])], once=True),
)
_LANE = _BEGINNING + _joined(
    encode_frame(FrameType.STOP, seq=0),
    encode_credit(0, 0),
    encode_frame(FrameType.LEVELS, body=b'{"": 30, ".": 0, "hostile.logger": 10}'),
    encode_frame(FrameType.DETAILS, seq=0, body=pickle.dumps((1, 1, None, None))),
    encode_frame(FrameType.CALL_HEADER, body=pickle.dumps({"vars": {"os:name": 1}, "else": 2})),
    encode_tasks(2, [(7, [b"bulk", b"x" * 100])]),
    encode_tasks_together(3, [7, 7], pickle.dumps([(1,), ("a",)])),
    encode_frame(FrameType.ACK, seq=1),
    encode_frame(FrameType.RECALL, count=2),
    encode_frame(FrameType.FORGET, body=(7).to_bytes(4, "little")),
)
_OFFER = encode_offer({"pkg": "p", "one": "m"}, {"yaml": Package("PyYAML", "6.0")})
_CONTENTS = encode_contents(
    [
        Contents("pkg", "p", "/home/me", [("pkg/__init__.py", 5), ("pkg/data/words", 3)], ["pkg/big (9 MiB)"]),
        Contents("one", "m", "/home/me", [("one.py", 5)], []),
    ]
)
_FILES = [zlib.compress(b"x = 1123"), zlib.compress(b"y = 2")]
_MODULES = _joined(
    encode_payload(FrameType.MODULES, [_OFFER]),
    encode_payload(FrameType.MODULE, [_CONTENTS, *_FILES], seq=0),
    encode_frame(FrameType.MODULE, flags=ERROR, seq=1, body=b"it has gone"),
)
_ASKED = _joined(
    encode_frame(FrameType.WANTED, seq=0, body=encode_question("hostile", "")),
    encode_frame(FrameType.WANTED, seq=1, body=encode_question("nothing", "?")),
    encode_frame(FrameType.PACKAGES, body=encode_differences([Difference("numpy", "2.1.0", "")])),
)
_READY = _joined(encode_payload(FrameType.READY, [b""]))
_RESULTS = _joined(
    encode_results(0, [([b"one"], False)], 25),  # the first is sent alone, the others when its result has come
    encode_results(1, [([b"bulk", b"x" * 100], True)], 25),
    encode_results_together(2, 2, pickle.dumps([1, "a"]), 25),
    encode_frame(FrameType.RECALLED, count=1, seq=3),
)
_ANSWERS = _READY + _RESULTS
_RINGED = _joined(
    encode_frame(FrameType.RESULTS, flags=BULK | RING, count=1, body=struct.pack("<I2QI", 2, 4, LEAST + 1, 25)),
    [b"bulk", b"....."],
)
_OUTPUT = _joined(
    encode_frame(FrameType.OUTPUT, count=1, seq=0, body=struct.pack("<Q", 1) + b"one\ntw"),
    encode_frame(FrameType.OUTPUT, count=2, seq=3, body=struct.pack("<Q", 1) + b"\x1b[31m\r\xff"),
    encode_frame(FrameType.OUTPUT, count=1, seq=6, body=struct.pack("<Q", 1)),
)
_RECORD = {"name": "hostile.logger", "levelno": 30, "created": 1e9, "msg": "one\ntwo", "lineno": 7, "extra": True}
_MARKED = _joined(
    encode_frame(FrameType.MARKS, count=1, body=struct.pack("<5Q", 0, 0, 3, 6, 9)),
    encode_frame(FrameType.RECORDS, count=1, seq=0, body=pickle.dumps([_RECORD], 5)),
    encode_items(0, 0, [[b"one"], [b"two"]]),
    encode_items(0, 1, [[b"bulk", b"x" * 100]]),
    encode_items_together(0, 2, 2, pickle.dumps([1, "a"])),
    encode_frame(FrameType.ABOUT, seq=0, body=bytes(8)),
    encode_frame(FrameType.LACKING, seq=1),
    encode_frame(FrameType.REPORT, count=1, seq=0, body=b"\x80half of it"),
)
_REPORTS = _joined(
    encode_counts([(1, 100, 100)], 2),
    encode_hello({"lane": 1, "slot": 0, "pid": 1, "code": -9, "begun": 0, "killed": 0}, FrameType.WORKER_DIED),
    encode_hello({"order": 1, "lane": 1, "recalls": 0}, FrameType.SPARED),
    encode_hello({"leave": False}, FrameType.DRAINING),
)

_STATUS = {
    "farm_status": 2,
    "address": "127.0.0.1:1",
    "name": "a server",
    "host": "here",
    "user": "somebody",
    "pid": 4711,
    "seconds": 12.5,
    "now": 1e9,
    "slots": 2,
    "draining": False,
    "versions": local_versions()._asdict(),
    "machine": {"cpus": 2.0, "load": [0.5, 0.25, 0.125], "memory": 1 << 33, "available": 1 << 32},
    "totals": {
        **dict.fromkeys(("sessions", "workers_started", "tasks_begun", "received", "sent"), 1),
        "workers_ended": {"oom": 1},
        "busy_seconds": 1.5,
    },
    "sessions": [
        {
            **dict.fromkeys(("client", "host", "user", "program", "label"), "pid 1 at there"),
            "id": 1,
            "seconds": 2.5,
            "state": "open",
            "workers": 1,
            "farm": {"queued": 3},
        }
    ],
    "sessions_left_out": 0,
    "workers": {"columns": list(WORKER_COLUMNS), "rows": [[1, 0, 4712, 9, "busy", 0.5, 7, 8.5, None, 30, 1, 2]]},
    "deaths": [{"at": 1e9, "session": 1, "slot": 0, "pid": 4713, "cause": "oom", "code": -9, "peak": 1 << 30}],
}
_DOCUMENTS = _joined(
    encode_hello(_STATUS, FrameType.PONG, 1), encode_hello({**_STATUS, "now": 1e9 + 1}, FrameType.PONG, 2)
)


def _dialogue() -> tuple[bytes, bytes]:
    """A handshake with another key: what a client says, and what a server does."""
    client, server = ClientHandshake(KEY[::-1], NONCE), ServerHandshake({KEY[::-1]: {Security.PLAIN}}, NONCE)
    said = [client.start()]
    heard = [server.receive_data(said[0])]
    said.append(client.receive_data(heard[0]))
    heard.append(server.receive_data(said[1]))
    return b"".join(said), b"".join(heard)


_SAID, _ANSWERED = _dialogue()


def _after(first: bytes) -> bytes:
    """These, before the connection breaks; see `worker`."""
    return len(first).to_bytes(2, "little") + first


_SHARED = layout_of([5, 7], frozen=True).head.ljust(64, b"\0") + bytes(128)
_OFFERED = _joined(encode_share(1, 192), encode_share(1, 192), encode_frame(FrameType.UNSHARE, seq=1))
_REPLIED = _joined(*(encode_answer(1, state, "why" * (state == State.REFUSED)) for state in State))
_PIECES = _joined(
    *(encode_piece(1, begin, 192, _SHARED[begin : begin + 96]) for begin in (0, 96)),
    encode_piece(2, 0, 192, _SHARED[:96]),
    encode_frame(FrameType.UNSHARE, seq=2),
    encode_frame(FrameType.UNSHARE, seq=1),
)
_REFERRED = _joined(
    encode_payload(FrameType.FUNCTION, (b"pickle",), seq=1),
    encode_tasks(0, [(1, (b"pickle", Reference.to(1), b"sent", Reference.to(1 << 61)))]),
)
_HANDED = _joined(
    encode_payload(FrameType.FUNCTION, (b"pickle", b"buffer"), seq=1, flags=TOGETHER, prefix=bytes(8)),
    encode_payload(FrameType.FUNCTION, (b"pickle",), seq=2, flags=TOGETHER, prefix=bytes(8)),
    encode_frame(FrameType.FUNCTION, seq=2, flags=ERROR),
    encode_tasks(0, [(1, [b"one"]), (2, [b"two"])]),
)
_STREAMS = (
    *(_LANE, _ANSWERS, _REPORTS, _CONTROL_HELLO, _OUTPUT + _MARKED, _PULSE + _HEARD),
    *(_OFFERED, _REPLIED, _PIECES, _REFERRED, _HANDED),
)

TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        *(
            frames,
            shipment,
            shared,
            unpacking,
            server_handshake,
            client_handshake,
            stranger,
            guest,
            monitor,
            session,
            worker,
            client,
            watcher,
            ring,
        ),
        *hostile_memory.TARGETS,
    )
}

SEEDS: dict[str, list[bytes]] = {
    "frames": [bytes([size]) + seed for size in (0, 15, 255) for seed in _STREAMS],
    "shipment": [
        *(_OFFER, _CONTENTS, encode_question("pkg", "?")),
        encode_differences([Difference("numpy", "2.1.0", "1.0")]),
    ],
    "shared": [_SHARED, _SHARED[:8] + b"\x01" + _SHARED[9:]],
    "unpacking": [b"".join(len(part).to_bytes(2, "little") + part for part in (_CONTENTS, *_FILES))],
    "server_handshake": [_SAID],
    "client_handshake": [_ANSWERED],
    "stranger": [_SAID, _SAID + _CONTROL_HELLO],
    "guest": [
        _CONTROL_HELLO,
        _joined(encode_hello({"role": "lane", "session": "0", "slot": 0, "lane": 1})),
        _joined(encode_hello({"role": "lane", "session": "0", "ring": True, "lane": 1})),
        *(_joined(encode_hello({"role": "admin", "command": word})) for word in ("ping", "status", "end")),
        *(_WATCH, _WATCH + b"\0"),
        _CONTROL_HELLO + _joined(encode_hello(_KILL, FrameType.KILL)),
    ],
    "monitor": [
        *(_joined(encode_hello({"role": "admin", "command": word})) for word in ("ping", "status", "end")),
        *(_WATCH, _WATCH + b"\0"),
        _CONTROL_HELLO,
        _joined(encode_hello({"role": "lane", "session": "0", "slot": 0, "lane": 1})),
    ],
    "session": [
        _PULSE + _HEARD,
        _OFFERED,
        _joined(encode_hello(_KILL, FrameType.KILL)),
        _joined(encode_hello({**_KILL, "ranges": [[7, 9]]}, FrameType.KILL), encode_frame(FrameType.BYE)),
    ],
    "worker": [
        _after(_LANE),
        _after(_BEGINNING) + _joined(encode_frame(FrameType.RINGED)),
        _after(_MODULES + _LANE),
        _after(_PIECES) + _PIECES,
        _after(_LANE) + _REFERRED,
        _after(_HANDED) + _HANDED,
        _after(_BEGINNING) + _joined(encode_frame(FrameType.RESUME, seq=2)),
        _after(_BEGINNING) + _joined(encode_frame(FrameType.RESUME, seq=0)) + _LANE,
    ],
    "client": [
        bytes([len(_REPLIED), 0]) + _REPLIED,
        bytes([0, len(_ANSWERS)]) + _ANSWERS,
        bytes([0, len(_ASKED + _READY)]) + _ASKED + _READY + _RESULTS,
        bytes([len(_OUTPUT), 255]) + _OUTPUT + _READY + _MARKED + _RESULTS,
        bytes([len(_REPORTS), len(_ANSWERS)]) + _REPORTS + _ANSWERS,
        bytes([0, len(_READY)]) + _READY + _joined(encode_frame(FrameType.RESUMED, seq=1)) + _RESULTS,
    ],
    "watcher": [_DOCUMENTS],
    "ring": [
        bytes([8, 2]) + USUAL.encode() + b"++" + _READY + _RINGED,
        bytes([8, 4]) + Shape(1 << 16, 2).encode() + b"++++" + _RINGED + _RINGED,
    ],
    **hostile_memory.SEEDS,
}
"""Genuine bytes of each kind."""
