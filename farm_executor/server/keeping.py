"""Sent outcomes, kept by a worker in case they have to be sent again.

This module owns the decision whether a later task could write to the memory of an outcome's buffers, and copies
those that it could. It must not know when that matters.

A copy costs as much as sending does. Most results are made to be returned, such as an array that a task computes
and forgets: then only the outcome holds them, and nobody else can write to them.
"""

from __future__ import annotations

import array
import sys
import weakref
from typing import Any

from farm_executor.core.frames import Payload

__all__ = ["kept"]


def kept(data: Payload) -> Payload:
    """Return the same payload, in memory that nobody else can write to."""
    # Not as bytes: those would be received as bytes, in which nobody can write.
    return [memoryview(bytearray(part)) if _is_shared(memoryview(part)) else part for part in data]


def _is_shared(view: memoryview) -> bool:
    """Return whether anyone else could write to that memory."""
    if view.readonly:
        return False
    # Another reference, weak ones included, or memory that belongs to yet another object: each is a way for a later
    # task to get at it.
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


_OF_THE_VIEW_ALONE = _references(memoryview(bytearray(1)))  # measured, as Python versions differ in it
