"""Messages by which a worker gets the program's own modules, and tells which packages it lacks that they import.

This module owns the layout and the limits of these messages, and the digest by which both ends recognize the same
code. It must not know where modules are found, nor where they are put.

The client offers the names of top-level modules, and says which installed packages they import, in which versions.
A worker that imports one of these packages, and lacks it or has another version, says so. A worker asks for a
module by name, and says which code it has under that name itself. The answer lists the files of one or more modules
by their paths below an entry of ``sys.path``; their bytes travel beside the list, compressed, one segment per
module. No path is ever accepted from a worker, and none from a client that leads out of the module's own place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from farm_executor._record import NamedTuple
from farm_executor.core.frames import Buffer
from farm_executor.errors import RemoteProtocolError

__all__ = [
    "MAX_FILES",
    "MAX_MODULE",
    "MAX_OFFER",
    "MAX_PACKAGES",
    "MODULE",
    "NAMESPACE",
    "NO_DIGEST",
    "PACKAGE",
    "Contents",
    "Difference",
    "Package",
    "decode_contents",
    "decode_differences",
    "decode_offer",
    "decode_question",
    "digest",
    "encode_contents",
    "encode_differences",
    "encode_offer",
    "encode_question",
    "is_top_level",
]

MODULE, PACKAGE, NAMESPACE = "m", "p", "n"
_KINDS = (MODULE, PACKAGE, NAMESPACE)  # not a set: what a peer has put there may not be hashable
MAX_OFFER = 10_000  # names: a folder with more than that is a data set, not a program
MAX_PACKAGES = 1000
MAX_NAME = 255  # bytes, the usual limit of a file's name
MAX_FILES = 20_000  # per module
MAX_MODULE = 256 * 1024 * 1024  # bytes in one module's files
MAX_TOGETHER = 100  # modules in one answer
MAX_PATH = 1024  # characters
NO_DIGEST = "?"  # in place of a digest: the worker has such a module, but its code cannot be compared
MAX_DIGEST = 64


class Package(NamedTuple):
    """An installed package: its name, as an installer knows it, and its version."""

    name: str
    version: str


class Difference(NamedTuple):
    """A package that two ends do not have alike.

    Attributes:
        name: Its name.
        here: The client's version.
        there: The worker's version; empty if the worker lacks it.
    """

    name: str
    here: str
    there: str


class Contents(NamedTuple):
    """The description of a module that is sent.

    Attributes:
        name: Its name.
        kind: `MODULE`, `PACKAGE` or `NAMESPACE`.
        where: The folder on the client that contains it, for people to read.
        files: The paths of its files below that folder and their sizes, in the order in which their bytes are sent.
        left_out: Files that are too large to be sent along, for people to read.
    """

    name: str
    kind: str
    where: str
    files: list[tuple[str, int]]
    left_out: list[str]


def is_top_level(name: Any) -> bool:
    """Return whether ``name`` may be the name of a top-level module."""
    return type(name) is str and name.isidentifier() and len(name.encode()) <= MAX_NAME


def encode_offer(modules: Mapping[str, str], packages: Mapping[str, Package]) -> bytes:
    """Encode an offer.

    Args:
        modules: The names of the available modules, with the kind of each.
        packages: The installed packages that these import, by the name under which they are imported.
    """
    return json.dumps({"modules": modules, "packages": packages}).encode()


def decode_offer(data: Buffer) -> tuple[dict[str, str], dict[str, Package]]:
    """Decode an offer made by `encode_offer`.

    Raises:
        RemoteProtocolError: The data are not such an offer.
    """
    offer = _json("offer of modules", data)
    modules, packages = (offer.get("modules"), offer.get("packages")) if type(offer) is dict else (None, None)
    if type(modules) is not dict or len(modules) > MAX_OFFER:
        raise RemoteProtocolError(f"malformed offer of modules: not an object of at most {MAX_OFFER} names")
    for name, kind in modules.items():
        if not is_top_level(name) or kind not in _KINDS:
            raise RemoteProtocolError(f"malformed offer of modules: {name[:MAX_NAME]!r}")
    if type(packages) is not dict or len(packages) > MAX_PACKAGES or not all(map(is_top_level, packages)):
        raise RemoteProtocolError(f"malformed offer of modules: not an object of at most {MAX_PACKAGES} packages")
    return modules, {name: Package(*_texts(package, 2)) for name, package in packages.items()}


def encode_differences(differences: Iterable[Difference]) -> bytes:
    """Encode how a worker's packages differ from the client's."""
    return json.dumps(list(differences)).encode()


def decode_differences(data: Buffer) -> list[Difference]:
    """Decode the differences encoded by `encode_differences`.

    Raises:
        RemoteProtocolError: The data are not such a list.
    """
    differences = _json("list of packages", data)
    if type(differences) is not list or len(differences) > MAX_PACKAGES:
        raise RemoteProtocolError("malformed list of packages")
    return [Difference(*_texts(each, 3)) for each in differences]


def _texts(data: Any, count: int) -> list[str]:
    if type(data) is not list or len(data) != count or any(type(each) is not str for each in data):
        raise RemoteProtocolError(f"malformed description of a package: not {count} strings")
    if any(len(each) > MAX_NAME or not each.isprintable() for each in data):
        raise RemoteProtocolError("malformed description of a package: too long, or not printable")
    return data


def encode_question(name: str, own: str) -> bytes:
    """Encode a request for a module.

    Args:
        name: The module's name.
        own: The digest of the asker's own module of that name; `NO_DIGEST` if it cannot be compared, empty if there
            is none.
    """
    return f"{name}\0{own}".encode()


def decode_question(body: Buffer) -> tuple[str, str]:
    """Decode a request made by `encode_question` into the module's name and the digest.

    Raises:
        RemoteProtocolError: It does not ask for a top-level module.
    """
    try:
        # No more is decoded than a valid request can have; a longer one is refused below.
        name, own = bytes(body[: MAX_NAME + MAX_DIGEST + 2]).decode().split("\0")
    except ValueError:
        raise RemoteProtocolError(f"malformed question of {len(body)} bytes for a module") from None
    if not is_top_level(name) or len(own) > MAX_DIGEST:
        raise RemoteProtocolError(f"malformed question for a module: {name!r} is not the name of one")
    return name, own


def encode_contents(modules: Iterable[Contents]) -> bytes:
    """Encode the descriptions of an answer's modules."""
    return json.dumps([module._asdict() for module in modules]).encode()


def decode_contents(data: Buffer) -> list[Contents]:
    """Decode the descriptions made by `encode_contents`.

    Raises:
        RemoteProtocolError: The data are not such a list, or a module is too large or has a file outside its place.
    """
    modules = _json("list of modules", data)
    if type(modules) is not list or not 1 <= len(modules) <= MAX_TOGETHER:
        raise RemoteProtocolError("malformed list of modules")
    return [_contents(module) for module in modules]


def _contents(data: Any) -> Contents:
    try:
        contents = Contents(**data)
        fits = is_top_level(contents.name) and contents.kind in _KINDS and type(contents.where) is str
        files = [(path, size) for path, size in contents.files]
        fits = fits and all(_is_within(contents, path) and type(size) is int and size >= 0 for path, size in files)
        left_out = [str(each) for each in contents.left_out]
        total = sum(size for _, size in files)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise RemoteProtocolError("malformed list of a module's files")
    if len(files) > MAX_FILES or total > MAX_MODULE:
        raise RemoteProtocolError(f"module {contents.name} has {len(files)} files of {total} bytes")
    return contents._replace(files=files, left_out=left_out)


def _is_within(module: Contents, path: Any) -> bool:
    """Return whether ``path`` leads to a file of that module, and not to a hidden one."""
    # A backslash separates folders on Windows. A part that is empty or begins with a dot covers absolute paths and
    # ``..`` as well.
    if type(path) is not str or len(path) > MAX_PATH or "\0" in path or "\\" in path:
        return False
    top, *rest = path.split("/")
    if any(not part or part.startswith(".") for part in (top, *rest)):
        return False
    return top == module.name if rest else top.partition(".")[0] == module.name


def _json(what: str, data: Buffer) -> Any:
    try:
        return json.loads(bytes(data))
    except (ValueError, RecursionError):
        raise RemoteProtocolError(f"malformed {what}: not JSON") from None


def digest(files: Iterable[tuple[str, Buffer]]) -> str:
    """Return a digest that identifies code: paths, as in `Contents`, and what the files hold, in any order."""
    total = hashlib.blake2b(digest_size=16)
    # With each length, so that bytes cannot move from one file to the next without a change of the digest.
    for path, data in sorted(files, key=lambda file: file[0]):
        total.update(f"{path}\0{len(data)}\0".encode())
        total.update(data)
    return total.hexdigest()
