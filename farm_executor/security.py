"""The keys: where they are found, how they are made.

This module owns key files. It must not know connections; the proof of a key is `core.handshake`'s. A key never
appears in a message, a log or a repr.

A server always has a key. It is looked for in this order: the ``key`` given, the ``key_file`` given, the file
beside a unix socket (``PATH.key``), the file that the environment variable ``FARM_EXECUTOR_KEY_FILE`` names, the
key of the server in whose worker we are, and the user's own file, ``~/.config/farm_executor/key``. That last one
is made on first use, so that client and server of one user on one machine find each other.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING

from farm_executor.address import Address
from farm_executor.core.handshake import MIN_KEY_SIZE
from farm_executor.errors import AuthenticationError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["KEY_FILE_VARIABLE", "client_key", "new_key", "read_key", "server_key", "set_ambient_key", "write_key"]

KEY_FILE_VARIABLE = "FARM_EXECUTOR_KEY_FILE"
_MAX_KEY_SIZE = 4096

_ambient: bytes | None = None


def set_ambient_key(key: bytes) -> None:
    """In a worker: what runs here may be a client of the server that started it, and of others with its key."""
    global _ambient
    _ambient = key


def new_key() -> bytes:
    """A fresh key: 32 random bytes, written as 64 hexadecimal digits."""
    return os.urandom(32).hex().encode()


def default_key_file() -> Path:
    """The user's own key file."""
    from pathlib import Path  # late: an embedded farm does not come here

    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(base) / "farm_executor" / "key"


def client_key(key: bytes | None, key_file: str | os.PathLike[str] | None, address: Address) -> bytes:
    """The key with which to address a server, see above.

    Raises:
        AuthenticationError: There is none and none can be made, or its file may be read by others; the message
            says what to do.
    """
    ours = bool(address.ssh) or (key is None and key_file is None)  # one started over ssh has its own
    if address.path and ours and os.path.exists(address.path + ".key"):
        return read_key(address.path + ".key")
    given = _given_key(key, key_file)
    if given is not None:
        return given
    if _ambient is not None:
        return _ambient
    path = default_key_file()
    if path.exists():
        return read_key(path)
    if address.is_local:
        return _make_default(path)
    raise AuthenticationError(
        f"no key for server {address}: copy the server's key file to {path} on this machine, "
        f"name it with key_file= or --key-file, or in the environment variable {KEY_FILE_VARIABLE}"
    )


def server_key(key: bytes | None = None, key_file: str | os.PathLike[str] | None = None) -> bytes:
    """The key that a server shall demand: the one given, or else the user's own, made if need be.

    Raises:
        AuthenticationError: Its file is missing although named, cannot be made, or may be read by others.
    """
    given = _given_key(key, key_file)
    if given is not None:
        return given
    path = default_key_file()
    return read_key(path) if path.exists() else _make_default(path)


def _given_key(key: bytes | None, key_file: str | os.PathLike[str] | None) -> bytes | None:
    if key is not None:
        if not isinstance(key, (bytes, bytearray)) or len(key) < MIN_KEY_SIZE:
            raise AuthenticationError(f"a key is a bytes object of at least {MIN_KEY_SIZE} bytes")
        return bytes(key)
    path = key_file if key_file is not None else os.environ.get(KEY_FILE_VARIABLE)
    return read_key(path) if path else None


def read_key(path: str | os.PathLike[str]) -> bytes:
    """The key in a file, without surrounding white space.

    Raises:
        AuthenticationError: The file cannot be read, holds no key, or may be read by others than its owner.
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MAX_KEY_SIZE).strip()
    except OSError as error:
        raise AuthenticationError(f"cannot read the key file {path}: {error.strerror}") from None
    if sys.platform != "win32" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise AuthenticationError(f"others may read the key file {path}: make it yours alone with chmod 600 {path}")
    if len(data) < MIN_KEY_SIZE:
        raise AuthenticationError(f"the key file {path} holds {len(data)} bytes; a key has at least {MIN_KEY_SIZE}")
    return data


def write_key(path: str | os.PathLike[str], key: bytes) -> None:
    """Write a key file that only the user may read; an existing file is left alone.

    Raises:
        FileExistsError: The file exists.
        OSError: It cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(key + b"\n")


def _make_default(path: Path) -> bytes:
    """Make the user's key file; if another process was faster, take its key.

    Written under another name and then linked, so that nobody ever reads half a key.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        import tempfile  # late: needed once in a user's life
        from pathlib import Path

        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            draft = Path(folder) / "key"
            write_key(draft, new_key())
            with contextlib.suppress(FileExistsError):
                if sys.platform == "win32":
                    draft.rename(path)
                else:
                    os.link(draft, path)
    except OSError as error:
        raise AuthenticationError(
            f"cannot make the key file {path}: {error.strerror}; make one elsewhere and name it with key_file= "
            f"or --key-file, or in the environment variable {KEY_FILE_VARIABLE}"
        ) from None
    return read_key(path)
