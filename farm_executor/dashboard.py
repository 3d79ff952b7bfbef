"""A farm's dashboard as a part of another web application: the extra ``dashboard``, which brings starlette.

::

    from fastapi import FastAPI

    from farm_executor import FarmExecutor, dashboard

    farm = FarmExecutor(["hostA:11111", "hostB:11111"])
    app = FastAPI()
    app.mount("/farm", dashboard.application(farm))
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from farm_executor.client.front import Front, backing_of
from farm_executor.observe.serving import mounted

__all__ = ["application"]


def application(
    farm: Front, *, token: str | None = None, hosts: Iterable[str] = ()
) -> Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]:
    """Return a farm's dashboard as an ASGI application, to be mounted into another one.

    From this call on the farm is recorded, though it is not started.

    Args:
        farm: The executor.
        token: What a browser has to show, as ``?token=`` in its first request; None if your application checks by
            itself who may look.
        hosts: The names under which the page may be asked, without ports; those of this machine alone if none is
            given. Requests with another name are refused, as they may come from any web page.

    Raises:
        ModuleNotFoundError: starlette is not installed; the message names the extra that brings it.
        TypeError: An argument is not what it must be.
        ValueError: The token has less than 16 characters.
    """
    if not isinstance(farm, Front):
        raise TypeError(f"farm must be a FarmExecutor, not {farm!r:.100}")
    if token is not None and not isinstance(token, str):
        raise TypeError("token must be a str or None")
    if token is not None and len(token) < 16:
        raise ValueError("token must have at least 16 characters, or it could be guessed")
    names = () if isinstance(hosts, str) else tuple(hosts)
    if isinstance(hosts, str) or not all(isinstance(name, str) for name in names):
        raise TypeError("hosts must be names, as in hosts=['farm.example.org']")
    return mounted(backing_of(farm), token, names)
