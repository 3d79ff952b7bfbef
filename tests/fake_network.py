"""A farm's client half, with its real engine, over a network that a test plays: no sockets, threads or clocks.

What is sent waits until it is delivered. A connection that is cut loses what is on its way, in either direction.
"""

import contextlib
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

from farm_executor import FarmExecutor
from farm_executor.client.farm import engine as engine_module
from farm_executor.client.farm import lane as lane_module
from farm_executor.client.farm import link as link_module
from farm_executor.client.launching import at
from farm_executor.core.batches import decode_tasks, decode_tasks_together, encode_results
from farm_executor.core.features import COUNTS
from farm_executor.core.frames import HEADER_SIZE, TOGETHER, Frame, FrameType, encode_frame
from farm_executor.core.liveness import encode_counts
from farm_executor.core.messages import WorkerDied, encode
from farm_executor.core.options import TaskOptions
from farm_executor.core.outbox import Outbox
from farm_executor.core.reader import FrameReader
from farm_executor.data import payload
from farm_executor.wire.address import Address
from farm_executor.wire.dialling import RefusedError
from farm_executor.wire.versions import local_versions

READ = 1
RESUME = 10.0  # seconds
ACKNOWLEDGE_BYTES = 100  # a few results
KEY = b"a key that is long enough for all"


class Reactor:
    """Stands in for the farm's: a test says when handlers, timers and what was posted run."""

    def __init__(self, finished: Any, failed: Any, ended: Any, *, may_lead: bool) -> None:
        self.finished, self.failed, self.ended = finished, failed, ended
        self.may_lead = False
        self.inbox: deque[Callable[[], None]] = deque()
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.handlers: dict[Any, Callable[[int], None]] = {}

    def start(self) -> None: ...
    def glance(self) -> None: ...

    def is_own_thread(self) -> bool:
        return True

    def may_wait(self) -> bool:
        return False

    def post(self, action: Callable[[], None]) -> None:
        self.inbox.append(action)

    def register(self, connection: Any, handler: Callable[[int], None]) -> None:
        assert connection not in self.handlers
        self.handlers[connection] = handler

    def unregister(self, connection: Any) -> None:
        del self.handlers[connection]

    def want_to_write(self, connection: Any, wanted: bool) -> None:
        assert connection in self.handlers
        assert not wanted

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.timers.append((seconds, action))


class Connection:
    """The client's end of one."""

    peer = None
    pending = unsent = laden = False

    def __init__(self) -> None:
        self.socket = SimpleNamespace(setblocking=lambda blocking: None)
        self.there: deque[Frame] = deque()  # on its way to the server
        self.back: deque[Frame] = deque()
        self.cut = self.closed = False
        self.bytes_sent = self.bytes_received = 0
        self._out, self._in = FrameReader(), FrameReader()

    def send(self, buffers: list[Any]) -> bool:
        data = b"".join(buffers)
        self.bytes_sent += len(data)
        if not self.cut and not self.closed:
            self.there.extend(self._out.receive_data(data))
        return True

    def say(self, buffers: list[Any]) -> None:
        """The server's end sends."""
        data = b"".join(buffers)
        if not self.cut and not self.closed:
            self.back.extend(self._in.receive_data(data))

    def receive(self) -> list[Frame]:
        if self.cut:
            raise EOFError("cut")
        if not self.back:
            return []
        self.bytes_received += HEADER_SIZE + len(self.back[0].body)
        return [self.back.popleft()]

    def flush(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True
        self.there.clear()
        self.back.clear()

    def break_off(self) -> None:
        self.cut = True
        self.there.clear()
        self.back.clear()


class Worker:
    """A worker: it begins tasks one by one, and keeps their outcomes, as the real one does."""

    def __init__(self, network: "Network", lane: int, slot: int, connection: Connection) -> None:
        self.network, self.lane, self.slot, self.connection = network, lane, slot, connection
        self.functions: dict[int, Any] = {}
        self.tasks: deque[Any] = deque()  # arguments of tasks not begun
        self.expected = self.recalls = 0
        self.outbox: Outbox[int] = Outbox(resumable=True)
        self.begun = -1
        self.alive = True

    def deliver(self) -> None:
        """One frame arrives."""
        if not self.connection.there or not self.alive:
            return
        frame = self.connection.there.popleft()
        if frame.type is FrameType.INIT:
            self.connection.say(encode_frame(FrameType.READY))
        elif frame.type is FrameType.TASKS:
            assert frame.seq == self.expected
            if frame.flags & TOGETHER:
                data = decode_tasks_together(frame)[1]
                calls = payload.loads_together(data, frame.count)
            else:
                calls = [payload.loads(data)[0] for _, data in decode_tasks(frame)]
            self.tasks.extend(args[0] for args in calls)
            self.expected += len(calls)
        elif frame.type is FrameType.RECALL:
            count = min(frame.count, len(self.tasks))
            for _ in range(count):
                self.tasks.pop()
            self.expected -= count
            self.recalls += bool(count)
            self.connection.say(encode_frame(FrameType.RECALLED, count=count, seq=self.expected))
        elif frame.type is FrameType.RESUME:
            self.outbox.resume(frame.seq)
            self.recalls += 1
            self.connection.say(encode_frame(FrameType.RESUMED, seq=self.expected, count=self.recalls))
            self._answer()
        elif frame.type is FrameType.ACK:
            self.outbox.acknowledge(frame.seq)
        elif frame.type is FrameType.BYE:
            self.die()

    def run(self) -> None:
        """Run the next task."""
        if self.alive and self.tasks:
            number = self.tasks.popleft()
            self.begun += 1
            self.network.runs[number] = self.network.runs.get(number, 0) + 1
            self.outbox.waiting.append(number)
            self._answer()

    def _answer(self) -> None:
        first, numbers = self.outbox.take()
        for seq, number in enumerate(numbers, first):
            self.connection.say(encode_results(seq, [(payload.dumps(number), False)], 100))

    def die(self, *, report: bool = True) -> None:
        """End; the supervisor says so, if there is a way to the client."""
        if self.alive:
            self.alive = False
            del self.network.workers[self.lane]
            self.connection.break_off()
            if report and self.network.control is not None:
                died = WorkerDied(self.lane, self.slot, 1, 1, self.begun)
                self.network.control.say(encode(died))


class Network:
    """A farm of one server, whose slots are few.

    Attributes:
        engine: The farm's.
        workers: By lane.
        control: The control connection, while there is a session.
        futures: Of the tasks submitted; each calls for the value of its own number.
        settled: For each how often its callback has been called.
        runs: For each how often a worker has begun it.
    """

    def __init__(self, slots: int = 2, servers: int = 1) -> None:
        self.slots = slots
        self.servers = servers
        self.workers: dict[int, Worker] = {}
        self.control: Connection | None = None
        self.sessions = 0
        self.known = ""  # the session that the server would resume
        self.out_of_reach = False
        self.futures: list[Any] = []
        self.settled: dict[int, int] = {}
        self.runs: dict[int, int] = {}
        self._dialling: set[Any] = set()
        self._patches = contextlib.ExitStack()
        self._patches.enter_context(mock.patch.object(engine_module, "Reactor", Reactor))
        self._patches.enter_context(mock.patch.object(link_module, "connect", self._connect))
        # After every few results, so that a short history has acknowledgements under way.
        self._patches.enter_context(mock.patch.object(lane_module, "ACKNOWLEDGE_BYTES", ACKNOWLEDGE_BYTES))
        self._patches.enter_context(
            mock.patch.object(link_module.ServerLink, "_dial_more", lambda link, **hurry: self._dialling.add(link))
        )
        self.addresses = [Address(f"127.0.{number // 250}.{number % 250 + 1}", 1) for number in range(servers)]
        self.farm = FarmExecutor(self.addresses, key=KEY, resume_timeout=RESUME, max_attempts=100)
        self.engine = self.farm._backing.make_engine()
        self.reactor: Any = self.engine._reactor
        self.engine.start()

    def close(self) -> None:
        self._patches.close()

    def _connect(self, address: Any, key: Any, hello: dict[str, Any], *args: Any, **more: Any) -> Any:
        if self.out_of_reach:
            raise ConnectionResetError("out of reach")
        connection = Connection()
        if hello["role"] == "control":
            if "resume" in hello:
                if hello["resume"] != self.known:
                    raise RefusedError("session", "unknown")
            else:
                self.sessions += 1
                self.known = f"session {self.sessions}"
            self.control = connection
            versions = local_versions()._asdict()
            answer = {"session": self.known, "slots": self.slots, "name": "", "versions": versions}
            return connection, {**answer, "resume_seconds": 10, "features": [COUNTS]}
        if hello["session"] != self.known and self.servers == 1:
            raise RefusedError("session", "unknown")
        if hello.get("resume"):
            worker = self.workers.get(hello["lane"])
            if worker is None:
                raise RefusedError("worker", "gone")
            worker.connection.break_off()
            worker.connection = connection
            worker.outbox.cut()
        else:
            worker = Worker(self, hello["lane"], hello["slot"], connection)
            self.workers[worker.lane] = worker
        return connection, {"pid": 1}

    def connect_all(self) -> None:
        """Every server answers, and all its workers are ready. With several servers nothing else may be played."""
        for link in self.engine.servers:
            while (found := link._plan.next()) is not None:
                link._make(found[0])
                link._plan.drop(found[0])
        self.work()
        for worker in self.workers.values():
            worker.deliver()
        self.read()

    # -- what a test plays -----------------------------------------------------------------------------------

    def submit(self) -> None:
        number = len(self.futures)
        future = self.engine.submit(abs, (number,), {}, TaskOptions(max_attempts=100))
        future.add_done_callback(lambda future: self.settled.update({number: self.settled.get(number, 0) + 1}))
        self.futures.append(future)

    def work(self) -> None:
        """The farm's own thread does what it has been left word of."""
        while self.reactor.inbox:
            self.reactor.inbox.popleft()()

    def dial(self) -> None:
        """Each link makes one attempt for all that it wants."""
        for link in list(self._dialling):
            self._dialling.discard(link)
            tried = []
            while (found := link._plan.next()) is not None:
                tried.append(found[0])
                self._try(link, found[0])
            for attempt in tried:
                link._plan.drop(attempt)
            if tried:
                self._dialling.add(link)

    def _try(self, link: Any, attempt: Any) -> None:
        try:
            link._make(attempt)
        except (OSError, RefusedError) as error:
            verdict = link._note_failure(attempt, error, final=False)
            if verdict.over and link.session is not None:
                link.session.gone(verdict.over)

    def read(self) -> None:
        """Whatever has come over any connection is read, a frame from each."""
        for connection, handler in list(self.reactor.handlers.items()):
            if (connection.back or connection.cut) and connection in self.reactor.handlers:
                handler(READ)

    def serve(self) -> None:
        """One frame arrives at the supervisor."""
        if self.control is not None and self.control.there:
            frame = self.control.there.popleft()
            if frame.type is FrameType.PING:
                self.control.say(encode_counts([], frame.seq))
            elif frame.type is FrameType.BYE:
                self.lose_session()

    def lose_session(self) -> None:
        """The server ends, and forgets all."""
        for worker in list(self.workers.values()):
            worker.die(report=False)
        if self.control is not None:
            self.control.break_off()
        self.control, self.known = None, ""

    def pass_time(self, *, resumable: bool = False) -> None:
        """Each timer that is set now runs out; or those alone that do not end the hope of resuming anything."""
        due = [timer for timer in self.reactor.timers if not resumable or timer[0] < RESUME]
        self.reactor.timers[:] = [timer for timer in self.reactor.timers if timer not in due]
        for _, action in due:
            action()

    def round(self) -> None:
        """Everybody does one thing."""
        self.dial()
        self.work()
        self.serve()
        for worker in list(self.workers.values()):
            worker.deliver()
            worker.run()
        self.read()
        self.work()

    def remove(self, *, drain: bool) -> None:
        """Somebody removes the server from the farm."""
        for link in self.engine.servers:
            self.engine.servers.remove(link.address or self.addresses[0], drain=drain)

    def settle_down(self) -> None:
        """All is well from here on: play until nothing moves."""
        self.out_of_reach = False
        for patience in range(400):
            if all(future.done() for future in self.futures):
                break
            if not list(self.engine.servers):
                self.engine.servers.add(self.addresses[0], at(self.addresses[0]))
            self.round()
            if not any(connection.back for connection in self.reactor.handlers):
                self.pass_time(resumable=patience < 200)
