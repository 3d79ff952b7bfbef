"""The supervisor: a server's parent process.

This module owns the loop, what signals do, and how the server ends. It must not know what is said to clients
(`sessions`, `admin`), nor how workers are kept (`workers`). No part of the supervisor imports user code, unpickles
anything or reads a task: a lane's socket belongs to the worker that is forked for it.

One thread, one selector, no polling: it sleeps until something happens.

A new connection is a *guest* (see `guest`) until it has proven a key and sent its hello. Then it becomes a
*session's* control connection, a new lane of a session, or an administrator's question, which is answered at once.

The supervisor keeps its own descriptor of each lane's socket. When the worker is gone, the supervisor hangs up, so
that the client sees the lane end even if a process started by a task still holds the socket.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from farm_executor.core.features import ALWAYS, FUNCTIONS, MODULES, OUTPUT, RECORDS, RINGS
from farm_executor.core.messages import AdminHello, BackHello, ClientHello, ControlHello, LaneHello
from farm_executor.server.admin import HARMLESS, Admin
from farm_executor.server.census import Census
from farm_executor.server.childhood import Parent, end_process, serve_tracker
from farm_executor.server.door import Door, Listener
from farm_executor.server.guest import Guest
from farm_executor.server.log import DroppingHandler
from farm_executor.server.sessions import GRACE_CRASHED, Sessions, Terms
from farm_executor.server.worker import WorkerStart, run_worker
from farm_executor.server.workers import Workers
from farm_executor.wire import memfd
from farm_executor.wire.security import Key, monitors_of
from farm_executor.wire.sockets import Socket, is_tcp, listen_beside
from farm_executor.wire.trace import pending, tell
from farm_executor.wire.versions import local_versions
from farm_executor.wire.waker import Waker

if TYPE_CHECKING:
    from farm_executor.server.depot import Depot

__all__ = ["Supervisor", "serve"]

logger = logging.getLogger(__name__)

NO_CLIENT = "a server listens here: --back names where a client waits, FarmExecutor('back://HOST:PORT')"


class Supervisor:
    """A server.

    Args:
        listeners: Listening sockets; the supervisor owns them from now on.
        address: The address that it listens at, for people to read.
        keys: The keys, each of which admits a peer. Code that runs in the workers uses the first one when it is
            itself a client.
        slots: The number of workers that each session may have.
        name: A label for people.
        owner: A file descriptor whose end makes the server end at once: the process that started it holds the other
            end.
        embedded: Whether the server belongs to one client, so that Ctrl-C in the client's terminal interrupts the
            running tasks. Otherwise Ctrl-C at the server, like SIGTERM, makes it take no new clients and ask those
            that it has to leave, and a second one makes it end at once. SIGHUP does the former, however often it
            comes.
        module_path: Folders that tasks search first for modules.
        interruptible: Whether Ctrl-C interrupts tasks in an embedded server: not if the client ignores it.
        tunnelled: Whether there is a network behind its unix socket. A silent client is then taken for gone, and if
            the server is that client's own, it ends.
        parent: The process that its workers take for their parent; None for the supervisor.
        requests: A descriptor for a resource tracker to read, which is started as soon as something can be read.
        monitors: Whether those may look who have a monitor's key, derived from one of the keys.
        env: Environment variables of the workers; see `core.environment.for_slot`.
        spare_workers: Whether a SIGTERM that reaches the workers, too, is meant for the server alone, which drains:
            a cluster's scheduler signals every process of a job.
        max_shared: How many bytes of shared objects it holds; None for half of the memory there is.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        *,
        address: str,
        keys: Sequence[Key],
        slots: int,
        name: str = "",
        owner: int | None = None,
        embedded: bool = False,
        interruptible: bool = True,
        tunnelled: bool = False,
        module_path: Sequence[str] = (),
        parent: Parent | None = None,
        requests: int | None = None,
        monitors: bool = True,
        env: Sequence[tuple[str, str | Sequence[str]]] = (),
        spare_workers: bool = False,
        max_shared: int | None = None,
    ) -> None:
        self._address = address
        self._slots = slots
        self._life: int | None = None
        if owner is None:  # nobody's: it holds both ends, and so the descriptor never reaches its end
            owner, self._life = os.pipe()
        self._owner = owner
        self._requests = requests
        self._embedded = embedded
        self._tunnelled = tunnelled
        self._selector = selectors.DefaultSelector()
        self._waker = Waker()
        # An embedded server's guests are its own client, which knows why it left.
        known = [*keys, *monitors_of(keys)] if monitors else keys  # these last: workers count keys from the first
        over_tcp = any(isinstance(listener, Socket) and is_tcp(listener) for listener in listeners)
        name_beside, beside = listen_beside() if over_tcp else ("", None)
        self._door = Door(listeners, known, self._selector, self._on_hello, quiet=embedded, beside=beside)
        # An embedded server's workers have the program's own files, and its path.
        self._depot: Depot | None = None
        if tunnelled or not embedded:
            from farm_executor.server.depot import Depot  # late: an embedded farm does not wait for it

            self._depot = Depot(self._close_all)
        memory = (FUNCTIONS, RINGS) if memfd.AVAILABLE else ()
        features = (*ALWAYS, OUTPUT, RECORDS, *memory, *(() if self._depot is None else (MODULES,)))
        terms = Terms(address, name, slots, local_versions(), features, tunnelled, max_shared, name_beside)
        start_workers = partial(
            Workers,
            self._selector,
            keys,
            embedded=embedded,
            module_path=module_path,
            parent=parent or Parent(),
            owner=owner,
            interruptible=interruptible,
            env=env,
            spare=spare_workers,
            let_go=self._close_all,
        )
        self._sessions = Sessions(self._selector, self._door, terms, self._depot, start_workers, self._on_lost)
        self._workers = self._sessions.workers
        census = Census(terms, self._sessions)
        self._admin = Admin(self._selector, self._door, census, partial(self._drain, leave=False))
        self._terminations = 0
        self._hung_up = False
        self._ending = False
        self._on_drain: Callable[[], None] = lambda: None

    # -- the loop --------------------------------------------------------------------------------------

    def run(self, on_ready: Callable[[], None], on_drain: Callable[[], None]) -> WorkerStart | None:
        """Serve until told to end.

        Args:
            on_ready: Called once signals are handled.
            on_drain: Called once no new clients are taken.

        Returns:
            In the supervisor, None once it has ended. In a worker's new process, what the worker starts with: let
            the stack unwind and then call `run_worker`.
        """
        self._on_drain = on_drain
        self._watch_signals()
        self._door.open()
        self._selector.register(self._waker, selectors.EVENT_READ, self._on_signal)
        self._selector.register(self._owner, selectors.EVENT_READ, self._on_owner)
        if self._requests is not None:
            self._selector.register(self._requests, selectors.EVENT_READ, self._on_requests)
        on_ready()
        logger.info("serving address=%s slots=%d pid=%d", self._address, self._slots, os.getpid())
        if self._slots > self._workers.room:
            logger.warning(
                "too few descriptors slots=%d workers=%d: more than that cannot be served at a time; "
                "raise the hard limit (ulimit -Hn, LimitNOFILE= of systemd), or have fewer slots",
                *(self._slots, self._workers.room),
            )
        while not self._finished():
            # An earlier callback of a round may close what a later event of the same round is about. So callbacks
            # check first whether their subject is still there.
            for key, _ in self._selector.select(self._next_deadline()):
                worker: WorkerStart | None = key.data()
                if worker is not None:
                    return worker  # we are the new process, with the supervisor's stack still above us
            self._on_time(time.monotonic())
            if pending:  # frames sent in this round
                tell()
        self._workers.pass_on()
        if self._depot is not None:
            self._depot.close()
        logger.info("ended address=%s", self._address)
        self._close_all()
        return None

    def _finished(self) -> bool:
        return (self._ending or self._sessions.draining) and not self._sessions and not self._workers

    def _watch_signals(self) -> None:
        # Handlers run between any two steps of the loop, so they set a flag at most. The byte that set_wakeup_fd
        # writes wakes the loop, which then does the work.
        signal.set_wakeup_fd(self._waker.signal_fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.signal(signal.SIGTERM, self._on_terminate)
        # With a client at the terminal, it is for the client to decide what Ctrl-C does.
        signal.signal(signal.SIGINT, signal.SIG_IGN if self._embedded else self._on_terminate)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
            signal.signal(signal.SIGHUP, self._on_hang_up)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the process that started us may have blocked some

    def _on_terminate(self, signum: int, frame: Any) -> None:
        self._terminations += 1

    def _on_hang_up(self, signum: int, frame: Any) -> None:
        # With a client at the terminal, the terminal's end is for the client to handle, as Ctrl-C is. A shell and
        # the system may both report the same end, so a second signal means nothing more.
        self._hung_up = not self._embedded

    def _on_signal(self) -> None:
        self._waker.drain()
        self._workers.reap()
        if self._terminations or self._hung_up:
            self._drain(leave=True)
        if self._terminations > 1:
            self._end_at_once()
            self._workers.hasten(GRACE_CRASHED)  # including those of sessions that ended earlier, with more grace

    def _on_owner(self) -> None:
        if not os.read(self._owner, 4096):
            self._selector.unregister(self._owner)
            self._end_at_once()

    def _on_requests(self) -> None:
        assert self._requests is not None
        self._selector.unregister(self._requests)
        serve_tracker(self._requests)
        self._requests = None

    def _next_deadline(self) -> float | None:
        first = min(self._door.deadline, self._sessions.deadline, self._workers.deadline)
        return None if first == float("inf") else max(first - time.monotonic(), 0.0)

    def _on_time(self, now: float) -> None:
        self._door.on_time(now)
        self._sessions.on_time(now)
        self._workers.on_time(now)

    # -- guests that are let in ------------------------------------------------------------------------

    def _on_hello(self, guest: Guest, hello: ClientHello) -> WorkerStart | None:
        if guest.read_only and not (isinstance(hello, AdminHello) and hello.command in HARMLESS):
            self._door.refuse(guest, "read-only", "this key may only look: it is a monitor's")
            return None
        if guest.beside and not isinstance(hello, LaneHello):
            self._door.refuse(guest, "role", "here are lanes and rings only: come by the server's address")
            return None
        if isinstance(hello, LaneHello):
            return self._sessions.open_lane(guest, hello)
        if isinstance(hello, ControlHello):
            self._sessions.open(guest, hello)
        elif isinstance(hello, BackHello):
            self._door.refuse(guest, "role", NO_CLIENT)
        else:
            self._admin.answer(guest, hello)
        return None

    def _on_lost(self) -> None:
        if self._tunnelled and self._embedded:  # its client is gone, or has started another server
            self._end_at_once()

    # -- the end ---------------------------------------------------------------------------------------

    def _close_all(self, but: Socket | None = None) -> None:
        """Close every descriptor of ours except that socket, without telling any peer."""
        # First: after a fork, an epoll object is shared with the parent, and unregistering sockets here would take
        # them out of the parent's as well.
        self._selector.close()
        # A child may still end; its signal must not be written to whatever has this descriptor's number by then.
        signal.set_wakeup_fd(-1)
        self._waker.close()
        lock = None if self._depot is None else self._depot.lock
        for descriptor in (self._owner, self._life, self._requests, lock):
            if descriptor is not None:
                os.close(descriptor)
        self._door.close(but)
        self._admin.close()
        self._sessions.close()
        self._workers.close(but)

    def _drain(self, *, leave: bool) -> None:
        """Take no new clients, ask the present ones to ``leave`` if so told, and end when they are gone."""
        if not self._sessions.draining:
            logger.info("draining address=%s sessions=%d", self._address, len(self._sessions))
            # Before the clients are told: one that has been told must not find us still at our address.
            self._door.shut()
            self._on_drain()
        self._sessions.drain(leave=leave)

    def _end_at_once(self) -> None:
        self._ending = True
        self._drain(leave=True)
        self._door.dismiss_all("the server ends")
        self._sessions.part()


def serve(
    listeners: Sequence[Listener],
    *,
    on_ready: Callable[[], None] = lambda: None,
    on_drain: Callable[[], None] = lambda: None,
    **settings: Any,
) -> None:
    """Run a server until it ends; see `Supervisor` for the settings. In a worker's process it does not return.

    Args:
        listeners: Listening sockets.
        on_ready: Called when it serves: from then on SIGTERM drains it.
        on_drain: Called once it takes no new clients.
        **settings: The settings of `Supervisor`.
    """
    # Where logging is not configured, this handler writes the warnings.
    logging.lastResort = DroppingHandler(logging.WARNING)
    start = Supervisor(listeners, **settings).run(on_ready, on_drain)
    if start is not None:
        run_worker(start)
        end_process()
