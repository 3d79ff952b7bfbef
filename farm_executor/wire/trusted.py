"""Checks on files and sockets that somebody else could have planted.

This module owns these checks. It must not know what is in a file, nor open a connection.

Only files of this user and of root are trusted. A symbolic link is followed if the link itself belongs to one of
them, as the links in Kubernetes' secrets belong to root; so nobody else can redirect a name to another file. A file
is opened once, without following a link, and it is the open file that is checked and then read: exchanging it in
between has no effect.

On Windows, where Python has neither these owners nor modes, only the type of a file is checked.
"""

from __future__ import annotations

import errno
import os
import stat

from farm_executor.errors import AuthenticationError

__all__ = ["check_peer", "check_socket", "read_trusted"]

_MAX_LINKS = 40  # as on Linux
_MAX_SIZE = 64 * 1024  # bytes
_HAS_OWNERS = hasattr(os, "geteuid")
_LINK = {errno.ELOOP, getattr(errno, "EMLINK", errno.ELOOP), getattr(errno, "EFTYPE", errno.ELOOP)}
PathLike = str | os.PathLike[str]


def read_trusted(path: PathLike, what: str, *, secret: bool) -> bytes:
    """Return the content of a file of at most 64 KiB.

    Args:
        path: The name of the file.
        what: What the file is, for errors.
        secret: Whether nobody else may read it. Even then, a file of root may be readable for its group, since root
            decides who is in that group; but not if this process runs as root.

    Raises:
        OSError: The file does not exist, or cannot be read now.
        AuthenticationError: The file is not regular, belongs neither to this user nor to root, may be written (or,
            if secret, read) by others, or is too large.
    """
    descriptor = _open(path, what)
    try:
        _check(os.fstat(descriptor), what, path, secret)
        data = b""
        while len(data) <= _MAX_SIZE and (more := os.read(descriptor, _MAX_SIZE + 1 - len(data))):
            data += more
    finally:
        os.close(descriptor)
    if len(data) > _MAX_SIZE:
        raise AuthenticationError(f"{what} {path} has more than {_MAX_SIZE // 1024} KiB: it is something else")
    return data


def _check(found: os.stat_result, what: str, path: PathLike, secret: bool) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise AuthenticationError(f"cannot read {what} {path}: it is not a regular file")
    if not _HAS_OWNERS:
        return
    _check_owner(found, what, path)
    of_root = found.st_uid == 0 != os.geteuid()
    if secret and found.st_mode & (0o037 if of_root else 0o077):
        raise AuthenticationError(f"others may read {what} {path}: make it yours alone with chmod 600 {path}")
    if found.st_mode & 0o022:
        raise AuthenticationError(f"others may write to {what} {path}: make it yours with chmod go-w {path}")


def check_socket(path: str) -> None:
    """Check that a unix socket belongs to this user or to root, before anything is sent to it.

    Raises:
        OSError: There is no such socket.
        AuthenticationError: The socket, or a link that leads to it, belongs to another user.
    """
    if not _HAS_OWNERS or path.startswith("\0"):
        return  # an abstract socket does not have a file: only the key protects it
    for _ in range(_MAX_LINKS):
        found = os.lstat(path)
        _check_owner(found, "the socket", path)
        if not stat.S_ISLNK(found.st_mode):
            return
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def check_peer(uid: int, address: str) -> None:
    """Check that who listens at an abstract socket, which has no file, is this user or root.

    Raises:
        AuthenticationError: It is another user.
    """
    if uid not in (0, os.geteuid()):
        raise AuthenticationError(f"{address} belongs to another user (uid {uid}), so it is not used")


def _open(path: PathLike, what: str) -> int:
    # Without O_NONBLOCK, opening a named pipe would block until somebody opens it for writing.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    name = os.fspath(path)
    for _ in range(_MAX_LINKS):
        try:
            return os.open(name, flags | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            if error.errno not in _LINK or not os.path.islink(name):
                raise
        found = os.lstat(name)
        target = os.readlink(name)
        if (again := os.lstat(name)).st_ino != found.st_ino or again.st_ctime_ns != found.st_ctime_ns:
            continue  # it was exchanged between the two looks, so its target may not be its owner's
        _check_owner(found, "the link", name)
        name = os.path.join(os.path.dirname(name), target)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _check_owner(found: os.stat_result, what: str, path: PathLike) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise AuthenticationError(
            f"{what} {path} belongs to another user (uid {found.st_uid}), who may have put it there, so it is not "
            "used: name one of your own, or of root's"
        )
