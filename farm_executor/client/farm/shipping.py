"""Offers the program's own modules to workers, and answers their questions.

This module owns what each worker has been offered, that it gets nothing else, and what servers have said of their
packages. It must not know what the modules hold (`parcels`), nor how a task travels.

A worker is told the names of all modules on offer before it is sent anything that may import one, and again when
there are more. It asks for those that it lacks, once for each server and session. Importing a name that is not on
offer costs nothing.

Folders are looked at in the parcels' thread: a file system that does not answer, such as that of a server that is
down, must keep nobody from submitting.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from farm_executor.client.farm.dispatch import Way
from farm_executor.client.farm.lane import Lane
from farm_executor.client.farm.reactor import Reactor
from farm_executor.core.frames import Frame, Payload
from farm_executor.core.shipment import Difference, Package, decode_differences, decode_question, encode_offer
from farm_executor.errors import RemoteProtocolError

if TYPE_CHECKING:
    from farm_executor.client.farm.chosen_modules import ChosenModules
    from farm_executor.client.farm.parcels import Parcels

__all__ = ["Shipping"]

logger = logging.getLogger(__name__)

SendModule = Callable[[Lane, int, int, Payload | None, str], None]

LOOK_SECONDS = 1.0  # between checks for new or changed files
FIRST_LOOK_SECONDS = 5.0  # to wait for the first of these, before any worker is there
PATIENCE = 0.05  # seconds to wait for a later one, which takes a millisecond, while tasks are being sent
MAX_REMARKS = 10  # on the packages of one server: one that goes on and on must not fill the log
MAX_QUESTIONS = 1000  # unanswered ones of one worker, which has one per thread at most


class Shipping:
    """The modules that one farm offers; see the module.

    Args:
        ship: Which modules may be sent; see `FarmExecutor`.
        reactor: The farm's.
        send_module: Sends the answer to a worker's question, over the connection by which the question came. Its
            arguments are the lane, how often that had been cut, the question's number, and the files or the reason
            why there are none.

    Thread safety: `prepare` may be called from any thread. `offer` is called with the engine's lock held, the
    others in the reactor's handlers.
    """

    def __init__(self, ship: Sequence[str], reactor: Reactor, send_module: SendModule) -> None:
        self._ship = ship
        self._reactor = reactor
        self._send_module = send_module
        self._modules: ChosenModules | None = None
        self._parcels: Parcels | None = None
        # The lock to change the next three, as the parcels' thread does and, if that does not answer, others. It is
        # never held while a folder is listed. It is reentrant because a destructor may submit in the middle.
        self._lock = threading.RLock()
        self._version = 0
        self._offer = b""
        self._packages: dict[str, Package] = {}
        self._looked = threading.Event()  # the present look has ended
        self._looked.set()
        self._count = -1  # how many modules were loaded at the last look
        self._look_at = 0.0
        self._questions: dict[int, int] = {}  # by lane, how many are unanswered
        self._differences: dict[str, list[Difference]] = {}  # by server
        self._told: dict[str, int] = {}  # how often that has been logged

    def prepare(self) -> None:
        """Find the modules, before there is a worker to offer them to."""
        with self._lock:
            if self._modules is None:  # late: a farm without servers never comes here
                from farm_executor.client.farm.chosen_modules import ChosenModules
                from farm_executor.client.farm.parcels import Parcels

                self._modules = ChosenModules(self._ship)
                self._parcels = Parcels(self._modules.whole)
                self._begin_look(len(sys.modules))
        if not self._looked.wait(FIRST_LOOK_SECONDS):
            logger.warning(
                "folders of modules do not answer seconds=%g: servers are offered the modules in them once they do",
                FIRST_LOOK_SECONDS,
            )

    def offer(self, lane: Way) -> None:
        """Send a worker the current offer, unless it has it."""
        # This runs for every send. A module that the program has just imported shows in the count, which is cheap
        # to compare; files are looked at by the clock alone.
        count = len(sys.modules)
        if count != self._count or time.monotonic() >= self._look_at:
            self._look_again(count)
        version = self._version
        if lane.offered != version:
            lane.offered = version
            lane.send_offer(self._offer)

    def _look_again(self, count: int) -> None:
        if self._looked.is_set() and self._begin_look(count).wait(PATIENCE):
            return
        # The thread is busy, or its look hangs. What has just been loaded is known without looking at folders, and
        # must be on offer before a task that uses it is sent.
        if count != self._count:
            self._count = count
            self._renew(self._packages)

    def _begin_look(self, count: int) -> threading.Event:
        assert self._parcels is not None
        self._look_at = time.monotonic() + LOOK_SECONDS
        self._looked.clear()
        self._parcels.do(partial(self._look, count))
        return self._looked

    def _look(self, count: int) -> None:
        """Look at everything; in the parcels' thread."""
        from farm_executor.client.farm.packages import imported_by

        assert self._modules is not None
        assert self._parcels is not None
        # The result is published by `_renew`, and only then is the look over: a thread that has waited for it must
        # find what it asked for. And it must not wait for nothing when something fails here.
        try:
            self._modules.list_folders()
            # To look through the namespaces of a large program takes milliseconds, so not each second.
            changed = count != self._count
            self._renew(imported_by(self._modules.look()) if changed else self._packages)
            self._count = count
            self._parcels.look()
        finally:
            self._looked.set()

    def _renew(self, packages: dict[str, Package]) -> None:
        """Make another offer if there is anything else to offer."""
        assert self._modules is not None
        with self._lock:
            places = self._modules.look()
            offer = encode_offer({name: place.kind for name, place in places.items()}, packages)
            if offer != self._offer:
                self._packages = packages
                # In this order: a thread that sees the version finds that offer, or a later one.
                self._offer = offer
                self._version += 1

    def answer(self, lane: Lane, frame: Frame) -> None:
        """Answer a worker's question for a module.

        Raises:
            RemoteProtocolError: It is not such a question, or there are more than a worker can have.
        """
        name, own = decode_question(frame.body)
        # The number of cuts identifies the connection: after a cut, the answer must not go to the next one.
        reply = partial(self._reply, lane, lane.cuts, frame.seq)
        if self._modules is None or self._parcels is None or name not in self._modules.places:
            reply(None, "the program does not offer it")
            return
        self._questions[lane.id] = self._questions.get(lane.id, 0) + 1
        if self._questions[lane.id] > MAX_QUESTIONS:
            raise RemoteProtocolError(f"more than {MAX_QUESTIONS} questions for modules at a time")
        self._parcels.ask(name, own, self._modules.places, reply)

    def _reply(self, lane: Lane, cuts: int, number: int, files: Payload | None, reason: str) -> None:
        """Pass an answer on to the reactor. May be called from any thread."""
        self._reactor.post(lambda: self._send(lane, cuts, number, files, reason))

    def _send(self, lane: Lane, cuts: int, number: int, files: Payload | None, reason: str) -> None:
        if lane.id in self._questions:
            self._questions[lane.id] -= 1
            if self._questions[lane.id] <= 0:
                del self._questions[lane.id]
        self._send_module(lane, cuts, number, files, reason)

    def note_packages(self, lane: Lane, frame: Frame) -> None:
        """Take what a worker says of packages that a task has imported, and warn of it, once for each server.

        Raises:
            RemoteProtocolError: It is not a list of packages.
        """
        # All workers of a server say the same, and so do those that replace them: once is enough. What has changed
        # since, after an installation there, is news.
        differences = decode_differences(frame.body)
        told = self._told.get(lane.server, 0)
        if self._differences.get(lane.server) != differences and told < MAX_REMARKS:
            self._told[lane.server] = told + 1
            from farm_executor.client.farm.missing import described

            self._differences[lane.server] = differences
            logger.warning("packages differ server=%s packages=%s", lane.server, described(differences))

    def explain(self, error: BaseException, server: str) -> BaseException:
        """Return a task's error; if an import has failed, with what is known of modules and packages."""
        from farm_executor.client.farm.missing import explain_missing  # late: few programs need it

        return explain_missing(error, self._differences.get(server, ()), server)

    def close(self) -> None:
        """Stop answering."""
        if self._parcels is not None:
            self._parcels.close()
