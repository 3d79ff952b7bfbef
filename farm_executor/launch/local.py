"""Start servers on this machine, each as a child process.

This module owns the child's start and end: its socket, its private directory, its pipe. It must not know what a
server does, nor what the child does meanwhile, which is in `child`.

The socket is opened here, before there is a child. So a port in use raises `OSError` in the caller, a client may
dial at once, and no readiness message is needed that could be missed. The child's configuration, the key included,
is sent through its standard input, which stays open: its end means that the parent is gone, and ends the server.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from farm_executor.arguments import checked
from farm_executor.errors import AddressError, BrokenFarmError
from farm_executor.launch import background as kept
from farm_executor.launch import frozen
from farm_executor.launch.held import Held, await_exit
from farm_executor.launch.kinship import Kinship, authkey
from farm_executor.launch.path import PACKAGE_ROOT, import_path
from farm_executor.launch.place import SOCKET, private_directory
from farm_executor.wire.address import Address, parse_address
from farm_executor.wire.security import Key, PathLike, new_key, server_keys, write_key
from farm_executor.wire.sockets import Socket, bound_address, listen, listen_everywhere

__all__ = ["PrivateServer", "Server", "check_exposure", "default_slots", "is_encrypted", "start_server"]

MAX_EARLY_DEATHS = 3
CHILDHOOD_SECONDS = 5.0  # a death within that time of the start counts as early

# The child finds the package where this process has found it, even if another version is installed, and its
# workers find the user's modules. While the package is being imported, none of the user's directories are on the
# path, since a file there may shadow a standard module: neither the current directory, which `-c` adds, nor the
# entries before the standard library, as from PYTHONPATH. The child ignores Ctrl-C until the supervisor decides
# otherwise. It runs none of the user's code, so it can skip Python's clean-up at its end, for which the parent
# waits. Nor does it look for garbage until it serves, as there is hardly any: that takes a tenth of the time.
_BOOT = """\
import gc
gc.disable()
import sys
sys.path[:] = [entry for entry in sys.path if entry]
import os
library = os.path.dirname(os.__file__)
if library in sys.path:
    del sys.path[: sys.path.index(library)]
own = [entry for entry in sys.path if entry in (library, os.path.join(library, "lib-dynload"))]
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
import json
parent = open(0, "rb", closefd=False)
package, listeners = json.loads(parent.readline())
sys.path.insert(len(own), package)
from farm_executor.launch.child import run
run(listeners, parent)
os._exit(0)
"""


def default_slots() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def _start(
    listeners: Sequence[Socket], config: dict[str, Any], *, group: bool, share: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a child that serves the listeners and inherits these descriptors; leave its standard input open.

    Raises:
        BrokenFarmError: This program cannot start children.
        OSError: The system refuses to start one.
    """
    import fcntl  # late: not on Windows

    command = _command()
    # If our standard streams are closed, our sockets may have their numbers, which the child needs for its own.
    passed: list[int] = []
    try:
        passed += (fcntl.fcntl(listener, fcntl.F_DUPFD_CLOEXEC, 3) for listener in listeners)
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, pass_fds=[*passed, *share], start_new_session=not group
        )
    finally:
        for descriptor in passed:
            os.close(descriptor)
    import json  # only now, as the child is starting meanwhile

    config |= {"path": import_path(), "argv": [str(argument) for argument in getattr(sys, "argv", ())]}
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has died already, as the first attempt to dial will notice
        for line in ([PACKAGE_ROOT, passed], config):
            process.stdin.write(json.dumps(line).encode() + b"\n")
        process.stdin.flush()
    return process


def _command() -> list[str]:
    """Return the command that starts a child, which then reads `_BOOT`'s line from its standard input."""
    executable = _executable()
    if not executable:
        raise BrokenFarmError(
            "cannot start a server: this program does not know its interpreter (sys.executable); "
            "name one with multiprocessing.set_executable()"
        )
    if frozen.is_frozen():
        frozen.check_supported()
        return [executable, frozen.ARGUMENT]
    # -W, -X, -O and the like, as multiprocessing passes them on
    flags: list[str] = getattr(subprocess, "_args_from_interpreter_flags", list)()
    return [executable, *flags, "-c", _BOOT]


def _executable() -> str:
    """Return the interpreter; `multiprocessing` may know another one, as in a program that embeds Python."""
    multiprocessing = sys.modules.get("multiprocessing.spawn")
    told = None if multiprocessing is None or frozen.is_frozen() else multiprocessing.get_executable()
    return os.fsdecode(told or sys.executable or "")


def _heeds_ctrl_c() -> bool:
    """Return whether SIGINT reaches this program, by default or by a handler; if not, it spares its tasks, too."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return signal.getsignal(signal.SIGINT) is not signal.SIG_IGN and signal.SIGINT not in blocked


class PrivateServer:
    """An embedded farm's server, on a unix socket in a private directory if one can be made.

    Args:
        slots: The number of workers it may have for each session.
        max_shared: How many bytes of shared objects it holds; None for half of the memory there is.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(self, slots: int, max_shared: int | None = None) -> None:
        if not hasattr(os, "fork"):
            raise BrokenFarmError(
                "an embedded farm needs a system with fork, such as Linux or macOS; "
                "on this one, pass the addresses of servers: FarmExecutor(['host:11111'])"
            )
        self._slots = slots
        self._max_shared = max_shared
        self._key = new_key()
        self._addresses: set[Address] = set()  # every address it has had
        self._lock = threading.Lock()
        self._held: Held | None = None
        self._kinship: Kinship | None = None
        self._address: Address | None = None
        self._started = 0.0
        self._early_deaths = 0
        self._ended = False

    def locate(self, lost: bool = False) -> Address:
        """Return the server's address, after starting it if it is not running or has died.

        Args:
            lost: Whether the server has been silent for too long; it is then killed and started again.

        Raises:
            BrokenFarmError: The server cannot be started, keeps dying right after its start, or has been ended.
        """
        with self._lock:
            if self._ended:
                raise BrokenFarmError("the embedded farm has been shut down")
            if lost and self._held is not None:
                self._held.process.kill()
                self._held.process.wait()
            if self._held is None or self._held.process.poll() is not None or self._address is None:
                self._note_death()
                self._clean_up()
                try:
                    self._address = self._launch()
                except OSError as error:
                    raise BrokenFarmError(f"cannot start the embedded farm: {error}") from error
                self._started = time.monotonic()
            return self._address

    def key_for(self, address: Address) -> bytes | None:
        """Return the server's key; None if the address is not one of its own."""
        return self._key if address in self._addresses else None

    def _note_death(self) -> None:
        """Give up on a server that keeps dying early, rather than restart it forever."""
        if self._held is None:
            return
        young = time.monotonic() - self._started < CHILDHOOD_SECONDS
        self._early_deaths = self._early_deaths + 1 if young else 0
        if self._early_deaths >= MAX_EARLY_DEATHS:
            raise BrokenFarmError(
                f"the embedded server ended with exit code {self._held.process.returncode} right after its start, "
                f"{self._early_deaths} times in a row; what it wrote to standard error says why"
            )

    def _launch(self) -> Address:
        address, listener, directory = _private_socket(self._key)
        self._addresses.add(address)
        try:
            kinship = Kinship()
            try:
                config = {
                    "address": str(address),
                    "slots": self._slots,
                    "directory": directory,
                    "key": self._key.hex(),
                    "files": {},
                    "embedded": True,
                    "interruptible": _heeds_ctrl_c(),
                    "max_shared": self._max_shared,
                    **kinship.words,
                }
                process = _start([listener], config, group=True, share=kinship.descriptors)
                kinship.started()
            except BaseException:
                kinship.end()
                raise
        except BaseException:
            _remove(directory)
            raise
        finally:
            listener.close()
        self._held = Held(process, directory or "", await_exit, kinship.end)
        self._kinship = kinship
        return address

    def end(self) -> None:
        """End the server for good, wait for its end, and remove its directory."""
        with self._lock:
            self._ended = True
            self._clean_up()

    def _clean_up(self) -> None:
        if self._held is not None:
            self._held.end()
        self._held = None

    def abandon(self) -> None:
        """Close our end of the pipe in a forked child, since only the parent must hold it."""
        if self._held is not None:
            self._held.abandon()
        if self._kinship is not None:
            self._kinship.end(farm_only=False)


def _private_socket(key: bytes) -> tuple[Address, Socket, str | None]:
    """Listen on a socket that only the user can reach.

    It is in a directory of its own, with the key beside it for other processes of the user that are given the
    address. Where no file can be made, as on a full or read-only disk, Linux has abstract sockets; then only the
    key keeps others out.

    Returns:
        The address, the socket, and the directory to remove, if there is one.

    Raises:
        OSError: No socket can be made.
    """
    directory = None
    try:
        directory = private_directory()
        address = Address(path=os.path.join(directory, SOCKET))
        write_key(address.path + ".key", key)
        return address, listen(address), directory
    except OSError:
        _remove(directory)
        if sys.platform == "linux":
            address = Address(path=f"\0farm-{os.urandom(16).hex()}")
            with contextlib.suppress(OSError):
                return address, listen(address), None
        raise


def _remove(directory: str | None) -> None:
    if directory:
        import shutil  # late, like all that can wait until the child has been started

        shutil.rmtree(directory, ignore_errors=True)


class Server:
    """A server started by `start_server` in the background. It lives until it, or this program, is ended.

    At its end, the program waits first for the tasks that executors have submitted, and then for the servers to
    end. In a forked child, this object looks like a server that has ended: the server belongs to the parent.

    Attributes:
        address: The address at which it listens, "host:port"; if the port was 0, with the one the system chose.
        pid: The process ID of its supervisor.
    """

    def __init__(self, address: Address, process: subprocess.Popen[bytes]) -> None:
        self.address: str = str(address)
        self.pid: int = process.pid
        self._process = process
        self._held = Held(process, "", await_exit)

    def __repr__(self) -> str:
        return f"<Server {self.address}: pid {self.pid}, {'ended' if self.ended else 'running'}>"

    @property
    def ended(self) -> bool:
        """Whether the server's process has ended."""
        return self._process.poll() is not None

    def drain(self) -> None:
        """Refuse new clients, ask present ones to take their work elsewhere, and end after the running tasks."""
        if not self.ended:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the server to end, for at most that many seconds; return whether it has ended."""
        (timeout,) = checked("Server.wait", timeout=timeout)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self) -> None:
        """End the server at once, even if it has clients, and wait for its end."""
        kept.forget(self)
        self._held.end()

    def let_go(self) -> None:
        """End the server like `end`, without waiting for it."""
        self._held.let_go()

    def abandon(self) -> None:
        """Close our end of the pipe in a forked child, since only the parent must hold it."""
        self._held.abandon()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()


def is_encrypted(keys: Sequence[Key]) -> bool:
    """Return whether every key requires TLS."""
    return all(key.tls is not None and key.tls.server is not None for key in keys)


def check_exposure(address: Address, insecure: bool, keys: Sequence[Key], doing: str = "listen on") -> None:
    """Refuse to listen, or what is done instead, unencrypted at an address of others, unless that is allowed.

    Raises:
        AddressError: The address is not local, one of the keys is without TLS, and ``insecure`` is false.
    """
    if not address.is_local and not is_encrypted(keys) and not insecure:
        raise AddressError(
            f"refusing to {doing} {address}: with a key that has no certificate nothing is encrypted, so that "
            "whoever can see the network can read and change what is sent. Make a key file for TLS with "
            "farm-executor keygen and name it with key_file= (on the command line --key-file); or listen on "
            "127.0.0.1 and reach it through an ssh tunnel; or, in a network that you trust, pass insecure=True "
            "(on the command line --insecure)"
        )


def start_server(
    host: str,
    port: int,
    *,
    background: bool = False,
    name: str | None = None,
    workers: int | None = None,
    key: bytes | None = None,
    key_file: PathLike | Iterable[PathLike] | None = None,
    certificate: PathLike | None = None,
    private_key: PathLike | None = None,
    client_ca: PathLike | None = None,
    insecure: bool = False,
    env: Mapping[str, str] | None = None,
    max_shared: int | None = None,
) -> Server:
    """Start a server.

    Args:
        host: The host on which to listen, at each address that it resolves to. Addresses that other machines can
            reach need TLS, or ``insecure``.
        port: The port; 0 for a free one.
        background: Whether to return at once. The server then lives until it is ended (by `Server.end`, by
            `end_server`, by a signal) or this program ends, whether the returned object is kept or not. If false,
            return when the server has ended.
        name: A label, shown by `status`.
        workers: The number of workers each client may have; None for one per CPU.
        key: The secret that admits clients. None: see `farm_executor.wire.security` for where it is found.
        key_file: A file that holds it, and a certificate for TLS if ``farm-executor keygen`` made it. If there are
            several files, each key admits; code in the workers uses the first.
        certificate: A PEM file with a certificate of your own, for TLS. A context cannot be given, because the
            server is another process.
        private_key: A PEM file with its private key, not encrypted; None if that is in the same file.
        client_ca: A PEM file with the CAs that sign the certificates clients must have; None if they need none.
        insecure: Whether to listen unencrypted on an address that others can reach.
        env: Environment variables of each worker, set before anything of yours is imported there. ``{slot}`` in a
            value is the worker's number, from 0 on: ``{"CUDA_VISIBLE_DEVICES": "{slot}"}``. None: none.
        max_shared: How many bytes of objects that clients share it holds, for all of them together. None: half of
            the memory there is.

    Returns:
        The server, a child process.

    Raises:
        AddressError: The host or port is invalid, or the address is exposed without TLS or ``insecure``.
        AuthenticationError: A file is missing, does not hold what it should, or may be read by others.
        OSError: The port is in use, or the host is not this machine. This is raised even with ``background``.
        TypeError, ValueError: An argument is invalid; the message names it.
    """
    address = parse_address((host, port), any_port=True)
    background, name, workers, key, key_file, certificate, private_key, client_ca, insecure, env, max_shared = (
        checked(
            "start_server",
            background=background,
            name=name,
            workers=workers,
            key=key,
            key_file=key_file,
            certificate=certificate,
            private_key=private_key,
            client_ca=client_ca,
            insecure=insecure,
            env=env,
            max_shared=max_shared,
        )
    )
    files = {
        "key_file": _absolute(key_file),
        "certificate": _absolute(certificate),
        "private_key": _absolute(private_key),
        "client_ca": _absolute(client_ca),
    }
    check_exposure(address, insecure, server_keys(key, **files, make=False))
    listeners = listen_everywhere(address)
    try:
        server_keys(key, files["key_file"])  # made if need be, now that listening has succeeded; the child reads it
        address = bound_address(listeners[0], address)
        config = {
            "address": str(address),
            "slots": workers or default_slots(),
            "name": name or "",
            "directory": None,
            "key": None if key is None else bytes(key).hex(),
            "files": files,
            "env": env,
            "max_shared": max_shared,
            "parent": {"authkey": authkey()} if background else {},
        }
        server = Server(address, _start(listeners, config, group=False))
    finally:
        for listener in listeners:
            listener.close()
    if background:
        kept.keep(server)
    else:
        with server:
            _wait_in_foreground(server)
    return server


def _absolute(path: PathLike | Iterable[PathLike] | None) -> Any:
    """Make paths absolute, in a form that JSON takes."""
    if path is None or isinstance(path, (str, os.PathLike)):
        return None if path is None else os.path.abspath(path)
    return [os.path.abspath(each) for each in path]


def _wait_in_foreground(server: Server) -> None:
    """Wait for the end. Ctrl-C drains; a second Ctrl-C ends at once, by leaving the caller's with block."""
    try:
        server.wait()
    except KeyboardInterrupt:
        server.drain()
        server.wait()
