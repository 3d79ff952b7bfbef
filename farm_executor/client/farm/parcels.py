"""Reads and packs the files of modules that workers ask for.

This module owns the choice of the files that travel, the bytes that they had when they were first asked for, and
the thread in which they are read. It must not know lanes, nor which modules there are.

A module that has been sent once is sent unchanged to every worker that asks later, even if its files have changed:
the tasks of one executor run one version of the program.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from farm_executor._record import NamedTuple
from farm_executor.client.farm.packages import top_level_names_in
from farm_executor.core import shipment
from farm_executor.core.frames import Payload
from farm_executor.core.shipment import MAX_FILES, MAX_MODULE, MAX_TOGETHER, NAMESPACE, Contents, encode_contents
from farm_executor.data.modules import Place, files_of, is_code, is_extension

__all__ = ["Parcels", "UnsentError"]

logger = logging.getLogger(__name__)

MAX_DATA_FILE = 1024 * 1024  # of a package; code is sent whatever its size
MAX_SIZE = 32 * 1024 * 1024  # of a module that ``ship`` does not name: more than that is a data set, or a mistake
MAX_ALONG = 4 * 1024 * 1024  # of a module that is sent along with another, unasked
MAX_ALL_ALONG = 32 * 1024 * 1024  # of all of these: a worker takes no answer of more than `frames.MAX_MODULES`
MAX_WATCHED = 1000  # files whose changes are warned of
END_SECONDS = 5.0  # to wait for the thread when the farm ends
LEVEL = 3  # of compression: about as fast as a network

Answer = Callable[[Payload | None, str], None]
"""Called with the payload to send; or None and the reason; or neither, if the worker should use its own copy."""


class UnsentError(Exception):
    """One of the program's own modules cannot be sent."""


class _Parcel(NamedTuple):
    contents: Contents
    data: bytes
    has_extensions: bool
    digest: str


class Parcels:
    """The modules that one farm has read; see the module.

    Args:
        whole: The names of modules that are sent complete, with data files of any size.

    Thread safety: `do` may be called from any thread, the others by one at a time.
    """

    def __init__(self, whole: frozenset[str] = frozenset()) -> None:
        self._whole = whole
        self._made: dict[str, _Parcel] = {}
        self._watched: dict[str, tuple[str, int]] = {}  # by path: the module, and the file's modification time
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def ask(self, name: str, own: str, places: Mapping[str, Place], answer: Answer) -> None:
        """Answer a question, in this object's own thread.

        Args:
            name: The name of one of the modules in ``places``.
            own: See `shipment.encode_question`.
            places: Where each module is that may be sent.
            answer: Called with the answer, in that thread.
        """
        self.do(lambda: answer(*self._answer_in_any_case(name, own, places)))

    def do(self, job: Callable[[], None]) -> None:
        """Run a job in this object's own thread, after those before it; or here, if none can be started."""
        self._jobs.put(job)
        # The thread is started late: most farms never have a job. Two dialling threads may come at once.
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="farm-parcels", daemon=True)
                try:
                    thread.start()
                    self._thread = thread
                except RuntimeError:  # the program ends, and starts no threads any more, but its tasks go on
                    self._jobs.put(None)
                    self._work()

    def close(self) -> None:
        """Stop answering, and wait for the thread to end."""
        if self._thread is not None:
            self._jobs.put(None)
            # Not for ever: a file system that does not answer must not keep the program from ending.
            self._thread.join(END_SECONDS)

    def look(self) -> None:
        """Warn of files that have changed since they were sent. To be run by `do`."""
        changed: dict[str, str] = {}
        for path, (name, when) in self._watched.items():
            with contextlib.suppress(OSError):
                if os.stat(path).st_mtime_ns != when:
                    changed.setdefault(name, path)
        for name, path in changed.items():
            logger.warning(
                "module changed since it was sent module=%s file=%s: the workers of this executor keep what they "
                "have; a new executor sends it again",
                *(name, path),
            )
        # Warn of each module once.
        self._watched = {path: seen for path, seen in self._watched.items() if seen[0] not in changed}

    # -- the thread --------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                logger.exception("a module could not be sent")

    def _answer_in_any_case(self, name: str, own: str, places: Mapping[str, Place]) -> tuple[Payload | None, str]:
        # A task waits for this answer, and would wait as long as its worker lives.
        try:
            return self._answer(name, own, places)
        except Exception as error:
            logger.exception("a module could not be sent")
            return None, f"the program failed to send it: {type(error).__name__}: {error}"

    def _answer(self, name: str, own: str, places: Mapping[str, Place]) -> tuple[Payload | None, str]:
        try:
            first = self._parcel(name, places[name])
        except (UnsentError, OSError) as error:
            return None, str(error)
        # The same code, if the worker has it, is better used from there, beside its data files. And extensions that
        # were compiled there fit that machine.
        if own and (own == first.digest or first.has_extensions):
            return None, ""
        parcels = {name: first}
        along = 0
        for other in _referred_to(name, places):
            if len(parcels) == MAX_TOGETHER:
                break
            with contextlib.suppress(UnsentError, OSError):  # reported if it is ever asked for
                parcel = self._parcel(other, places[other])
                size = sum(size for _, size in parcel.contents.files)
                if not parcel.has_extensions and size <= MAX_ALONG and along + size <= MAX_ALL_ALONG:
                    parcels[other] = parcel
                    along += size
        head = encode_contents(parcel.contents for parcel in parcels.values())
        return [head, *(parcel.data for parcel in parcels.values())], ""

    def _parcel(self, name: str, place: Place) -> _Parcel:
        if name not in self._made:
            self._made[name] = self._make(name, place)
        return self._made[name]

    def _make(self, name: str, place: Place) -> _Parcel:
        whole = name in self._whole
        limit = MAX_MODULE if whole else MAX_SIZE
        files: list[tuple[str, int]] = []
        parts: list[bytes] = []
        left_out: list[str] = []
        total = 0
        for relative, path in files_of(name, place):
            size = os.stat(path).st_size
            if size > MAX_DATA_FILE and not whole and not is_code(path):
                left_out.append(f"{relative} ({size >> 20} MiB)")
                continue
            if total + size > limit or len(files) == MAX_FILES:
                advice = "" if whole else f', or send it whatever its size, by ship=["auto", {name!r}]'
                raise UnsentError(
                    f"it is the program's own, from {place.paths[0]}, and more than {limit >> 20} MiB or "
                    f"{MAX_FILES} files are not sent: install it on the server{advice}"
                )
            try:
                with open(path, "rb") as file:
                    # Its time is noted before it is read: a change in between is then warned of, not missed.
                    self._watch(name, path)
                    # No more than has been checked: a file, such as a log in a package, may grow all the time.
                    data = file.read(size)
            except OSError as error:
                if is_code(path):
                    raise UnsentError(f"it is the program's own, and cannot be read: {error}") from None
                left_out.append(f"{relative} ({error.strerror})")
                continue
            total += len(data)
            files.append((relative, len(data)))
            parts.append(data)
        if left_out:
            shown = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
            logger.warning(
                "module sent in part module=%s files=%s: data of more than %d MiB is not sent along, see ship=",
                *(name, shown, MAX_DATA_FILE >> 20),
            )
        if place.kind == NAMESPACE and not files:
            raise UnsentError(f"there is no code in {', '.join(place.paths)}")
        contents = Contents(name, place.kind, os.path.dirname(place.paths[0]), files, left_out)
        code = [(relative, data) for (relative, _), data in zip(files, parts, strict=True) if is_code(relative)]
        has_extensions = any(is_extension(relative) for relative, _ in files)
        return _Parcel(contents, zlib.compress(b"".join(parts), LEVEL), has_extensions, shipment.digest(code))

    def _watch(self, name: str, path: str) -> None:
        if len(self._watched) < MAX_WATCHED and is_code(path):
            self._watched[path] = name, os.stat(path).st_mtime_ns


def _referred_to(name: str, places: Mapping[str, Place]) -> list[str]:
    """Return the others of these modules that the module refers to, directly or through others.

    Only loaded modules can be asked: what they refer to is what they have imported, and a worker that imports them
    will ask for it next. To send it along saves a round trip for each.
    """
    by_top: dict[str, list[Any]] = {}
    for loaded, module in list(sys.modules.items()):
        top = loaded.partition(".")[0]
        if top in places:
            by_top.setdefault(top, []).append(module)
    found = [name]
    for top in found:  # which grows during the loop
        for module in by_top.get(top, ()):
            for other in top_level_names_in(module):
                if other in places and other not in found:
                    found.append(other)
    return found[1:]
