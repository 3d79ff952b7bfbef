"""The client's modules, put where the worker's imports find them.

This module owns a folder that the workers of one session share, and the finder that fills it. It must not know
lanes and frames.

The folder is the first on ``sys.path``. The client says beforehand which top-level modules it could send. When one
of those is imported, its files are asked for, once for the whole session. From then on everything is as if they had
always been there: packages, relative imports, data files, ``inspect``, processes that a task spawns.

While a finder is asked, Python holds a lock that every import in every thread needs. So the finder answers from
what it knows already, and the loader asks the client, under the module's own lock. Names that the client has not
mentioned cost nothing, and never leave the worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from farm_executor.core.frames import Payload
from farm_executor.core.shipment import MODULE, NO_DIGEST, Contents, Package, decode_contents
from farm_executor.data.modules import Place, digest_of
from farm_executor.errors import RemoteProtocolError
from farm_executor.server.depot import Room
from farm_executor.server.packages import PackageCheck

__all__ = ["ModuleFinder"]


class ModuleFinder:
    """A finder for ``sys.meta_path``; see the module.

    Args:
        room: The folder for the modules.
        ask: Asks the client; see `WorkerLane.ask`.
        packages: Told which other modules are imported.
    """

    def __init__(self, room: Room, ask: Callable[[str, str], Payload | None], packages: PackageCheck) -> None:
        self._room = room
        self._folder = room.folder
        self._ask = ask
        self._packages = packages
        self._names: dict[str, str] = {}
        self._notes: dict[str, dict[str, Any]] = {}  # about modules that have been asked for

    def install(self) -> None:
        """Enter the folder and this finder into Python's search."""
        if not self._room.problem:
            sys.path.insert(0, self._folder)
        # Before the finder of the path, but behind those of built-in and frozen modules, which are never sent.
        place = next((at for at, finder in enumerate(sys.meta_path) if finder is PathFinder), len(sys.meta_path))
        sys.meta_path.insert(place, self)

    def set_offer(self, modules: dict[str, str], packages: dict[str, Package]) -> None:
        """Note the modules that the client could send, with the kind of each, and the packages that they import."""
        self._names = modules
        self._packages.expect(packages)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a top-level module that the client could send, without waiting for anyone."""
        kind = self._names.get(name)
        if kind is None:
            self._packages.on_import(name)
            return None
        if self._note_on(name) is not None:
            return self.there(name)
        spec = ModuleSpec(name, _Loader(self), is_package=kind != MODULE)  # type: ignore[arg-type]
        if kind != MODULE:
            spec.submodule_search_locations = [os.path.join(self._folder, name)]
        return spec

    def there(self, name: str) -> ModuleSpec | None:
        """Return the spec of a module for which the client need not be asked any more."""
        note = self._note_on(name)
        if note is not None and note["own"]:
            return PathFinder.find_spec(name, self._elsewhere())
        # The path's cache goes by the folder's modification time, and so may miss files that were added at the very
        # moment in which it read the folder.
        sys.path_importer_cache.pop(self._folder, None)
        return PathFinder.find_spec(name, [self._folder, *self._elsewhere()])

    def fetch(self, name: str) -> None:
        """Get a module's files into the folder, or learn that the worker's own are to be used.

        Raises:
            ModuleNotFoundError: The files cannot be had.
        """
        if self._room.problem:
            raise _not_found(name, f"the server has no place for it: {self._room.problem}")
        try:
            self._room.make()
            with self._locked(name):
                if self._note_on(name) is None:  # else another worker has fetched it while we waited for the lock
                    answer = self._ask(name, self._digest_of_own(name))
                    if answer is None:
                        self._write_note(name, {"own": True})
                    else:
                        self._unpack(name, answer)
        except OSError as error:
            raise _not_found(name, f"it cannot be put into {self._folder}: {error}") from None
        except RemoteProtocolError as error:
            raise _not_found(name, f"the client has sent it in a form that cannot be used: {error}") from None

    def named_by_client(self, path: str) -> str:
        """Return the path at the client of a file that has this path here."""
        start = self._folder + os.sep
        if not path.startswith(start):
            return path
        relative = path[len(start) :]
        note = self._note_on(relative.partition(os.sep)[0].partition(".")[0])
        return path if note is None or note["own"] else os.path.join(note["where"], relative)

    # -- the worker's own --------------------------------------------------------------------------------

    def _elsewhere(self) -> list[str]:
        return [entry for entry in sys.path if entry != self._folder]

    def _digest_of_own(self, name: str) -> str:
        """Return the digest of the worker's own module of that name; see `shipment.encode_question`."""
        spec = PathFinder.find_spec(name, self._elsewhere())
        if spec is None or not spec.has_location or spec.origin is None:
            return ""  # a folder that happens to be there is not a module to be preferred
        return digest_of(name, Place.of(spec.origin, spec.submodule_search_locations)) or NO_DIGEST

    # -- the folder --------------------------------------------------------------------------------------

    def _note_on(self, name: str) -> dict[str, Any] | None:
        """Return what is known of a module that any worker of the session has asked for; None if none has."""
        if name not in self._notes:
            try:
                with open(os.path.join(self._folder, f".{name}.json"), encoding="utf-8") as file:
                    self._notes[name] = json.load(file)
            except (OSError, ValueError):
                return None
        return self._notes[name]

    def _write_note(self, name: str, note: dict[str, Any]) -> None:
        # Others read notes without the lock: a rename shows them the whole note or none.
        draft = os.path.join(self._folder, f".{name}.{os.getpid()}.draft")
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(note, file)
        os.rename(draft, os.path.join(self._folder, f".{name}.json"))

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Let only one of the session's workers ask for a module; the lock of a worker that dies becomes free."""
        import fcntl

        with open(os.path.join(self._folder, f".{name}.lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                # Closing the file is not enough: a process that a task has forked meanwhile holds it, too.
                fcntl.flock(file, fcntl.LOCK_UN)

    def _unpack(self, asked: str, answer: Payload) -> None:
        modules = decode_contents(answer[0])
        if len(answer) != 1 + len(modules) or asked not in [module.name for module in modules]:
            raise RemoteProtocolError("the files are not those of the modules that are listed")
        draft = os.path.join(self._folder, f".{asked}.{os.getpid()}.files")
        for module, data in zip(modules, answer[1:], strict=True):
            if self._note_on(module.name) is None:
                self._put(module, data, draft)
        with contextlib.suppress(OSError):
            os.rmdir(draft)

    def _put(self, module: Contents, data: Any, draft: str) -> None:
        """Write a module's files, and make them visible only when all of them are there."""
        size = sum(size for _, size in module.files)  # the decoder has limited it
        try:
            content = memoryview(zlib.decompressobj().decompress(data, size + 1))
        except zlib.error as error:
            raise RemoteProtocolError(f"module {module.name} cannot be unpacked: {error}") from None
        if len(content) != size:
            raise RemoteProtocolError(f"module {module.name} does not have the {size} bytes that were announced")
        made = set()
        start = 0
        for path, size in module.files:
            target = os.path.join(draft, *path.split("/"))
            folder = os.path.dirname(target)
            if folder not in made:
                os.makedirs(folder, exist_ok=True)
                made.add(folder)
            with open(target, "wb") as file:
                file.write(content[start : start + size])
            start += size
        for top in dict.fromkeys(path.partition("/")[0] for path, _ in module.files):
            target = os.path.join(self._folder, top)
            if not os.path.isdir(target):  # another worker may have got it along with another module
                with contextlib.suppress(FileExistsError):
                    os.rename(os.path.join(draft, top), target)
        # Last: the note tells every worker that the files are there.
        self._write_note(module.name, {"own": False, "where": module.where, "left_out": module.left_out})


class _Loader:
    """Fetches a module, and leaves the rest to the loader of the files that are there then."""

    def __init__(self, finder: ModuleFinder) -> None:
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> Any:
        self._finder.fetch(spec.name)
        real = self._finder.there(spec.name)
        if real is None:
            raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)
        spec.loader = real.loader
        spec.origin = real.origin
        spec.submodule_search_locations = real.submodule_search_locations
        spec.cached = real.cached
        spec.has_location = real.has_location
        return None if real.loader is None else real.loader.create_module(real)

    def exec_module(self, module: Any) -> None:
        """Do nothing, for a namespace package, which has no loader of its own."""


def _not_found(name: str, why: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}: {why}", name=name)
