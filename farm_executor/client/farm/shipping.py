"""Offers the program's own modules to workers, and answers their questions.

This module owns what each worker has been offered, and that it gets nothing else. It must not know what the
modules hold (`parcels`), nor how a task travels.

A worker is told the names of all modules on offer before it is sent anything that may import one, and again when
there are more. It asks for those that it lacks, once for each server and session. Importing a name that is not on
offer costs nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from farm_executor.client.farm.dispatch import Way
from farm_executor.client.farm.lane import Lane
from farm_executor.client.farm.reactor import Reactor
from farm_executor.core.frames import Frame, Payload
from farm_executor.core.shipment import decode_question, encode_offer
from farm_executor.errors import RemoteProtocolError

if TYPE_CHECKING:
    from farm_executor.client.farm.chosen_modules import ChosenModules
    from farm_executor.client.farm.parcels import Parcels

__all__ = ["Shipping"]

SendModule = Callable[[Lane, int, int, Payload | None, str], None]

LOOK_SECONDS = 1.0  # between checks for new or changed files
MAX_QUESTIONS = 1000  # unanswered ones of one worker, which has one per thread at most


class Shipping:
    """The modules that one farm offers; see the module.

    Args:
        ship: Which modules may be sent; see `FarmExecutor`.
        reactor: The farm's.
        send_module: Sends the answer to a worker's question, over the connection by which the question came. Its
            arguments are the lane, how often that had been cut, the question's number, and the files or the reason
            why there are none.

    Thread safety: `offer` is called with the engine's lock held, the others in the reactor's handlers.
    """

    def __init__(self, ship: Sequence[str], reactor: Reactor, send_module: SendModule) -> None:
        self._ship = ship
        self._reactor = reactor
        self._send_module = send_module
        self._modules: ChosenModules | None = None
        self._parcels: Parcels | None = None
        self._version = 0
        self._offer = b""
        self._count = -1  # how many modules were loaded at the last look
        self._look_at = 0.0
        self._questions: dict[int, int] = {}  # by lane, how many are unanswered

    def offer(self, lane: Way) -> None:
        """Send a worker the current offer, unless it has it."""
        # This runs for every send. A module that the program has just imported shows in the count, which is cheap
        # to compare; files are looked at by the clock alone.
        if len(sys.modules) != self._count or time.monotonic() >= self._look_at:
            self._look()
        if lane.offered != self._version:
            lane.offered = self._version
            lane.send_offer(self._offer)

    def _look(self) -> None:
        if self._modules is None:  # late: a farm without servers never comes here
            from farm_executor.client.farm.chosen_modules import ChosenModules
            from farm_executor.client.farm.parcels import Parcels

            self._modules = ChosenModules(self._ship)
            self._parcels = Parcels(self._modules.whole)
        assert self._parcels is not None
        now = time.monotonic()
        count = len(sys.modules)
        changed = count != self._count
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            changed = changed or self._modules.have_folders_changed()
            self._parcels.look()
        self._count = count
        if changed and self._modules.look():
            self._version += 1
            self._offer = encode_offer({name: place.kind for name, place in self._modules.places.items()})

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

    def close(self) -> None:
        """Stop answering."""
        if self._parcels is not None:
            self._parcels.close()
