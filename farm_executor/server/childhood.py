"""A worker as a process such as multiprocessing's own children, from its first step to its last.

Programs choose seeds and devices by `multiprocessing.current_process()`, ask `parent_process()` whether they run in
a worker, start children of their own, share memory, and leave to `atexit` what is to be done in the end. This
module owns that a worker answers and ends as they expect. It must not know lanes, tasks or sessions.

Importing multiprocessing for this would make every worker wait. Its modules are completed when a task imports them.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import sys
import threading
import types
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

__all__ = ["Parent", "WorkerMain", "become_child", "end_process", "let_leader_set_sid", "serve_tracker"]

NAME = "FarmWorker"


class Parent(NamedTuple):
    """The process that a worker is a child of, in the eyes of multiprocessing: the program, or else the supervisor.

    Attributes:
        name: Its name there.
        pid: Its process; 0 for the supervisor.
        identity: Its own number, and its parents'.
        authkey: The secret for managers, in hexadecimal digits; None if it has none yet.
        start_method: The start method that it has chosen, or None.
        tracker: The descriptor that its resource tracker is written to; None for a tracker of each worker's own.
    """

    name: str = "MainProcess"
    pid: int = 0
    identity: Sequence[int] = ()
    authkey: str | None = None
    start_method: str | None = None
    tracker: int | None = None


# -- the first step ----------------------------------------------------------------------------------


def become_child(parent: Parent, number: int, sentinel: int) -> None:
    """Be a child of that process from now on, wherever multiprocessing is asked.

    Args:
        parent: The process.
        number: Which of its children.
        sentinel: A descriptor that can be read when the parent has ended.
    """
    completions: dict[str, Callable[[Any], None]] = {
        "multiprocessing.process": partial(_complete_process, parent, number, sentinel)
    }
    if parent.start_method is not None:
        completions["multiprocessing.context"] = partial(_complete_context, parent.start_method)
    if parent.tracker is not None:
        completions["multiprocessing.resource_tracker"] = partial(_complete_tracker, parent.tracker)
    for name in [name for name in completions if name in sys.modules]:
        completions.pop(name)(sys.modules[name])
    sys.meta_path.insert(0, _Completer(completions))
    with contextlib.suppress(AttributeError):  # a system whose threads have none
        threading.main_thread()._set_native_id()  # type: ignore[attr-defined]  # else still the supervisor's


def let_leader_set_sid() -> None:
    """Have `os.setsid` work in this process as in one of multiprocessing's, though it leads a process group."""
    set_sid, leader, group = os.setsid, os.getpid(), os.getpgid(os.getppid())

    def setsid() -> None:
        if os.getpid() == leader:
            with contextlib.suppress(OSError):  # it may lead a session by now, which the next line complains of
                os.setpgid(0, group)
        set_sid()

    os.setsid = setsid


def _complete_process(parent: Parent, number: int, sentinel: int, module: Any) -> None:
    """Do what a child of multiprocessing does before it runs its target, see `BaseProcess._bootstrap`."""
    if parent.authkey is not None:
        module.current_process().authkey = bytes.fromhex(parent.authkey)
    identity = (*parent.identity, number)
    process = type(NAME, (module.BaseProcess,), {})(name=f"{NAME}-{':'.join(map(str, identity))}")
    process._identity = identity
    process._parent_name, process._parent_pid = parent.name, parent.pid or os.getppid()
    module._current_process = process
    module._parent_process = module._ParentProcess(process._parent_name, process._parent_pid, sentinel)
    module._process_counter = itertools.count(1)
    module._children = set()


def _complete_context(start_method: str, module: Any) -> None:
    module._default_context.set_start_method(start_method, force=True)


def _complete_tracker(descriptor: int, module: Any) -> None:
    module._resource_tracker._fd = descriptor  # and its _pid stays None, as in multiprocessing's children


class _Completer:
    """A finder that finds nothing by itself: modules that the others find are completed once they are loaded."""

    def __init__(self, completions: dict[str, Callable[[Any], None]]) -> None:
        self._completions = completions

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self._completions:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec: Any = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None:
            spec.loader = _Loader(spec.loader, self._completions)
        return spec


class _Loader:
    """Loads a module as its own loader does, and completes it."""

    def __init__(self, loader: Any, completions: dict[str, Callable[[Any], None]]) -> None:
        self._loader = loader
        self._completions = completions

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._completions.pop(module.__name__)(module)


class WorkerMain(types.ModuleType):
    """The worker's ``__main__``, with which multiprocessing can start children on this machine.

    It holds what the functions that came from the program's own name: its file, which need not be here. Where
    `spawn` and `forkserver` look for what to run in a child, the attributes of this module, a file is named only
    if it is here; for a module that was run with ``-m``, by the module's name.
    """

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "__file__" and isinstance(value, str) and not os.path.exists(value):
            raise AttributeError(f"the program's file is not on this machine: {value}")
        if name == "__spec__" and value is None:
            return _spec_of(super().__getattribute__("__dict__"))
        return value


def _spec_of(main: dict[str, Any]) -> Any:
    """The spec of a program that was run with ``-m``, if its module can be found here."""
    package, file = main.get("__package__"), main.get("__file__")
    if not package or not isinstance(file, str):
        return None
    from importlib.util import find_spec

    name = f"{package}.{os.path.splitext(os.path.basename(file))[0]}"
    spec = None
    with contextlib.suppress(Exception):  # its packages' own code may raise anything
        spec = find_spec(name)
    # One of this name without a loader has children start without it, as they do for a package's __main__.
    return spec if spec is not None else types.SimpleNamespace(name="__main__")


# -- the resource tracker ----------------------------------------------------------------------------


def serve_tracker(requests: int) -> None:
    """Start a resource tracker, multiprocessing's own, that reads there. It ends when nobody can write any more.

    The program may have used a tracker of its own before it had this one, and then tells that one what it does
    with what it has in common with workers: so it warns of nothing that it finds gone.

    Args:
        requests: The descriptor, which is closed.
    """
    # As multiprocessing has it: what packs a program up together with Python knows these words.
    code = f"from multiprocessing.resource_tracker import main;main({requests})"
    flags = [] if getattr(sys, "frozen", False) else ["-I", "-W", "ignore"]
    os.set_inheritable(requests, True)
    with contextlib.suppress(OSError):
        os.posix_spawn(sys.executable, [sys.executable, *flags, "-c", code], os.environ)
    os.close(requests)


# -- the last step -----------------------------------------------------------------------------------


def end_process() -> NoReturn:
    """End as a child of multiprocessing does: wait for threads, run what `atexit` has been given, and exit.

    What multiprocessing itself does in the end, such as ending daemonic children and managers, is among that. It
    takes as long as it takes; the supervisor knows for how long it may.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:  # such as a callback of `threading` that fails
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # closed, or replaced by something else
                stream.flush()
        os._exit(0)
