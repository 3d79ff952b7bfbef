"""Packages that only some features need, imported when such a feature is used."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["MissingExtraError", "needed"]


class MissingExtraError(ModuleNotFoundError):
    """A package is not installed that only some features need; the message names the extra that brings it."""


def needed(module: str, extra: str, purpose: str) -> Any:
    """Import a module of an optional dependency.

    Args:
        module: Its name.
        extra: The extra of this package that brings it.
        purpose: What it is needed for, as the beginning of a sentence.

    Raises:
        MissingExtraError: It is not installed.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # it is there, and lacks something itself
    install = f"which is not installed: python -m pip install 'farm_executor[{extra}]'"
    raise MissingExtraError(f"{purpose} needs the package {package}, {install}", name=package)
