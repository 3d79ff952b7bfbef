"""A client of a server, run without what macOS or Windows lack: ``python other_systems.py macos|windows ADDRESS``.

It cannot stand for a machine with such a system; it finds names that are used although they are not there.
"""

# Modules of the standard library that look for these names themselves, as they are imported.
import asyncio  # noqa: F401
import ctypes  # noqa: F401
import logging.handlers  # noqa: F401
import multiprocessing.connection  # noqa: F401
import os
import select
import selectors
import signal
import socket
import ssl  # noqa: F401
import subprocess  # noqa: F401
import sys

LINUX_ONLY = {
    os: "sched_getaffinity sched_setscheduler memfd_create pidfd_open eventfd splice setns unshare",
    select: "epoll",
    selectors: "EpollSelector",
    signal: "pidfd_send_signal",
    socket: "SO_PEERCRED",
}
UNIX_ONLY = {
    os: "fork forkpty register_at_fork geteuid getuid getpgid killpg setsid uname statvfs readv writev sendfile "
    "posix_fadvise O_NOFOLLOW O_NONBLOCK O_CLOEXEC WNOHANG",
    select: "poll",
    selectors: "PollSelector",
    signal: "pthread_sigmask pthread_kill setitimer siginterrupt sigwait SIGCHLD SIGHUP SIGKILL SIGSTOP SIGUSR1",
    socket: "AF_UNIX CMSG_LEN CMSG_SPACE MSG_DONTWAIT MSG_NOSIGNAL SCM_RIGHTS recv_fds send_fds",
    socket.socket: "sendmsg recvmsg recvmsg_into sendmsg_afalg",
}
UNIX_MODULES = "fcntl grp pwd resource termios tty pty syslog _posixshmem"


def hide(names):
    for owner, listed in names.items():
        for name in listed.split():
            if name in vars(owner):
                delattr(owner, name)


def socketpair():
    """What Windows has in its place."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


def pretend(system):
    hide(LINUX_ONLY)
    os.process_cpu_count = os.cpu_count  # which ask for the affinity, where there is one
    selectors.DefaultSelector = getattr(selectors, "PollSelector", None)
    if system == "windows":
        hide(UNIX_ONLY)
        selectors.DefaultSelector = selectors.SelectSelector
        socket.socketpair = socketpair
        for name in UNIX_MODULES.split():
            sys.modules[name] = None


def main(system, address):
    pretend(system)
    from farm_executor import BrokenFarmError, FarmExecutor

    with FarmExecutor(address) as farm:
        assert farm.submit(pow, 2, 10).result(timeout=60) == 1024
        assert list(farm.map(lambda x: x * x, range(5))) == [0, 1, 4, 9, 16]
        assert len(farm.submit(bytes, 5_000_000).result(timeout=60)) == 5_000_000
        assert sum(future.result() for future in [farm.submit(abs, -n) for n in range(2000)]) == 1_999_000
        assert isinstance(farm.submit(lambda: 1 / 0).exception(timeout=60), ZeroDivisionError)
        assert farm.broadcast(int) == [0, 0]
    if system == "windows":
        try:
            FarmExecutor().submit(abs, 1).result()
        except BrokenFarmError as error:
            assert "needs a system with fork" in str(error)
    print("all is well")


if __name__ == "__main__":
    main(*sys.argv[1:])
