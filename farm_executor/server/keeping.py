"""What a worker keeps of an outcome that it has sent, in case it is to be sent once more.

This module owns the judgement whether a later task might write to the memory of an outcome's buffers, and copies
those. It must not know when that matters.

A copy costs as much as the sending. Most results are made for the purpose, such as arrays that a task returns and
forgets: then the outcome alone holds them, and nobody can write there.
"""

from __future__ import annotations

import array
import sys
import weakref
from typing import Any

from farm_executor.core.frames import Payload

__all__ = ["kept"]


def kept(data: Payload) -> Payload:
    """The same payload, in memory that nobody else can write to."""
    return [bytes(part) if _is_shared(memoryview(part)) else part for part in data]


def _is_shared(view: memoryview) -> bool:
    """Whether others may write there."""
    if view.readonly:
        return False
    if _references(view) > _OF_THE_VIEW_ALONE or not _owns_its_memory(view.obj):
        return True
    return weakref.getweakrefcount(view.obj) > 0


def _owns_its_memory(owner: Any) -> bool:
    numpy = sys.modules.get("numpy")
    if numpy is not None and type(owner) is numpy.ndarray:
        return bool(owner.flags.owndata)
    return type(owner) in (bytearray, array.array)


def _references(view: memoryview) -> int:
    return sys.getrefcount(view.obj)


_OF_THE_VIEW_ALONE = _references(memoryview(bytearray(1)))  # which is not the same on every Python
