"""The page of a dashboard as an ASGI application. It only tells: nothing that it has can change or run anything.

This module owns who may ask, and what for. It must not know where the figures come from, nor which port it has.

A browser sends requests for any web page that it shows, also to this machine. So the names under which the page may
be asked are listed, which defeats DNS that is bound to another address; only GET and HEAD are answered; requests
that another site has caused are refused; and a token is needed, as other users of this machine can connect, too.
Whatever a function, a server or an exception is called is put into the page as text, and the content security
policy allows the page's own script alone.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from importlib.resources import files
from typing import Any, Protocol
from urllib.parse import parse_qs

from farm_executor.extras import needed
from farm_executor.observe.series import Cursor

__all__ = ["Guard", "Source", "application"]

INTERVAL = 0.5  # seconds between two messages
PURPOSE = "A dashboard"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
STATIC = {
    "farm.js": "text/javascript; charset=utf-8",
    "farm.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


class Source(Protocol):
    """What a page shows. Any thread may call the methods."""

    def sample(self) -> None:
        """Note a moment, once a second."""

    def document(self, cursor: Cursor) -> tuple[dict[str, Any], Cursor]:
        """Return what is new since a cursor, for JSON, and the cursor that follows."""


def application(source: Source, metrics: Callable[[], bytes] | None, closing: Callable[[], bool]) -> App:
    """Return the page, not guarded by anything.

    Args:
        source: What it shows.
        metrics: Returns what Prometheus scrapes; None for nothing.
        closing: Returns whether streams are to end.

    Raises:
        ModuleNotFoundError: starlette is not installed.
    """
    applications = needed("starlette.applications", "dashboard", PURPOSE)
    responses = needed("starlette.responses", "dashboard", PURPOSE)
    routing = needed("starlette.routing", "dashboard", PURPOSE)
    folder = files("farm_executor.observe") / "static"

    # Read once, by name: no path that a browser sends is ever opened.
    contents = {name: (folder / name).read_bytes() for name in (*STATIC, "index.html")}

    async def index(request: Any) -> Any:
        return responses.HTMLResponse(contents["index.html"])

    async def static(request: Any) -> Any:
        name = request.path_params["name"]
        if name not in STATIC:
            return responses.PlainTextResponse("there is no such file", 404)
        return responses.Response(contents[name], media_type=STATIC[name])

    async def once(request: Any) -> Any:
        document, _ = await asyncio.to_thread(source.document, Cursor())
        return responses.Response(_dumps(document), media_type="application/json")

    async def events(request: Any) -> Any:
        return responses.StreamingResponse(_events(source, closing), media_type="text/event-stream")

    async def scrape(request: Any) -> Any:
        if metrics is None:
            return responses.PlainTextResponse("there are no metrics here", 404)
        try:
            text = await asyncio.to_thread(metrics)
        except ModuleNotFoundError as error:
            return responses.PlainTextResponse(str(error), 501)
        return responses.Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    made: App = applications.Starlette(
        routes=[
            routing.Route("/", index),
            routing.Route("/static/{name}", static),
            routing.Route("/farm.json", once),
            routing.Route("/events", events),
            routing.Route("/metrics", scrape),
        ]
    )
    return made


async def _events(source: Source, closing: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Tell everything, and then what is new, for as long as the browser listens."""
    cursor = Cursor()
    while not closing():
        document, cursor = await asyncio.to_thread(source.document, cursor)
        yield b"data: " + _dumps(document) + b"\n\n"
        await asyncio.sleep(INTERVAL)


def _dumps(document: dict[str, Any]) -> bytes:
    # Surrogates from file names cannot be sent as UTF-8; in ASCII, JSON escapes them.
    return json.dumps(document, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


class Guard:
    """Lets in who may look; see the module.

    Args:
        app: What is guarded.
        token: What a browser or program must show; None if somebody else checks who may look.
        hosts: The names under which it may be asked, without ports.
    """

    def __init__(self, app: App, token: str | None, hosts: Iterable[str]) -> None:
        self._app = app
        self._token = token
        self._hosts = {host.lower() for host in hosts}
        self._responses = needed("starlette.responses", "dashboard", PURPOSE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # websockets: there are none
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        answer = self._answer(scope)
        await (answer or self._app)(scope, receive, guarded)

    def _answer(self, scope: Scope) -> App | None:
        """Return what is said instead of the page; None to let the request in."""
        refuse = self._responses.PlainTextResponse
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            text = value.decode("latin-1")
            key = name.decode("latin-1").lower()
            if key in headers and key in ("host", "authorization"):
                return _app(refuse("said twice: " + key, 400))
            headers[key] = f"{headers[key]}; {text}" if key in headers else text
        if _name(headers.get("host", "")) not in self._hosts:
            return _app(refuse("this dashboard is not asked by that name; see its option for hosts", 421))
        if scope["method"] not in ("GET", "HEAD"):
            return _app(refuse("a dashboard only tells", 405))
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "")
        if site not in ("none", "same-origin") and mode != "navigate":
            return _app(refuse("not for another site's page", 403))
        if self._token is None:
            return None
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        if path in ("", "/") and self._is_token(query.get("token", [""])[0]):
            # Into a cookie, and out of the address, which ends in histories and on screens that are shared.
            response = self._responses.RedirectResponse("./", 303)
            response.set_cookie(self._cookie(scope), self._token, httponly=True, samesite="strict", path="/")
            return _app(response)
        shown = headers.get("authorization", "").removeprefix("Bearer ")
        cookies = dict(part.strip().partition("=")[::2] for part in headers.get("cookie", "").split(";"))
        if not self._is_token(shown) and not self._is_token(cookies.get(self._cookie(scope), "")):
            return _app(refuse("open the address that was printed: it has a token", 401))
        return None

    def _is_token(self, text: str) -> bool:
        assert self._token is not None
        return hmac.compare_digest(text.encode("utf-8", "replace"), self._token.encode())

    def _cookie(self, scope: Scope) -> str:
        # With the port, which cookies do not heed: there may be two dashboards on a host.
        server = scope.get("server") or ("", 0)
        return f"farm-{server[1]}"


def _app(response: Any) -> App:
    made: App = response
    return made


def _name(host: str) -> str:
    """Return a Host header without its port."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isdecimal() else host).lower()
