"""The items of batches as tuples with names, for tests that write and compare them."""

from typing import NamedTuple

from farm_executor.core.frames import Payload


class TaskItem(NamedTuple):
    """A task on the wire: the number of its function on this lane, and its arguments."""

    function: int
    payload: Payload


class Result(NamedTuple):
    """An outcome on the wire: a value, or with ``error`` an encoded failure."""

    payload: Payload
    error: bool = False
