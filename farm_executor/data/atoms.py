"""The types of values that cannot change and that refer to nothing else: numbers, texts, bytes and None.

This module owns the list. It must not know what follows: such values may share a pickle, need no copy, hide no
function, and keep nothing alive.
"""

from __future__ import annotations

__all__ = ["ATOMS"]

ATOMS: frozenset[type] = frozenset({type(None), bool, int, float, complex, str, bytes})
