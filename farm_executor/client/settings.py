"""The settings of an executor: its constructor's arguments, checked.

This module owns the list of them. What each of them accepts is in `arguments`, and what each means in the docstring
of `FarmExecutor`. It must not know what is done with them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

from farm_executor._record import NamedTuple, TypedDict
from farm_executor.arguments import checked
from farm_executor.wire.address import Address

if TYPE_CHECKING:
    from farm_executor.client.farm.output import OutputLine
    from farm_executor.progress import ProgressLike
    from farm_executor.wire.security import Key

__all__ = ["FarmSettings", "KeywordSettings", "MapKeywords", "SharedSettings"]


class SharedSettings(TypedDict, total=False):
    """The keyword-only settings of the constructor that others pass on."""

    max_workers: int | None
    max_tasks_per_child: int | None
    max_memory_per_worker: int | None
    key: bytes | None
    key_file: str | os.PathLike[str] | None
    ssl_context: Any
    connect_timeout: float | None
    heartbeat: float
    resume_timeout: float
    max_attempts: int
    allow_version_mismatch: bool
    max_pending_bytes: int | None
    when_full: Literal["wait", "raise"]
    caller_leads: bool
    ship: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
    output: Literal["forward", "server"] | Callable[[OutputLine], object] | None
    context: Iterable[ContextVar[Any]]
    logs: Literal["forward", "server"]
    max_shared: int | None


class KeywordSettings(SharedSettings, total=False):
    """All of them, for type checkers."""

    name: str | None


class MapKeywords(TypedDict, total=False):
    """The keyword-only arguments of `map`, for type checkers."""

    timeout: float | None
    chunksize: int
    buffersize: int | None
    progress: ProgressLike


class FarmSettings(NamedTuple):
    """The constructor's arguments, in its order, as plain values. Picklable if ``ssl_context`` is None."""

    addresses: list[Address] | None
    mp_context: Any
    initializer: Callable[..., Any] | None
    initargs: tuple[Any, ...]
    max_workers: int | None
    max_tasks_per_child: int | None
    max_memory_per_worker: int | None
    key: Key | None
    key_file: str | os.PathLike[str] | None
    ssl_context: Any
    connect_timeout: float | None
    heartbeat: float
    resume_timeout: float
    max_attempts: int
    allow_version_mismatch: bool
    max_pending_bytes: int | None
    when_full: Literal["wait", "raise"]
    caller_leads: bool
    ship: tuple[str, ...]
    name: str | None = None
    output: Any = None
    context: tuple[str, ...] = ()
    logs: Literal["forward", "server"] = "forward"
    max_shared: int | None = None

    @classmethod
    def checked(cls, **given: Any) -> FarmSettings:
        """Check all arguments of the constructor; return them as settings.

        Raises:
            TypeError, ValueError, AddressError: See `FarmExecutor`.
        """
        settings = cls(*checked("FarmExecutor", **given))
        if any(each != "auto" for each in settings.ship):
            from farm_executor.client.farm.chosen_modules import resolve  # imported here, as few programs name any

            resolve(each for each in settings.ship if each != "auto")
        secret: Any = settings.key  # still bytes
        if secret is None:
            return settings
        from farm_executor.wire.security import Key  # imported here, as few programs pass one

        return settings._replace(key=Key(secret))  # whose repr does not show it
