"""Names that a function sent by value may look up at run time, beyond those that its code loads.

`typing.get_type_hints` resolves annotations by name, and ``globals()[name]`` or `pickle.loads` may look up
anything. This module owns the guess which of these names matter. It must not know how they are sent.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Container, Iterator
from typing import Any

__all__ = ["Hints", "annotated_names", "looked_up_names", "names_in", "names_in_annotations"]


class Hints:
    """Collects the functions, classes and types to send along because the receiver may look them up by name.

    This is a guess, and some of the objects found may be impossible to send. So any of them can be left out.

    Attributes:
        enabled: Whether to send anything along.
        added: The objects sent along.
        bounded: Whether their total size must stay small, because a task that looks up names may mean anything.
    """

    __slots__ = ("_left_out", "added", "bounded", "enabled")

    def __init__(self, *, enabled: bool = False, left_out: Container[int] = ()) -> None:
        self.enabled = enabled
        self.added: list[Any] = []
        self.bounded = False
        self._left_out = left_out  # the ids of objects

    def add(self, name: str, namespace: dict[str, Any], sent: dict[str, Any], *, bounded: bool = False) -> None:
        """Send along the object of that name in a namespace, if it is of a kind that may be looked up."""
        value = namespace.get(name)
        if name in sent or value is None or id(value) in self._left_out:
            return
        kind = type(value)
        if issubclass(kind, (type, types.FunctionType, types.ModuleType)) or kind.__module__ in _OF_TYPES:
            sent[name] = value
            self.added.append(value)
            self.bounded = self.bounded or bounded


_OF_TYPES = {"typing", "types", "typing_extensions"}
_LOOKING_UP = {"globals", "eval", "exec", "pickle", "Unpickler", "shelve", "modules"}


def annotated_names(function: types.FunctionType) -> Iterator[str]:
    """Yield the names in the function's annotations, which its code need not mention."""
    try:
        annotations = function.__annotations__
    except (NameError, AttributeError):  # since Python 3.14 they are lazy, and may use undefined names
        return
    if annotations:
        yield from names_in_annotations(annotations)


def looked_up_names(function: types.FunctionType) -> Iterator[str]:
    """Yield the names of what the function's module defines, if the function may look up any of them."""
    if _looks_up(function.__code__):
        name = function.__globals__.get("__name__")
        for key, value in list(function.__globals__.items()):
            if isinstance(value, (type, types.FunctionType)) and value.__module__ == name:
                yield key


def _looks_up(code: types.CodeType) -> bool:
    """Return whether the code may look up names at run time: ``globals()[name]``, `pickle.loads` and the like."""
    if _LOOKING_UP.isdisjoint(names_in(code)):
        return False
    names = {*names_in(code)}
    return names & _LOOKING_UP != {"modules"} or "__name__" in names or _mentions_main(code)


def _mentions_main(code: types.CodeType) -> bool:
    return any(
        _mentions_main(constant) if isinstance(constant, types.CodeType) else constant == "__main__"
        for constant in code.co_consts
    )


def names_in_annotations(annotation: Any) -> Iterator[str]:
    """Yield the names in annotations that are, or contain, text."""
    if isinstance(annotation, str):
        yield from _WORD.findall(annotation)
    elif isinstance(annotation, typing.ForwardRef):
        yield from _WORD.findall(annotation.__forward_arg__)
    elif isinstance(annotation, dict):
        for value in annotation.values():
            if type(value) is not type:
                yield from names_in_annotations(value)
    else:
        for value in getattr(annotation, "__args__", None) or ():
            yield from names_in_annotations(value)


_WORD = re.compile(r"[^\W\d]\w*")


def names_in(code: types.CodeType) -> Iterator[str]:
    """Yield the names that the code, or a function within it, may look up as globals or attributes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)
