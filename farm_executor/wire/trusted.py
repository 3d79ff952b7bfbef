"""Files and sockets that somebody else could have planted: what is looked at before one is used.

This module owns that look. It must not know what is in a file, nor open a connection.

Only this user's files and root's are trusted. A symbolic link is followed if it is itself one of theirs, as those
of Kubernetes' secrets are root's; so nobody else can have a name stand for another file. A file is opened once,
without following a link, and it is the open file that is looked at and then read: exchanging it in between is of no
use.

On Windows, which has neither these owners nor modes in Python, only the kind of a file is looked at.
"""

from __future__ import annotations

import errno
import os
import stat

from farm_executor.errors import AuthenticationError

__all__ = ["check_socket", "read_trusted"]

_MAX_LINKS = 40  # as Linux has it
_MAX_SIZE = 64 * 1024  # bytes
_HAS_OWNERS = hasattr(os, "geteuid")
_LINK = {errno.ELOOP, getattr(errno, "EMLINK", errno.ELOOP), getattr(errno, "EFTYPE", errno.ELOOP)}
PathLike = str | os.PathLike[str]


def read_trusted(path: PathLike, what: str, *, secret: bool) -> bytes:
    """The content of a file, which has at most 64 KiB.

    Args:
        path: Its name.
        what: What it is, for errors.
        secret: Whether nobody else may read it. A file of root's may be readable for its group even then, as it is
            root who says who is in that group; but not if we are root.

    Raises:
        OSError: It is not there, or cannot be read now.
        AuthenticationError: It is not a regular file, or not this user's or root's; others may write or read it;
            or it is larger.
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
    """See that a unix socket is one of this user's or root's, before anything is said there.

    Raises:
        OSError: There is none.
        AuthenticationError: It is another user's, or a link of theirs leads there.
    """
    if not _HAS_OWNERS or path.startswith("\0"):
        return  # one without a file, which only a key protects
    for _ in range(_MAX_LINKS):
        found = os.lstat(path)
        _check_owner(found, "the socket", path)
        if not stat.S_ISLNK(found.st_mode):
            return
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _open(path: PathLike, what: str) -> int:
    # Without O_NONBLOCK a pipe would keep us waiting for somebody who writes to it.
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
            continue  # another one by now
        _check_owner(found, "the link", name)
        name = os.path.join(os.path.dirname(name), target)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _check_owner(found: os.stat_result, what: str, path: PathLike) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise AuthenticationError(
            f"{what} {path} belongs to another user (uid {found.st_uid}), who may have put it there, so it is not "
            "used: name one of your own, or of root's"
        )
