"""A client of servers, run without what macOS or Windows lack.

``python other_systems.py macos|windows ADDRESS`` makes a few calls. Without an address the whole contract is run,
on two servers that are started before anything is hidden.

It cannot stand for a machine with such a system; it finds names that are used although they are not there.
"""

# Modules of the standard library that look for these names themselves, as they are imported.
import asyncio  # noqa: F401
import contextlib
import ctypes  # noqa: F401
import logging.handlers  # noqa: F401
import multiprocessing.connection  # noqa: F401
import os
import select
import selectors
import shutil
import signal
import socket
import ssl  # noqa: F401
import subprocess
import sys
import tempfile

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


class Hidden:
    """In place of what a class has from a base that is written in C, and so cannot lose."""

    def __get__(self, instance, owner):
        raise AttributeError("hidden")


def hide(names):
    for owner, listed in names.items():
        for name in listed.split():
            if isinstance(owner, type):
                setattr(owner, name, Hidden())
            elif name in vars(owner):
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
        shutil._use_fd_functions = False
        for name in UNIX_MODULES.split():
            sys.modules[name] = None


def run_contract(system, *arguments):
    """Run the tests of the contract with the farm over servers, in a process that lacks names; return its code."""
    from contract import conftest

    with conftest.start_two_servers() as addresses:
        environment = {**os.environ, conftest.SERVERS: ",".join(addresses), "PRETEND": system}
        return subprocess.run([sys.executable, __file__, *arguments], env=environment).returncode


def run_within(system, *arguments):
    """Run the tests of the contract in this process."""
    from multiprocessing import resource_tracker

    import pytest

    class Pretending:
        """Hides the names once pytest's plugins are loaded, and before anything imports the package."""

        def pytest_sessionstart(self):
            from contract import gate  # noqa: F401 (whose sockets are the test's)

            with contextlib.suppress(ImportError):
                import numpy as np  # noqa: F401 (which asks for what the Python here has)
            assert "farm_executor" not in sys.modules
            resource_tracker.ensure_running()
            pretend(system)

    folder = os.path.join(os.path.dirname(__file__), "contract")
    with tempfile.TemporaryDirectory() as temporary:  # pytest's own way to find one asks for the user's number
        options = ["--rows", "farm-servers", "--basetemp", os.path.join(temporary, "tests")]
        options += ["-k", "not objects_of_a_manager"]  # whose secret servers have if the program has started them
        return pytest.main([folder, *options, *arguments], [Pretending()])


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
    if "PRETEND" in os.environ:
        sys.exit(run_within(os.environ.pop("PRETEND"), *sys.argv[1:]))
    if len(sys.argv) == 3 and not sys.argv[2].startswith("-"):
        main(*sys.argv[1:])
    else:
        sys.exit(run_contract(*sys.argv[1:]))
