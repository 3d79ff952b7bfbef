"""The farm behind an executor and all its views: one engine, one list of servers, one end.

This module owns when the engine is started, with which settings, and which thread may replace it. It must not know
the methods that users call: they are `front`'s.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import weakref
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from farm_executor.client import lifetime, observing
from farm_executor.client.farm.interrupt import AllHeldBack
from farm_executor.client.farm.locks import OwnedLock
from farm_executor.client.supply import Supply
from farm_executor.wire.address import Address

if TYPE_CHECKING:
    from types import FrameType

    from farm_executor.client.farm.carrying import Carrier
    from farm_executor.client.farm.observer import Observer, View
    from farm_executor.client.farm.statistics import FarmStatistics
    from farm_executor.client.protocol import Farm
    from farm_executor.client.settings import FarmSettings
    from farm_executor.wire.security import Key, KeyFinder

__all__ = ["Backing"]

logger = logging.getLogger(__name__)


class Backing:
    """The farm behind an executor. It is shut down when its last executor or view is collected.

    It is pickled as a client of the same servers, with workers of its own.

    Args:
        settings: The executor's settings.

    Attributes:
        settings: The executor's settings.
        supply: The servers. Change it only within `alone`.
        engine: The engine; None until it is started.
        shut_down: Whether the farm has been shut down.
        observer: Who looks at it; None for nobody.
        page: Its dashboard, if that is served.

    Thread safety: any thread may call any method.
    """

    def __init__(self, settings: FarmSettings) -> None:
        self.settings: FarmSettings = settings
        self.supply: Supply = Supply(settings)
        self._carriers: list[Carrier] = []
        self._begin()
        lifetime.in_forked_child(self._begin_in_child)

    def _begin(self) -> None:
        self._lock: OwnedLock = OwnedLock()  # see `alone`
        self.engine: Farm | None = None
        self.shut_down: bool = False
        self.observer: Observer | None = None
        self.page: observing.Page | None = None

    def _begin_in_child(self) -> None:
        self.supply.abandon()
        self._begin()

    def observe(self, observer: Observer | None) -> None:
        """Tell somebody what happens in the farm, from now on or once it has been started; None for nobody."""
        self.observer = observer
        engine = self.engine
        if engine is not None:
            engine.sight.observe(observer)

    def view(self) -> View | None:
        """Return what can be seen of the farm now; None before it has been started."""
        engine = self.engine
        return None if engine is None else engine.sight.view()

    def carry(self, carrier: Carrier) -> None:
        """Have calls carry something more; once for the same thing.

        Raises:
            RuntimeError: The farm has been started without it.
        """
        with self.alone():
            if carrier in self._carriers:
                return
            if self.engine is not None:
                raise RuntimeError("the farm has been started: do this before its first task")
            self._carriers.append(carrier)

    def show(self, listen: str, exposed: bool) -> str:
        """Serve a dashboard of the farm, if there is none yet; return its address. See `FarmExecutor.dashboard`."""
        # The page has no reference to this object, which can thus be collected, and takes its page along.
        if self.page is None:
            self.page = observing.open_page(self, listen, exposed)
            weakref.finalize(self, self.page.close)
        return self.page.url

    def hide(self) -> None:
        """End the dashboard, if there is one."""
        page, self.page = self.page, None
        if page is not None:
            page.close()

    def _show_if_wanted(self) -> None:
        listen = observing.wanted()
        if not listen or self.page is not None:
            return
        # Within `alone`: of two threads that start the farm, one opens the page.
        try:
            url = self.show(listen, False)
        except (OSError, ValueError, ImportError) as error:  # a program must not fail because nobody can look
            logger.warning("no dashboard listen=%s error=%s", listen, error)
        else:
            print(f"farm_executor: dashboard at {url}", file=sys.stderr, flush=True)  # noqa: T201 - never in a log

    @property
    def max_workers(self) -> int:
        """The most tasks that run at once."""
        return self.supply.most_workers(self.engine.workers if self.engine else 0)

    def statistics(self) -> FarmStatistics:
        """Return a snapshot of the farm."""
        engine = self.engine
        if engine is None:
            from farm_executor.client.farm.statistics import FarmStatistics

            return FarmStatistics(state="shut down" if self.shut_down else "new")
        return engine.statistics()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Return a context in which no other thread or signal handler changes the engine or the servers.

        Raises:
            RuntimeError: A destructor asks for this context, in a thread that is in it already.
        """
        if self._lock.is_mine():  # a destructor: unlike signal handlers, it cannot be held back
            raise RuntimeError(
                "a destructor must not use an executor that its own thread is about to start or change"
            )
        # Handlers are held back before the lock is taken: a handler that submitted while this thread holds the lock
        # would wait for its own thread.
        with AllHeldBack():
            self._lock.acquire()
            try:
                yield
            finally:
                self._lock.release()

    def start_engine(self) -> Farm:
        """Return the engine; start it if it has not been started yet.

        Raises:
            RuntimeError: The executor or the interpreter has been shut down.
        """
        engine = self.engine
        if engine is not None:
            return engine  # which checks by itself whether it has been shut down
        # Two threads may both have found no engine. The one that comes second to the lock finds the other's, or
        # finds that the executor has been shut down in between.
        with self.alone():
            if self.shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if lifetime.interpreter_ends():
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            if self.engine is None:
                _check_not_importing()
                engine = self.make_engine()
                engine.start()
                self.engine = engine
                self.supply.attend(engine)
                if self.observer is not None:
                    engine.sight.observe(self.observer)
                self._show_if_wanted()
                lifetime.track(engine)
                # The engine has no reference to this object, which can thus be collected while the engine works.
                weakref.finalize(self, engine.shutdown).atexit = False
            return self.engine

    def make_engine(self) -> Farm:
        """Create an engine from the settings. Called within `alone`."""
        settings, supply = self.settings, self.supply
        if supply.given is None:
            # The server starts while this process imports the engine, which takes about as long. An error is raised
            # again when the engine asks for the address.
            with contextlib.suppress(Exception):
                supply.embedded_server().locate()
        # Imported here and not at the top, so that a program which creates an executor but submits nothing, such as
        # one that only imports a module with an executor, does not pay for the engine.
        from farm_executor.client.farm.budget import Budget
        from farm_executor.client.farm.carrying import Variables
        from farm_executor.client.farm.engine import Engine, EngineOptions
        from farm_executor.client.farm.link import Settings
        from farm_executor.core.features import ALWAYS, FUNCTIONS, MODULES, OUTPUT, RECORDS, RINGS
        from farm_executor.data import payload
        from farm_executor.wire import memfd
        from farm_executor.wire.security import KeyFinder

        call = None if settings.initializer is None else (settings.initializer, settings.initargs)
        limit = settings.max_pending_bytes
        logs = (RECORDS,) if settings.logs == "forward" else ()
        rings = (RINGS,) if memfd.AVAILABLE else ()
        always = (*ALWAYS, FUNCTIONS, *logs, *rings, *((MODULES,) if settings.ship else ()))
        carriers: list[Carrier] = [Variables(settings.context)] if settings.context else []
        carriers += self._carriers
        finder = KeyFinder(settings.key, settings.key_file, settings.ssl_context)
        return Engine(
            EngineOptions(
                sources=supply.sources(),
                settings=Settings(
                    partial(_find_key, finder, supply),
                    settings.allow_version_mismatch,
                    settings.heartbeat,
                    settings.resume_timeout,
                    settings.max_memory_per_worker,
                    features=(*always, *((OUTPUT,) if settings.output != "server" else ())),
                    own_features=(*always, *((OUTPUT,) if _forwards_own(settings.output) else ())),
                    label=settings.name or "",
                ),
                end_servers=supply.end,
                initializer=payload.dumps(call, out_of_band=False),
                max_tasks_per_child=settings.max_tasks_per_child,
                connect_timeout=settings.connect_timeout,
                caller_leads=settings.caller_leads,
                budget=None if limit is None else Budget(limit, may_wait=settings.when_full == "wait"),
                ship=settings.ship,
                carriers=carriers,
                take_output=settings.output if callable(settings.output) else None,
            )
        )

    def __reduce__(self) -> tuple[Any, ...]:
        settings = self.settings
        if settings.ssl_context is not None:
            raise TypeError(
                "an executor with an ssl_context cannot be pickled, because a context cannot: "
                "make the executor anew where you need it, with a context made there"
            )
        if self.supply.given is None:
            # Only the creation is guarded. Locating the server waits for it to start, which must not keep other
            # threads from submitting.
            with self.alone():
                self.supply.embedded_server()
        addresses = self.supply.addresses()
        # The key does not travel, as a pickle may be stored anywhere. Modules that ``ship`` names here have arrived
        # where it is unpickled, and paths would mean nothing there.
        ship = settings.ship and ("auto",)
        return (_unpickle, (settings._replace(addresses=addresses, mp_context=None, key=None, ship=ship),))


def _unpickle(settings: FarmSettings) -> Backing:
    from farm_executor.wire.security import is_readable_key, is_worker

    # In a worker, the server's own key serves in place of a key file that does not exist on its machine.
    if settings.key_file and is_worker() and not is_readable_key(settings.key_file):
        settings = settings._replace(key_file=None)
    return Backing(settings)


def _forwards_own(output: Any) -> bool:
    """Return whether what the embedded farm's tasks write comes by way of this process.

    A program's own output is shared with them otherwise, which costs nothing, and leaves a terminal one to them.
    """
    if output is not None:
        return bool(output != "server")
    from farm_executor.client.farm.output import is_own_terminal

    return not is_own_terminal()


def _find_key(finder: KeyFinder, supply: Supply, address: Address) -> Key:
    from farm_executor.wire.security import Key

    embedded = supply.embedded
    if embedded is not None and (own := embedded.key_for(address)) is not None:
        return Key(own)
    # Servers that a cluster grants have a key that was made for them.
    granted: Key | None = getattr(address.grant, "key", None)
    return finder(address) if granted is None else granted


def _check_not_importing() -> None:
    """Refuse to start a farm in a worker that is importing a module: the farm's workers would import it, too.

    Raises:
        RuntimeError: A module is being imported to unpickle a task.
    """
    from farm_executor.wire.security import is_worker

    if not is_worker():
        return
    from farm_executor.data import payload

    # From the inside out: the frame of a module's own code, called from `payload.loads` further out.
    frame: FrameType | None = sys._getframe()
    module = None
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            module = module or frame.f_globals.get("__name__")
        elif module and frame.f_code is payload.loads.__code__:
            raise RuntimeError(
                f"module {module} uses a farm while it is imported. Workers import it, too, to find the functions "
                "that they are sent, and each would start workers of its own, without end. Use the farm in a "
                "function, or under `if __name__ == '__main__':`"
            )
        frame = frame.f_back
