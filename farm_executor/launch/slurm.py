"""Servers on nodes that Slurm grants: one job for each, held by an ``srun`` of ours.

This module owns the near end: srun's command line, what it says, and when a job is asked for again. It must not
know what the job does, which is in `granted`, nor what passes between us and its server, see `cluster`.

srun stands where ssh does for `ssh`. What the server needs, the key included, goes down its standard input, never
on a command line. Standard input stays open; its end means that this process is gone, and ends the server, and with
it the job. One job a node: each is used as soon as it is granted, and lost alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import secrets
import shlex
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from farm_executor.client.launching import FindKey
from farm_executor.core.messages import MAX_MESSAGE
from farm_executor.core.text import one_line
from farm_executor.errors import BrokenFarmError, FarmError
from farm_executor.launch import errand
from farm_executor.launch.cluster import ClusterServers, Home
from farm_executor.launch.errand import COMMAND, explained
from farm_executor.launch.forms import Slurm
from farm_executor.launch.probing import probe
from farm_executor.wire.address import Address

__all__ = ["SRUN_VARIABLE", "SlurmJobs", "source_of"]

logger = logging.getLogger(__name__)

SRUN_VARIABLE = "FARM_EXECUTOR_SRUN"
DRAIN_SECONDS = 60  # ahead of the end of a job's time, for the tasks that run to end
REASONS_SECONDS = 30.0  # for which squeue's reasons are not asked for again
LOOK_SECONDS = 5.0  # for squeue to answer
END_SECONDS = 15.0  # more than the supervisor gives its workers
AGAIN_SECONDS = 5.0  # from the end of a job to the next one, so that a node that fails at once does not cost many
REFUSED_SECONDS = 30.0  # the same after one that was refused
LOST_SECONDS = 60.0  # without its server, until a job is given up: longer than networks are usually gone for
SHOWN_LINES = 3  # lines of srun's shown in errors
MAX_LINE = 64 * 1024

_OF_SLURM = re.compile(rb"(srun|slurmstepd[^:\s]*): ")


def source_of(address: Address, find_key: FindKey) -> ClusterServers:
    """Return the servers of an address whose ``grant`` is a `forms.Slurm`."""
    return ClusterServers(address, find_key, SlurmJobs(address.grant))


class SlurmJobs:
    """The jobs of one address; a `cluster.Asker`."""

    told = False

    @property
    def listen(self) -> list[Address]:
        """See `cluster.Asker`."""
        return [Address("127.0.0.1" if self._slurm.via == "direct" else errand.LISTEN, 0)]

    def __init__(self, slurm: Slurm) -> None:
        self._slurm = slurm
        self._lock = threading.Lock()
        self._jobs: list[_Job] = []
        self._home: Home | None = None  # since the jobs were asked for
        self._begun = False  # whether all have been asked for once
        self._wanted = 0
        self._failure: FarmError | None = None
        self._was_up = False  # whether any job's server has served
        self._timers: set[threading.Timer] = set()
        self._reasons: dict[str, str] = {}  # by the numbers of jobs that wait
        self._next_question = 0.0
        self._ended = False

    def ask(self, home: Home, most: int | None) -> None:
        """See `cluster.Asker`."""
        with self._lock:
            self._home = home
            self._wanted = self._slurm.nodes if most is None else most
            # One that has ended is asked for again only after some time, see `_on_end`.
            if not self._begun or most is not None:
                while self._asked() < self._wanted and not self._ended:
                    self._ask()
                self._begun = True
            for job in [job for job in self._jobs if not job.was_up][: max(self._asked() - self._wanted, 0)]:
                job.leaving = True
                job.let_go()

    def _asked(self) -> int:
        """Return how many jobs there are, or are about to be asked for, and are to stay. The lock is held."""
        return sum(not job.leaving for job in self._jobs) + len(self._timers)

    def see(self, names: Collection[str]) -> None:
        """Give up jobs whose servers have been away for long: for what is lost to Slurm, srun waits without end.

        See `cluster.Asker`.
        """
        now = time.monotonic()
        for job in list(self._jobs):
            if not job.was_up or job.leaving or job.draining or job.name in names:
                job.seen = now
            elif now - job.seen > LOST_SECONDS:
                logger.warning("job lost of=%s job=%s", self._slurm, job.number or "unknown")
                job.give_up()
            elif job.at and not job.met:  # its network may have been too busy to answer the first time
                self._dial(job)

    def release(self, name: str) -> None:
        """See `cluster.Asker`."""
        with self._lock:
            for job in self._jobs:
                job.leaving = job.leaving or job.name == name

    @property
    def failure(self) -> FarmError | None:
        """See `cluster.Asker`."""
        alive = any(job.alive for job in list(self._jobs))
        return None if alive else self._failure

    def lacks(self, have: int) -> bool:
        """See `cluster.Asker`."""
        return have < self._wanted

    def let_go(self) -> None:
        """See `cluster.Asker`."""
        self._ended = True
        for timer in list(self._timers):
            timer.cancel()
        for job in list(self._jobs):
            job.let_go()

    def end(self) -> None:
        """See `cluster.Asker`."""
        with self._lock:
            self.let_go()
        for job in list(self._jobs):
            job.end()
        for timer in list(self._timers):
            timer.join()

    def abandon(self) -> None:
        """See `cluster.Asker`."""
        self._ended = True
        for job in self._jobs:
            job.abandon()

    def _ask(self) -> None:
        """Ask for one more job. The lock is held."""
        assert self._home is not None
        process = _run_srun(self._slurm)
        try:
            secret, port = self._home.meeting()  # while Slurm grants the job
        except BaseException:
            with process:
                process.kill()
            raise
        mark = secrets.token_hex(16)
        config = {
            "mark": mark,
            "key": secret,
            "host": os.uname().nodename,
            "port": port,
            "slots": self._slurm.per,
            "name": "",
            "gpus": self._slurm.gpus,
            "env": list(self._slurm.env),
            "via": [self._slurm.via] if self._slurm.via else ["direct", "back"],
            "asks": True,
        }
        self._jobs.append(_Job(process, mark, config, self._on_word, self._on_end))

    def _on_word(self, job: _Job, word: dict[str, Any]) -> None:
        """Hear what a job's server says, in the job's thread."""
        if "tried" in word:
            job.failed[str(word["tried"])] = str(word["error"])
        elif "ready" in word and job.at:
            self._dial(job)
        elif word.get("asks") and errand.is_sent(word) and word["python"] == errand.PYTHON:
            job.send()
        elif "error" in word:
            job.let_go()
            self._failure = explained(str(self._slurm), self._slurm.python or sys.executable, word)
        elif "draining" in word:
            job.draining = True
            logger.info("job about to end of=%s job=%s", self._slurm, job.number or "unknown")

    def _dial(self, job: _Job) -> None:
        """See whether a job's server can be dialled from here; many a cluster lets nobody in to its nodes."""
        host, port = job.at

        def told(why: str) -> None:
            with self._lock:
                if why:
                    job.failed["direct"] = f"{host}:{port}: {why}"
                elif job.alive and self._home is not None:
                    job.met = True
                    self._home.meet(job.server, job.name, (host, port))

        probe(host, port, told)

    def _on_end(self, job: _Job) -> None:
        """Ask for another job in place of one that has ended, in the job's thread."""
        assert self._home is not None
        with self._lock:
            if job.met:
                self._home.part(job.server)
            if self._ended:
                return
            self._was_up = self._was_up or job.was_up
            self._jobs.remove(job)
            if job.leaving:
                logger.info("job let go of=%s job=%s", self._slurm, job.number or "unknown")
            elif not self._was_up:
                self._failure = self._failure or BrokenFarmError(
                    f"cannot start {self._slurm}: srun ended with exit code {job.code}; it said: {job.said}"
                )
            elif self._asked() < self._wanted:
                # Once there has been one, what refuses the next may pass, such as a limit or a node that is down.
                logger.warning("job ended of=%s job=%s", self._slurm, job.number or "unknown")
                self._ask_later(AGAIN_SECONDS if job.was_up else REFUSED_SECONDS)
        assert self._home is not None
        self._home.changed()

    def _ask_again(self) -> None:
        with self._lock:
            self._timers = {timer for timer in self._timers if timer is not threading.current_thread()}
            if self._ended or self._asked() >= self._wanted:
                return
            try:
                self._ask()
            except BrokenFarmError as error:
                # There has been a server, so srun could be run: this may pass, such as a limit on processes.
                logger.warning("job not asked for of=%s error=%s", self._slurm, error)
                self._ask_later(REFUSED_SECONDS)

    def _ask_later(self, seconds: float) -> None:
        """Ask for another job after some time. The lock is held."""
        timer = threading.Timer(seconds, self._ask_again)
        timer.daemon, timer.name = True, "farm-slurm-timer"
        self._timers.add(timer)
        timer.start()

    def why(self) -> str:
        """Return what Slurm says about the jobs that wait."""
        if self._failure:
            return str(self._failure)
        jobs = list(self._jobs)
        waiting = [job for job in jobs if not job.was_up]
        numbers = [job.number for job in waiting if job.number]
        if not waiting:
            failed = next((job.failed for job in jobs if job.failed), {})
            ways = "; ".join(f"{way}: {one_line(why, MAX_MESSAGE)}" for way, why in list(failed.items()))
            return f"its server has been granted, and cannot be reached so far{': ' if ways else ''}{ways}"
        if not numbers:
            return "srun has been asked, and says nothing so far"
        if self._next_question <= time.monotonic():
            self._next_question = time.monotonic() + REASONS_SECONDS
            self._reasons = _ask_squeue(numbers)
        reasons = {number: self._reasons[number] for number in numbers if number in self._reasons}
        told = "; ".join(f"job {number}: {reason}" for number, reason in list(reasons.items())[:SHOWN_LINES])
        return f"{len(numbers)} waiting in Slurm's queue ({told or 'granted, about to start'})"


class _Job:
    """One srun, and the thread that reads what it says.

    Attributes:
        number: Slurm's number of the job; empty until srun has said it.
        name: What its server is called by; empty until it has served.
        server: A word that no other server has.
        at: Where it listens; empty if it only dials.
        met: Whether it has been found that it can be dialled there.
        failed: Why ways to it do not lead there, or did not at first.
        was_up: Whether its server has served.
        draining: Whether that is about to end, and waits for no more than what runs.
        seen: When it was last known to be there, or not to have come yet.
        leaving: Whether it is to end, and no other is wanted in its place.
        code: srun's exit code, once it has ended.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        mark: str,
        config: dict[str, Any],
        on_word: Callable[[_Job, dict[str, Any]], None],
        on_end: Callable[[_Job], None],
    ) -> None:
        self._process = process
        self._mark = mark.encode()
        self._on_word = on_word
        self._on_end = on_end
        self._lines: deque[str] = deque(maxlen=SHOWN_LINES)
        self.number = ""
        self.name = ""
        self.server = ""
        self.at: list[Any] = []
        self.met = False
        self.failed: dict[str, str] = {}
        self.leaving = False
        self.was_up = False
        self.draining = False
        self.seen = time.monotonic()
        self.code: int | None = None
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already, as reading will tell at once
            process.stdin.write(errand.errand(**config))
        self._thread = threading.Thread(target=self._read, name="farm-slurm", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether srun runs, as far as is known."""
        return self.code is None

    @property
    def said(self) -> str:
        """The last of srun's own words."""
        return one_line(" / ".join(self._lines), MAX_MESSAGE) or "nothing"

    def send(self) -> None:
        """Send farm_executor to the job, which waits for it."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it has ended, or is to
            self._process.stdin.write(errand.sent().encode() + b"\n")

    def let_go(self) -> None:
        """Make the server end, or take the job out of the queue, without waiting for it."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if not self.was_up and self._process.poll() is None:
            self._process.terminate()  # srun does not read its input while it waits

    def end(self) -> None:
        """Wait for the end, and kill srun if it does not come."""
        self.let_go()
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            self._process.kill()
            self._thread.join()

    def give_up(self) -> None:
        """Kill srun, by which Slurm takes back what it still knows of the job."""
        self._process.kill()

    def abandon(self) -> None:
        """In a forked child: close our ends of the pipes."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()  # not buffered: no lock of it may be held by a thread that is not in this process
        self._process.returncode = 0  # so that its destructor does not wait for a process that is not our child

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            lines = io.BufferedReader(pipe)  # type: ignore[type-var]
            while line := lines.readline(MAX_LINE):
                self._hear(line)
        code = self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self.code = code
        self._on_end(self)

    def _hear(self, line: bytes) -> None:
        if line.startswith(self._mark):
            word: dict[str, Any] = json.loads(line[len(self._mark) :])
            if "ready" in word:
                self.was_up, self.name = True, str(word.get("name"))
                self.server, self.at = str(word["server"]), word["at"]
            self._on_word(self, word)
        elif _OF_SLURM.match(line):
            text = line.decode(errors="replace").strip()
            self._lines.append(text)
            if found := re.search(r"\bjob (\d+)\b", text):
                self.number = found[1]
        elif sys.__stderr__ is not None:  # what processes on the node say that belongs to no task
            with contextlib.suppress(OSError, ValueError):
                os.write(sys.__stderr__.fileno(), line)


def _run_srun(slurm: Slurm) -> subprocess.Popen[bytes]:
    """Run srun in a session of its own, so that Ctrl-C in the terminal does not reach it."""
    try:
        program = shlex.split(os.environ.get(SRUN_VARIABLE) or "srun")
    except ValueError as error:
        raise BrokenFarmError(f"cannot read the environment variable {SRUN_VARIABLE}: {error}") from None
    command = [*program, *_options(slurm), slurm.python or sys.executable or "python3", "-u", "-c", COMMAND]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        raise BrokenFarmError(
            f"cannot run {program[0]}, which starts {slurm}: {error.strerror}; run this program where Slurm's "
            f"commands are, such as on a login node, or name srun in the environment variable {SRUN_VARIABLE}"
        ) from None


def _options(slurm: Slurm) -> list[str]:
    """Return srun's options for one node with one server."""
    given = {
        "partition": slurm.partition,
        "time": slurm.time,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "mem": f"{-(-slurm.memory * slurm.per // 2**20)}M" if slurm.memory else "",
        "gres": f"gpu:{slurm.gpus * slurm.per}" if slurm.gpus else "",
    }
    return [
        *("--nodes=1", "--ntasks=1", f"--cpus-per-task={slurm.cpus * slurm.per}"),
        *("--job-name=farm_executor", "--unbuffered", f"--signal=TERM@{DRAIN_SECONDS}"),
        *(f"--{name}={value}" for name, value in given.items() if value),
    ]


def _ask_squeue(numbers: list[str]) -> dict[str, str]:
    """Ask squeue why jobs wait; empty if it does not say."""
    command = ["squeue", "--noheader", "--format=%i|%r", f"--jobs={','.join(numbers)}", "--states=PENDING"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LOOK_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = [line.partition("|") for line in done.stdout.splitlines()]
    return {number.strip(): one_line(reason.strip(), MAX_MESSAGE) for number, bar, reason in lines if bar}
