"""Keys: where they are found and how they are made.

This module owns key files. It must not know connections; proving a key is in `core.handshake`, encryption in `tls`.
A key never appears in a message, a log or a repr.

A key file holds either a secret as plain text or, if ``farm-executor keygen`` made it, a certificate, its private
key and a secret, each in a PEM block; traffic over TCP is then encrypted.

A server always has a key. It is looked for in this order: the ``key`` argument, the ``key_file`` argument, the file
beside a unix socket (``PATH.key``), the file named by the environment variable ``FARM_EXECUTOR_KEY_FILE``, the key
of the server whose worker this process is, and the user's own file, ``~/.config/farm_executor/key``. That file is
made on first use, so that a client and a server of one user on one machine find each other. It is made like
`keygen` makes it if the package ``cryptography`` is installed, and is a plain secret otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from farm_executor.core.secret import MIN_KEY_SIZE, Secret, is_random, monitor_secret, weakness
from farm_executor.errors import AuthenticationError
from farm_executor.wire.address import Address
from farm_executor.wire.trusted import read_trusted

if TYPE_CHECKING:
    from pathlib import Path

    from farm_executor.wire.tls import Tls

logger = logging.getLogger(__name__)

__all__ = [
    "KEY_FILE_VARIABLE",
    "Key",
    "KeyFinder",
    "PathLike",
    "automatic_secret",
    "client_key",
    "is_readable_key",
    "is_worker",
    "monitor_content",
    "monitors_of",
    "new_key",
    "read_key",
    "replace_key",
    "server_keys",
    "set_ambient_key",
    "write_key",
]

KEY_FILE_VARIABLE = "FARM_EXECUTOR_KEY_FILE"
PathLike = str | os.PathLike[str]


class Key:
    """The secret that admits to a server, with the certificates for encryption.

    Attributes:
        secret: The secret that both sides prove they hold.
        tls: The certificates; None for no encryption.
        origin: Where the key was found, for error messages about a wrong key.
        read_only: Whether it is a monitor's, who may look at a server and do nothing else.
        random: Whether it was made by the computer, so that it cannot be guessed from a monitor's.
    """

    __slots__ = ("origin", "random", "read_only", "secret", "tls")

    def __init__(
        self,
        secret: bytes,
        tls: Tls | None = None,
        origin: str = "the one given as key=",
        *,
        read_only: bool = False,
        random: bool | None = None,
    ) -> None:
        self.secret = Secret(secret)
        self.tls = tls
        self.origin = origin
        self.read_only = read_only
        self.random = is_random(secret) if random is None else random

    def __eq__(self, other: object) -> bool:
        """Return whether the secrets are the same."""
        return isinstance(other, Key) and self.secret == other.secret

    def __hash__(self) -> int:
        """Return the hash of the secret, consistent with `==`."""
        return hash(self.secret)

    def __repr__(self) -> str:
        """Show nothing of the secret."""
        return f"<Key {'with' if self.tls else 'without'} certificate>"


_ambient: Key | None = None


def set_ambient_key(key: Key) -> None:
    """Set the key of the server that started this worker, so that tasks can be its clients."""
    global _ambient
    _ambient = key


def is_worker() -> bool:
    """Return whether this process is a worker."""
    return _ambient is not None


def new_key() -> Secret:
    """Return a new key: 32 random bytes, written as 64 hexadecimal digits."""
    return Secret(os.urandom(32).hex().encode())


def default_key_file() -> Path:
    """Return the path of the user's own key file."""
    from pathlib import Path  # late: an embedded farm does not need it

    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(base) / "farm_executor" / "key"


def client_key(
    key: bytes | None,
    key_file: PathLike | None,
    address: Address,
    ssl_context: Any = None,
    *,
    variable: str | None = None,
    make: bool = True,
) -> Key:
    """Return the key for a server; see the module for where it is looked for.

    Args:
        key: The secret, if it was given.
        key_file: The file that holds the key, if it was given.
        address: The server.
        ssl_context: The user's own context for connections over TCP, in place of the key file's certificate.
        variable: The file that the environment variable named, if it was set.
        make: Whether the user's own key may be made.

    Raises:
        AuthenticationError: There is no key and none can be made, or others may read its file; the message says
            what to do.
    """
    found = _client_key(key, key_file, address, variable, make)
    if ssl_context is None:
        return found
    from farm_executor.wire.tls import own_context

    return Key(found.secret, own_context(ssl_context), found.origin)


class KeyFinder:
    """Finds a client's key for each connection it makes, since key files may change while clients run.

    A key once found is kept: if its file cannot be read later, because it is being replaced or there are too many
    open files, the kept one is used.

    Args:
        key: As for `client_key`, but in an object that does not show it.
        key_file: As for `client_key`.
        ssl_context: As for `client_key`.

    Thread safety: may be called from any thread.
    """

    def __init__(self, key: Key | None, key_file: PathLike | None, ssl_context: Any = None) -> None:
        self._key = key
        self._key_file = key_file
        if key is None and key_file is None and os.environ.get(KEY_FILE_VARIABLE):
            self._variable: str | None = os.path.abspath(os.environ[KEY_FILE_VARIABLE])
        else:
            self._variable = None
        self._ssl_context = ssl_context
        self._kept: dict[Address, Key] = {}

    def __call__(self, address: Address) -> Key:
        """Return the key for a server.

        Raises:
            AuthenticationError: See `client_key`.
            OSError: There are too many open files at the moment.
        """
        kept = self._kept.get(address)
        secret = None if self._key is None else self._key.secret
        try:
            found = client_key(
                secret, self._key_file, address, self._ssl_context, variable=self._variable, make=kept is None
            )
        except (AuthenticationError, OSError):
            if kept is None:
                raise
            return kept
        self._kept[address] = found
        return found


def _client_key(
    key: bytes | None, key_file: PathLike | None, address: Address, variable: str | None, make: bool
) -> Key:
    ours = bool(address.grant) or (key is None and key_file is None)  # a server started for us has its own key
    if address.path and ours and os.path.exists(address.path + ".key"):
        return read_key(address.path + ".key")
    given = _given_key(key, key_file, variable)
    if given is not None:
        return given
    if _ambient is not None:
        return _ambient
    path = default_key_file()
    if path.exists():
        return read_key(path)
    if address.is_local and make:
        return _make_default(path)
    raise AuthenticationError(
        f"no key for server {address}: copy the server's key file to {path} on this machine, "
        f"name it with key_file= or --key-file, or in the environment variable {KEY_FILE_VARIABLE}"
    )


def server_keys(
    key: bytes | None = None,
    key_file: PathLike | Iterable[PathLike] | None = None,
    certificate: PathLike | None = None,
    private_key: PathLike | None = None,
    client_ca: PathLike | None = None,
    *,
    make: bool = True,
) -> list[Key]:
    """Return the keys that a server accepts: those given, or else the user's own, made if need be.

    Args:
        key: The secret, if it was given.
        key_file: The file or files that hold the keys, if any were given.
        certificate: The user's own for connections over TCP, in place of the key files' certificates; see `tls`.
        private_key: See `tls`.
        client_ca: See `tls`.
        make: Whether the user's own key may be made. If not, and it is missing, a key that admits nobody is
            returned in its place.

    Raises:
        AuthenticationError: A named file is missing, cannot be made, may be read by others, or does not hold what
            it should.
    """
    files = [key_file] if key_file is None or isinstance(key_file, (str, os.PathLike)) else list(key_file)
    if not files:
        raise AuthenticationError("no key file is named: give one at least, or None for the user's own")
    keys = [_server_key(key, file, make) for file in files]
    if certificate is None:
        if private_key is not None or client_ca is not None:
            raise AuthenticationError("a private key, or who signs clients' certificates, needs a certificate")
        return keys
    from farm_executor.wire.tls import expiry, own_certificate

    if make and (ended := expiry(certificate)):  # not also when only checked
        logger.warning("certificate expired file=%s since=%s: clients will not trust it", certificate, ended)
    tls = own_certificate(certificate, private_key, client_ca)
    return [Key(each.secret, tls, each.origin, random=each.random) for each in keys]


def monitors_of(keys: Iterable[Key]) -> list[Key]:
    """Return the keys of those who may look at a server with these keys, and do nothing else.

    Only a random key has one: a monitor could try out guesses of a human's.
    """
    found = []
    for key in keys:
        if key.random and not key.read_only:
            tls = None
            if key.tls is not None:
                from farm_executor.wire.tls import Tls

                tls = Tls(None, key.tls.monitors)
            found.append(Key(monitor_secret(key.secret), tls, key.origin, read_only=True))
    return found


def _server_key(key: bytes | None, key_file: PathLike | None, make: bool) -> Key:
    given = _given_key(key, key_file)
    if given is not None:
        if given.read_only:
            raise AuthenticationError(
                f"a server needs a full key, and not {given.origin}: name the key file itself"
            )
        return given
    path = default_key_file()
    if not path.exists() and not make:
        return Key(os.urandom(MIN_KEY_SIZE))
    return read_key(path) if path.exists() else _make_default(path)


def _given_key(key: bytes | None, key_file: PathLike | None, variable: str | None = None) -> Key | None:
    if key is not None:
        if not isinstance(key, (bytes, bytearray)) or len(key) < MIN_KEY_SIZE:
            raise AuthenticationError(f"a key is a bytes object of at least {MIN_KEY_SIZE} bytes")
        if why := weakness(key):
            raise AuthenticationError(f"a key {why}; let the computer make it: farm-executor keygen")
        return Key(Secret(key))
    path = key_file if key_file is not None else variable or os.environ.get(KEY_FILE_VARIABLE)
    return read_key(path) if path else None


def read_key(path: PathLike) -> Key:
    """Read the key in a file; a plain secret is the file's content without surrounding white space.

    Raises:
        AuthenticationError: The file cannot be read, does not hold a key, may be read by others than its owner, or
            belongs to another user; see `trusted`.
        OSError: There are too many open files at the moment.
    """
    try:
        data = read_trusted(path, "the key file", secret=True).strip()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # a passing condition: worth another attempt
        raise AuthenticationError(f"cannot read the key file {path}: {error.strerror}") from None
    secret, tls = data, None
    if b"-----BEGIN FARM EXECUTOR MONITOR-----" in data:
        return _monitor_key(data, path)
    made = b"-----BEGIN " in data
    if made:
        secret = _secret_in(data, path)
        from farm_executor.wire.tls import pinned  # late: only TLS needs it

        tls = pinned(data, path)
    if len(secret) < MIN_KEY_SIZE:
        raise AuthenticationError(
            f"the key file {path} holds {len(secret)} bytes; a key has at least {MIN_KEY_SIZE}"
        )
    if why := weakness(secret):
        raise AuthenticationError(f"the key in {path} {why}; let the computer make it: farm-executor keygen")
    origin = f"that of the key file {os.path.abspath(path)}"
    # In such a block, `keygen` has put 32 random bytes, or a plain key that was made automatically.
    return Key(secret, tls, origin, random=(made and len(secret) >= 32) or is_random(secret))


def _monitor_key(data: bytes, path: PathLike) -> Key:
    """Read a key file that `keygen.make_monitor_content` has made."""
    if b"PRIVATE KEY-----" in data or b"EXECUTOR SECRET-----" in data:
        raise AuthenticationError(f"{path} is a monitor's key file, and must not hold what belongs to a full key's")
    secret, tls = _secret_in(data, path, b"MONITOR"), None
    if len(secret) < MIN_KEY_SIZE:
        raise AuthenticationError(
            f"the key file {path} holds {len(secret)} bytes; a key has at least {MIN_KEY_SIZE}"
        )
    if b"-----BEGIN CERTIFICATE-----" in data:
        from farm_executor.wire.tls import watching

        tls = watching(data, path)
    return Key(secret, tls, f"that of the monitor's key file {os.path.abspath(path)}", read_only=True)


def monitor_content(path: PathLike) -> bytes:
    """Return what a monitor's key file holds, for servers with the key in this file.

    Raises:
        AuthenticationError: The file does not hold a key, or one that a monitor's would make easy to guess.
    """
    from farm_executor.wire.keygen import make_monitor_content

    key = read_key(path)
    if key.read_only:
        raise AuthenticationError(f"{path} is a monitor's key file already")
    if not key.random:
        raise AuthenticationError(
            f"the key in {path} was not made by the computer: a monitor could guess it from their own. Make one "
            "with farm-executor keygen, and give it to the servers and clients first"
        )
    return make_monitor_content(monitor_secret(key.secret), read_trusted(path, "the key file", secret=True))


def is_readable_key(path: PathLike) -> bool:
    """Return whether the file holds a key that this process may read."""
    try:
        read_key(path)
    except (AuthenticationError, OSError):
        return False
    return True


def _secret_in(data: bytes, path: PathLike, name: bytes = b"SECRET") -> bytes:
    import base64  # late: only key files with a certificate need it
    import re

    pattern = rb"-----BEGIN FARM EXECUTOR %b-----\s*(.*?)\s*-----END FARM EXECUTOR %b-----" % (name, name)
    found = re.search(pattern, data, re.DOTALL)
    if found is None:
        raise AuthenticationError(
            f"the key file {path} holds no block FARM EXECUTOR {name.decode()}: make one with farm-executor keygen"
        )
    try:
        return base64.b64decode(b"".join(found[1].split()), validate=True)
    except ValueError as error:
        raise AuthenticationError(f"the key file {path} is damaged: its secret is not base64: {error}") from None


def write_key(path: PathLike, key: bytes) -> None:
    """Write a key file that only the user may read; leave an existing file alone.

    Args:
        path: The file to create.
        key: Its content.

    Raises:
        FileExistsError: The file exists.
        OSError: The file cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(key + b"\n")


def automatic_secret(path: PathLike) -> bytes | None:
    """Return the secret of an automatically made key file without a certificate; None for any other file."""
    try:
        key = read_key(path)
    except AuthenticationError:
        return None
    return key.secret if is_random(key.secret) and key.tls is None and not key.read_only else None


def replace_key(path: PathLike, key: bytes) -> None:
    """Replace the content of a key file atomically, so that nobody reads half of it.

    Raises:
        OSError: The file cannot be written.
    """
    draft = f"{os.fspath(path)}.{os.getpid()}.new"
    write_key(draft, key)
    try:
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def _make_default(path: Path) -> Key:
    """Make the user's key file; if another process was faster, use its key.

    The file has a certificate if one can be made, so that connections over TCP are encrypted. It is written under
    another name and then linked, so that nobody ever reads half a key.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        import tempfile  # late, like the rest: needed once per user
        from pathlib import Path

        from farm_executor.wire.keygen import make_key_file_content

        try:
            content = make_key_file_content()
        except AuthenticationError:  # no package cryptography: connections will be sealed, not encrypted
            content = new_key()
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            draft = Path(folder) / "key"
            write_key(draft, content)
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
