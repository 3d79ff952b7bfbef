"""What a worker has received and not run yet.

It must not know how it is received, nor how it is run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from farm_executor.core.frames import Payload

__all__ = ["SentFunction", "SentTask"]


class SentFunction:
    """A function as it was received, with room for the object that the runner loads from it.

    Attributes:
        data: Its pickle; None once that is no longer needed.
        generation: The generation of the namespaces when it was loaded; -1 before that.
    """

    __slots__ = ("data", "generation", "loaded")

    def __init__(self, data: Payload) -> None:
        self.data: Payload | None = data
        self.loaded: Any = None
        self.generation = -1


class SentTask(NamedTuple):
    """A task as it was received.

    Attributes:
        arguments: A payload; for a plain call, the positional arguments themselves.
    """

    seq: int
    function: SentFunction
    arguments: Any
    once: bool
    plain: bool
