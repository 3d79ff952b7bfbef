"""Dashboards that are served: a page, its port, and the thread that serves it.

This module owns the port, the token and the thread. It must not know what the page shows.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from farm_executor.client.backing import Backing
from farm_executor.errors import AddressError
from farm_executor.extras import needed
from farm_executor.observe.exposition import BackingCollector, exposition
from farm_executor.observe.page import LOOPBACK, PURPOSE, App, Guard, Source, application
from farm_executor.observe.recorder import Recorder
from farm_executor.wire.address import Address, parse_address
from farm_executor.wire.sockets import bound_address, listen_everywhere

__all__ = ["Served", "mounted", "serve_farm"]

SAMPLE_SECONDS = 1.0
START_SECONDS = 10.0


class Served:
    """A page on a port of its own, in a thread of its own, until `close`.

    Args:
        source: What it shows.
        metrics: See `page.application`.
        listen: HOST:PORT; port 0 means a free one.
        exposed: Whether it may be an address that other machines can reach: nothing is encrypted.
        hosts: Further names under which it may be asked.

    Raises:
        AddressError: It is not such an address, or others can reach it.
        OSError: The port is in use.
        ModuleNotFoundError: starlette or uvicorn is not installed.
    """

    def __init__(
        self,
        source: Source,
        metrics: Callable[[], bytes] | None,
        listen: str,
        *,
        exposed: bool = False,
        hosts: tuple[str, ...] = (),
    ) -> None:
        uvicorn = needed("uvicorn", "dashboard", PURPOSE)
        address = parse_address(listen, any_port=True)
        _check(address, exposed)
        self._closing = False
        self._source = source
        token = secrets.token_urlsafe(24)
        names = {*LOOPBACK, *hosts, *([f"[{address.host}]"] if ":" in address.host else [address.host])}
        app = Guard(application(source, metrics, lambda: self._closing), token, names)
        listeners = listen_everywhere(address)
        self.address = bound_address(listeners[0], address)
        self.url = f"http://{self.address}/?token={token}"
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="critical",
            access_log=False,
            lifespan="off",
            ws="none",
            loop="asyncio",
            http="h11",
            timeout_graceful_shutdown=2,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        self._listeners: list[Any] = listeners
        # Daemons: a program that ends does not wait for browsers.
        self._threads = [
            threading.Thread(target=self._serve, name="farm-dashboard", daemon=True),
            threading.Thread(target=self._sample, name="farm-dashboard-samples", daemon=True),
        ]
        self._stop = threading.Event()
        for thread in self._threads:
            thread.start()
        until = time.monotonic() + START_SECONDS
        while not self._server.started and self._threads[0].is_alive() and time.monotonic() < until:
            time.sleep(0.005)

    def close(self) -> None:
        """Serve it no longer. May be called twice, and from any thread."""
        self._closing = self._server.should_exit = True
        self._stop.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(5.0)

    def wait(self) -> None:
        """Wait until it is closed."""
        self._stop.wait()

    def _serve(self) -> None:
        try:
            self._server.run(sockets=self._listeners)
        finally:
            for listener in self._listeners:
                with contextlib.suppress(OSError):
                    listener.close()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._source.sample()


def _check(address: Address, exposed: bool) -> None:
    if address.path or address.grant is not None:
        raise AddressError(f"{address}: a dashboard is served at HOST:PORT")
    if not address.is_local and not exposed:
        raise AddressError(
            f"refusing to serve a dashboard on {address}: nothing is encrypted, so whoever can see the network can "
            "read it, and the token that lets one in. Listen on 127.0.0.1 and come through an ssh tunnel, mount "
            "the page into an application that speaks TLS, or, in a network that you trust, pass insecure=True "
            "(on the command line --insecure)"
        )


def recorder_of(backing: Backing) -> Recorder:
    """Return what a farm's page shows: the farm has one at most, which goes on as long as the farm is there."""
    known = backing.observer
    if isinstance(known, Recorder):
        return known
    # Weakly: a page that is open does not keep an executor that nobody has any more.
    there = weakref.ref(backing)
    name = backing.settings.name or backing.supply.describe()
    return Recorder(lambda: None if (farm := there()) is None else farm.view(), name)


def serve_farm(backing: Backing, listen: str, *, exposed: bool) -> Served:
    """Serve a farm's page."""
    needed("starlette", "dashboard", PURPOSE)
    recorder = recorder_of(backing)
    served = Served(recorder, _metrics(backing), listen, exposed=exposed)
    backing.observe(recorder)  # only now that somebody can look
    return served


def mounted(backing: Backing, token: str | None, hosts: tuple[str, ...]) -> App:
    """Return a farm's page for another application, which serves it."""
    recorder = recorder_of(backing)
    app = Guard(application(_Sampled(recorder), _metrics(backing), lambda: False), token, hosts or LOOPBACK)
    backing.observe(recorder)
    return app


def _metrics(backing: Backing) -> Callable[[], bytes]:
    collector = BackingCollector([backing])
    return lambda: exposition(collector)


class _Sampled:
    """Samples whenever it is asked, as there is no thread for it."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._at = 0.0

    def sample(self) -> None:
        self._recorder.sample()

    def document(self, cursor: Any) -> Any:
        now = time.monotonic()
        if now - self._at >= SAMPLE_SECONDS:
            self._at = now
            self.sample()
        return self._recorder.document(cursor)
