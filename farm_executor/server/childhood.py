"""A worker made to look like one of multiprocessing's own children, from its first step to its last.

Programs choose seeds and devices by `multiprocessing.current_process()`, ask `parent_process()` whether they run in
a worker, start children of their own, share memory, and leave cleanup to `atexit`. This module owns what
makes a worker answer and end as they expect. It must not know lanes, tasks or sessions.

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
from typing import Any, NoReturn

from farm_executor._record import NamedTuple

__all__ = ["Parent", "WorkerMain", "become_child", "end_process", "let_leader_set_sid", "serve_tracker"]

NAME = "FarmWorker"


class Parent(NamedTuple):
    """The process that multiprocessing takes for a worker's parent: the program, or else the supervisor.

    Attributes:
        name: Its name in multiprocessing.
        pid: Its pid; 0 for the supervisor.
        identity: Its own number, after those of its parents.
        authkey: The secret for managers, in hexadecimal digits; None if it has none yet.
        start_method: The start method that it has chosen, or None.
        tracker: The descriptor for writing to its resource tracker; None if each worker has a tracker of its own.
    """

    name: str = "MainProcess"
    pid: int = 0
    identity: Sequence[int] = ()
    authkey: str | None = None
    start_method: str | None = None
    tracker: int | None = None


# -- the first step ----------------------------------------------------------------------------------


def become_child(parent: Parent, number: int, sentinel: int) -> None:
    """Make multiprocessing take this process for a child of that parent from now on.

    Args:
        parent: The parent process.
        number: This process's number among its children.
        sentinel: A descriptor that becomes readable when the parent has ended.
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
    with contextlib.suppress(AttributeError):  # on a system whose threads have no native id
        threading.main_thread()._set_native_id()  # type: ignore[attr-defined]  # otherwise still the supervisor's


def let_leader_set_sid() -> None:
    """Make `os.setsid` work as in multiprocessing's children, although this process leads a process group."""
    set_sid, leader, group = os.setsid, os.getpid(), os.getpgid(os.getppid())

    def setsid() -> None:
        if os.getpid() == leader:
            # The system refuses setsid() to the leader of a group, so the process goes back to its parent's first.
            with contextlib.suppress(OSError):  # it may lead a session by now, and then set_sid() raises
                os.setpgid(0, group)
        set_sid()

    os.setsid = setsid


def _complete_process(parent: Parent, number: int, sentinel: int, module: Any) -> None:
    """Do what a child of multiprocessing does before it runs its target; see `BaseProcess._bootstrap`."""
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
    with contextlib.suppress(ValueError):  # one that a library of the parent's has added, as loky does
        module._default_context.set_start_method(start_method, force=True)


def _complete_tracker(descriptor: int, module: Any) -> None:
    module._resource_tracker._fd = descriptor  # and its _pid stays None, as in multiprocessing's children


class _Completer:
    """A finder that finds nothing by itself, but completes modules that others find, once they are loaded."""

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
    """Loads a module through its own loader, and then completes it."""

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
    """The worker's ``__main__``, from which multiprocessing can start children on this machine.

    It has the ``__file__`` that the client's functions name, but that file need not exist on this machine. `spawn`
    and `forkserver` look at the attributes of this module for what to run in a child, so the file is shown only if
    it exists here. A program that was run with ``-m`` is found by its module's name instead.
    """

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "__file__" and isinstance(value, str) and not os.path.exists(value):
            raise AttributeError(f"the program's file is not on this machine: {value}")
        if name == "__spec__" and value is None:
            return _spec_of(super().__getattribute__("__dict__"))
        return value


def _spec_of(main: dict[str, Any]) -> Any:
    """Return the spec of a program that was run with ``-m``, if its module can be found here."""
    package, file = main.get("__package__"), main.get("__file__")
    if not package or not isinstance(file, str):
        return None
    from importlib.util import find_spec

    name = f"{package}.{os.path.splitext(os.path.basename(file))[0]}"
    spec = None
    with contextlib.suppress(Exception):  # finding it imports its packages, whose code may raise anything
        spec = find_spec(name)
    # With a spec of this name, children start without running a main module, as they do for a package's __main__.
    return spec if spec is not None else types.SimpleNamespace(name="__main__")


# -- the resource tracker ----------------------------------------------------------------------------


def serve_tracker(requests: int) -> None:
    """Start multiprocessing's resource tracker on that descriptor; it ends when nothing can write to it any more.

    The program may have started a tracker of its own before it had this one, and then reports to that one what it
    does with resources shared with workers. So this tracker does not warn of resources that are already gone.

    Args:
        requests: The descriptor to read from, which is closed here.
    """
    # Spelled as in multiprocessing: tools that bundle a program with Python recognize these words.
    code = f"from multiprocessing.resource_tracker import main;main({requests})"
    flags = [] if getattr(sys, "frozen", False) else ["-I", "-W", "ignore"]
    os.set_inheritable(requests, True)
    with contextlib.suppress(OSError):
        os.posix_spawn(sys.executable, [sys.executable, *flags, "-c", code], os.environ)
    os.close(requests)


# -- the last step -----------------------------------------------------------------------------------


def end_process() -> NoReturn:
    """End as a child of multiprocessing does: wait for threads, run the `atexit` callbacks, and exit.

    These callbacks include multiprocessing's own, which end daemonic children and managers. There is no time limit
    here; the supervisor kills a worker that takes too long.
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
