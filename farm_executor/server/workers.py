"""A server's workers: how they start, are watched, and die.

This module owns the worker processes, where their output goes, and when one is killed: because a client asks for
it, or because the worker holds too much memory, stands still, or does not end when it should. It must not know why
sessions begin and end, nor what travels on lanes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from farm_executor._record import NamedTuple
from farm_executor.core.environment import for_slot
from farm_executor.core.liveness import MAX_MISSED
from farm_executor.core.messages import KillOrder, Spared, WorkerDied, WorkerHello
from farm_executor.data import kept
from farm_executor.server.channel import Channel, Line
from farm_executor.server.childhood import Parent, become_child, let_leader_set_sid
from farm_executor.server.counts import Counts
from farm_executor.server.descriptors import DescriptorLimit
from farm_executor.server.forwarding import ForwardedPipe, Forwarding, WorkerOutput
from farm_executor.server.guest import Guest
from farm_executor.server.memory import OomCounter, held_by, peak_of
from farm_executor.server.offspring import kill_family
from farm_executor.server.output import OutputPipe, StdoutPipe
from farm_executor.server.process import Worker
from farm_executor.server.progress import Progress
from farm_executor.server.session import Session
from farm_executor.server.tether import die_with
from farm_executor.server.worker import WorkerStart
from farm_executor.wire.security import Key, set_ambient_key
from farm_executor.wire.sockets import Socket, hang_up

if TYPE_CHECKING:
    import resource
    from types import FrameType

__all__ = ["Workers"]

logger = logging.getLogger(__name__)

DESCRIPTORS_EACH = 5  # taken by each worker in the supervisor: its lane, the two lines to it, its two outputs
DESCRIPTORS_BESIDES = 20  # for the supervisor itself, and for guests
LOOK_SECONDS = 0.2  # between looks at the memory of workers with a limit, if they have run anything since
UNSTICK_SECONDS = 0.1  # before the next attempt, when an output of ours takes no more
THAW_SECONDS = 1.0  # for processes that were stopped together to go on


class Workers:
    """The workers of a server; see the module.

    Args:
        selector: The supervisor's selector, whose entries hold the callbacks.
        keys: The server's keys; code that runs in the workers uses the first one when it is itself a client.
        embedded: See `Supervisor`.
        module_path: See `Supervisor`.
        parent: The process that workers take for their parent.
        owner: A file descriptor that reaches its end when that process ends.
        interruptible: Whether Ctrl-C in the terminal interrupts running tasks.
        env: See `Supervisor`.
        spare: See `Supervisor`, ``spare_workers``.
        tell: Sends a message to a session's client.
        gone: Called with the session when one of its workers has died and its client has been told.
        let_go: Called in a new process: closes everything of the supervisor's except that socket.

    Attributes:
        counts: What they have done, and how they ended.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        keys: Sequence[Key],
        *,
        embedded: bool,
        module_path: Sequence[str],
        parent: Parent,
        owner: int,
        interruptible: bool,
        env: Sequence[tuple[str, str | Sequence[str]]],
        spare: bool,
        tell: Callable[[Session, NamedTuple], None],
        gone: Callable[[Session], None],
        let_go: Callable[[Socket], None],
    ) -> None:
        self._selector = selector
        self._keys = keys
        self._embedded = embedded
        self._module_path = module_path
        self._parent = parent
        self._owner = owner
        self._interruptible = interruptible
        self._env = env
        self._spared = spare
        self._tell = tell
        self._gone = gone
        self.counts = Counts()
        self._let_go = let_go
        self._all: dict[int, tuple[Session, Worker]] = {}  # by pid
        self._doomed: dict[int, float] = {}  # by pid, the time at which it is killed
        self._stdout = None if embedded else StdoutPipe()  # an embedded server's workers write to the program's
        self._outputs: set[OutputPipe] = set()
        self._stuck: set[OutputPipe] = set()  # those that the selector does not watch for now
        self._unstick_at = 0.0
        self._oom_counter = OomCounter()
        self._descriptors = DescriptorLimit()
        self._next_look = 0.0
        if self._stdout is not None:
            self._listen_to(self._stdout)

    def __bool__(self) -> bool:
        return bool(self._all)

    def everyone(self) -> list[tuple[Session, Worker]]:
        """Return all workers, each with its session, which may be over."""
        return list(self._all.values())

    # -- time ------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When `on_time` is to be called next, on the monotonic clock."""
        times = [*self._doomed.values()]
        times += [worker.thaw_by for _, worker in self._all.values() if worker.thaw_by]
        if self._stuck:
            times.append(self._unstick_at)
        if any(True for _ in self._limited()):
            times.append(self._next_look)
        return min(times, default=float("inf"))

    def on_time(self, now: float) -> None:
        """Do everything that is due."""
        for worker in [worker for _, worker in self._all.values() if 0 < worker.thaw_by <= now]:
            self._end_frozen(worker, now)
        for doomed in [pid for pid, when in self._doomed.items() if when <= now]:
            del self._doomed[doomed]
            with contextlib.suppress(ProcessLookupError):
                os.kill(doomed, signal.SIGKILL)
        if self._stuck and self._unstick_at <= now:
            stuck, self._stuck = self._stuck, set()
            for pipe in stuck:  # it may have nothing more to read, but something to pass on
                self._listen_to(pipe)
                self._on_output(pipe)
        if self._next_look <= now:
            self._next_look = now + LOOK_SECONDS
            self._look_at_memory()

    # -- birth and death -------------------------------------------------------------------------------

    def end(self, worker: Worker, grace: float) -> None:
        """Let a worker see that its client is gone, and kill it if it has not ended within that many seconds."""
        worker.end()
        self._doomed[worker.pid] = min(self._doomed.get(worker.pid, float("inf")), time.monotonic() + grace)

    def hasten(self, grace: float) -> None:
        """Kill every worker that has not ended within that many seconds."""
        for pid in self._all:
            self._doomed[pid] = min(self._doomed.get(pid, float("inf")), time.monotonic() + grace)

    def is_doomed(self, worker: Worker) -> bool:
        """Return whether the worker has been told to end."""
        return worker.pid in self._doomed

    def close(self, but: Socket | None) -> None:
        """Close every descriptor except that socket, without telling any peer."""
        for pipe in self._outputs:
            pipe.close()
        for _, worker in self._all.values():
            worker.channel.close()
            if worker.line is not None:
                worker.line.close()
            if worker.socket is not but:
                worker.socket.close()

    @property
    def room(self) -> int:
        """The number of workers that there can be at a time, as far as descriptors go."""
        return self.descriptors // DESCRIPTORS_EACH

    @property
    def descriptors(self) -> int:
        """The number of descriptors that workers and what belongs to them may take."""
        return max(self._descriptors.limit - DESCRIPTORS_BESIDES, 0)

    def pass_on(self) -> None:
        """Pass on what dead workers have written."""
        if self._stdout is not None:
            self._stdout.drain()

    def start(self, session: Session, guest: Guest, slot: int, lane: int) -> WorkerStart | None:
        """Fork a worker, and answer the client.

        Returns:
            In the new process, what the worker starts with; in the supervisor, None.

        Raises:
            OSError: The system gives no process, or no descriptor.
        """
        progress = Progress()
        supervisor = os.getpid()
        with contextlib.ExitStack() as undo:
            channel, theirs = Channel.pair()
            undo.callback(channel.close)
            undo.callback(theirs.close)
            line, their_line = (None, None) if session.shelves is None else Line.pair()
            for end in (line, their_line):
                if end is not None:
                    undo.callback(end.close)
            pipes = WorkerOutput(session.forwarding, lane, embedded=self._embedded)
            undo.callback(pipes.abandon)
            _flush_output()  # otherwise the child would write it again
            pid = os.fork()
            undo.pop_all()
        if pid == 0:
            try:
                channel.close()
                if line is not None:
                    line.close()
                start = self._become_worker(session, guest, slot, lane, progress, theirs, pipes, supervisor)
                return start._replace(line=their_line)
            except BaseException:  # whatever happens, the child must never go on as a second supervisor
                sys.excepthook(*sys.exc_info())
                os._exit(70)
        theirs.close()
        if line is not None and their_line is not None:
            their_line.close()
            self._selector.register(line, selectors.EVENT_READ, partial(self._on_line, session, line))
        for pipe in pipes.all():
            pipe.begin()
            self._listen_to(pipe)
        worker = Worker(pid, slot, lane, guest.raw, channel, progress, pipes, self._oom_counter.read(), line)
        session.workers[pid] = worker
        self._all[pid] = (session, worker)
        self.counts.workers += 1
        # The worker says nothing before the client has had this answer and sent INIT.
        with contextlib.suppress(OSError):
            guest.reply(WorkerHello(pid))
        logger.info("worker started pid=%d slot=%d client=%s", pid, slot, session.client)
        return None

    def _become_worker(
        self,
        session: Session,
        guest: Guest,
        slot: int,
        lane: int,
        progress: Progress,
        channel: Channel,
        pipes: WorkerOutput,
        supervisor: int,
    ) -> WorkerStart:
        """Let go, in the child, of everything that is not the worker's."""
        die_with(supervisor)  # first, so that no child is left behind if the supervisor dies meanwhile
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # A handler and not SIG_IGN, which the processes that tasks start would inherit.
        signal.signal(signal.SIGTERM, _ignore if self._spared else signal.SIG_DFL)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
        if not self._embedded:
            os.setpgid(0, 0)  # Ctrl-C at the server is the supervisor's alone
            let_leader_set_sid()
        sentinel = os.dup(self._owner)  # before _let_go closes the original
        if self._stdout is not None:
            self._outputs.discard(self._stdout)  # attach() closes it, and _let_go must not do so again
            self._stdout.attach()
        self._let_go(guest.raw)
        marks = pipes.attach()
        null = os.open(os.devnull, os.O_RDONLY)
        if null == 0:  # as happens when 0 was the owner's end, just closed
            os.set_inheritable(0, True)  # for the processes that tasks start
        else:
            os.dup2(null, 0)
            os.close(null)
        self._descriptors.restore()  # only now: the supervisor's are closed, and low numbers are free
        become_child(self._parent, lane, sentinel)
        os.environ.update(for_slot(self._env, slot))  # before anything of the user's is imported
        set_ambient_key(self._keys[0])
        # Where memory is limited, nothing of ours must count that the tasks have let go of.
        kept.keep_at_most(kept.MOST_OF_WORKER if session.max_memory is None else 0)
        guest.raw.setblocking(True)
        return WorkerStart(
            guest.raw,
            self._keys,
            guest.secured_later,
            guest.secret,
            progress,
            channel,
            interruptible=self._interruptible,
            resumable=session.resume_seconds > 0,
            module_path=self._module_path,
            modules=session.modules,
            marks=marks,
            features=session.features,
        )

    def reap(self) -> None:
        """Look which workers have died, stopped or been continued."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid not in self._all:  # such as the process that removes a session's modules
                continue
            session, worker = self._all[pid]
            worker.stopped = os.WIFSTOPPED(status)
            worker.thaw_by = 0.0
            if os.WIFCONTINUED(status):
                worker.frozen = False
            if worker.stopped:
                worker.thaw_by = time.monotonic() + MAX_MISSED * session.heartbeat
                self._judge(session, worker)
            elif not os.WIFCONTINUED(status):
                self._on_death(pid, os.waitstatus_to_exitcode(status), usage)

    def _on_death(self, pid: int, code: int, usage: resource.struct_rusage) -> None:
        session, worker = self._all.pop(pid)
        del session.workers[pid]
        doomed = self._doomed.pop(pid, None)
        for pipe in worker.pipes.all():
            pipe.drain()  # before the report, which quotes the last lines
            if pipe.stuck and pipe not in self._stuck:
                self._set_aside(pipe)
        why: dict[str, Any] = {}
        if worker.killed is not None:
            why = {"killed": worker.killed}
        elif worker.held is not None:
            why = {"held": worker.held, "limit": session.max_memory}
        elif worker.frozen:
            why = {"frozen": MAX_MISSED * session.heartbeat}
        # Only a SIGKILL that we have not sent can be the out-of-memory killer's. That the system has counted one
        # since the worker started does not prove that it was this one, but nothing better can be known.
        elif code == -signal.SIGKILL and doomed is None and worker.oom_kills is not None:
            why = {"oom": (self._oom_counter.read() or 0) > worker.oom_kills}
        report = WorkerDied(
            *(worker.lane, worker.slot, pid, code, worker.progress.begun),
            peak=peak_of(usage),
            stderr=worker.pipes.stderr.evidence,
            **why,
        )
        self.counts.worker_ended(session, worker, report, told=doomed is not None)
        worker.progress.close()
        worker.channel.close()
        if worker.line is not None and session.shelves is not None:
            session.shelves.forget(worker.line)
            with contextlib.suppress(KeyError):
                self._selector.unregister(worker.line)
            worker.line.close()
        logger.info(
            "worker ended pid=%d slot=%d code=%d peak=%d oom=%s client=%s",
            *(pid, worker.slot, code, report.peak, "unknown" if report.oom is None else report.oom, session.client),
        )
        if session.forwarding is not None:  # where it is not, this has been written to our own standard error
            for line in report.stderr.splitlines():
                _, said, reason = line.partition(f"farm_executor: worker {pid} ends: ")
                if said:
                    logger.warning("worker ends pid=%d why=%s", pid, reason)
        session.reports[worker.lane] = report
        self._tell(session, report)
        hang_up(worker.socket)  # after the report, so that the client knows why
        worker.socket.close()
        self._gone(session)

    def _on_line(self, session: Session, line: Line) -> None:
        """Do what a worker says of shared objects."""
        # At its end a line can be read for ever, and its worker may still be there.
        if line.fileno() >= 0 and session.shelves is not None and not session.shelves.heed(line):
            self._selector.unregister(line)

    def _listen_to(self, pipe: OutputPipe) -> None:
        self._outputs.add(pipe)
        self._selector.register(pipe, selectors.EVENT_READ, partial(self._on_output, pipe))

    def _on_output(self, pipe: OutputPipe) -> None:
        """Pass on what a worker, or a process that it has started, has written; or close the pipe at its end."""
        if pipe in self._stuck:
            return  # set aside by another event of this round
        if pipe.copy():
            self._selector.unregister(pipe)
            self._outputs.discard(pipe)
            pipe.close()
        elif pipe.stuck:
            self._set_aside(pipe)

    def _set_aside(self, pipe: OutputPipe) -> None:
        """Stop watching a pipe whose output takes no more: its writers wait for a moment, our clients do not."""
        self._selector.unregister(pipe)
        self._stuck.add(pipe)
        self._unstick_at = time.monotonic() + UNSTICK_SECONDS

    def go_on(self, forwarding: Forwarding | None) -> None:
        """Read again what has waited until a client has shown more of its workers' output."""
        for pipe in list(self._stuck):
            if isinstance(pipe, ForwardedPipe) and pipe.forwarding is forwarding:
                self._stuck.discard(pipe)
                self._listen_to(pipe)
        self.catch_up(forwarding)

    def catch_up(self, forwarding: Forwarding | None) -> None:
        """Tell a client up to where the output has been dropped that it has not been sent."""
        for pipe in self._outputs:
            if isinstance(pipe, ForwardedPipe) and pipe.forwarding is forwarding:
                pipe.catch_up()

    def _limited(self) -> Iterator[tuple[Session, Worker]]:
        """Yield the workers that have a memory limit."""
        for session, worker in self._all.values():
            if session.max_memory is not None and not session.ended and worker.held is None:
                yield session, worker

    def _look_at_memory(self) -> None:
        """Kill the workers that exceed their limit; those that have run nothing since the last look are skipped."""
        suspects = [(session, worker) for session, worker in self._limited() if worker.has_run()]
        held = held_by(worker.pid for _, worker in suspects) if suspects else {}
        for session, worker in suspects:
            assert session.max_memory is not None
            size = held.get(worker.pid, 0)
            if size > session.max_memory:
                worker.held = size
                logger.info(
                    "worker over its limit pid=%d slot=%d held=%d limit=%d client=%s",
                    *(worker.pid, worker.slot, size, session.max_memory, session.client),
                )
                kill_family(worker.pid)

    # -- by request ------------------------------------------------------------------------------------

    def kill(self, session: Session, kill: KillOrder) -> None:
        """Stop the worker if it runs a task that the order names, and let `_judge` decide once it stands still."""
        worker = next((worker for worker in session.workers.values() if worker.lane == kill.lane), None)
        if worker is None or worker.killed is not None or worker.held is not None:
            return  # the report of its death answers the client
        if worker.runs_one_of(kill) is None:
            self._spare(session, worker, kill)
            return
        # While the worker runs, it may go on to its next task between our look and the kill, which would then hit
        # the wrong task. So it is stopped first; reap() learns when it stands still.
        worker.condemned.append(kill)
        if worker.stopped:  # by someone else: it will not stop again, and so there will be no event
            self._judge(session, worker)
        else:
            os.kill(worker.pid, signal.SIGSTOP)

    def _judge(self, session: Session, worker: Worker) -> None:
        """Kill the worker, which stands still, if it runs a task that an order names; otherwise continue it."""
        kills, worker.condemned = worker.condemned, []
        if not kills:
            return  # someone else has stopped it
        worker.killed = next((seq for kill in kills if (seq := worker.runs_one_of(kill)) is not None), None)
        if worker.killed is not None:
            logger.info("worker killed pid=%d slot=%d client=%s", worker.pid, worker.slot, session.client)
            kill_family(worker.pid)
        else:
            os.kill(worker.pid, signal.SIGCONT)
            for kill in kills:
                self._spare(session, worker, kill)

    def _spare(self, session: Session, worker: Worker, kill: KillOrder) -> None:
        self._tell(session, Spared(kill.order, worker.lane, worker.progress.recalls))

    def _end_frozen(self, worker: Worker, now: float) -> None:
        """Kill a worker that has stood still for too long, after a last chance to go on.

        If we stood still as well, as after Ctrl-Z in a terminal, it goes on in a moment.
        """
        self.reap()  # it may have been continued by now
        if worker.stopped and not worker.frozen:
            worker.frozen, worker.thaw_by = True, now + THAW_SECONDS
        elif worker.stopped:
            worker.thaw_by = 0.0
            logger.warning("worker frozen pid=%d slot=%d", worker.pid, worker.slot)
            kill_family(worker.pid)


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
