"""Start servers on other machines with the system's ssh, and reach them through its tunnel.

This module owns the near end: ssh's command line, its timeouts, and the meaning of its failures. It must not know
what the remote end does, which is in `remote`.

One ssh process does everything: it runs Python on the remote machine and forwards a unix socket in a private
directory here to one in a private directory there, so that no port is opened on either side. The server's
configuration, the key included, is sent through ssh's standard input, never on a command line. Standard input stays
open; its end means that this process is gone, and ends the server. The user is never asked for a password, and the
user's configuration of ssh applies.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from farm_executor._version import __version__
from farm_executor.admin import ask
from farm_executor.client.launching import FindKey, Locate
from farm_executor.core.messages import MAX_MESSAGE
from farm_executor.core.text import one_line
from farm_executor.errors import AuthenticationError, BrokenFarmError, FarmError
from farm_executor.launch import background
from farm_executor.launch.held import Held
from farm_executor.launch.place import SOCKET, private_directory
from farm_executor.wire.address import Address, Ssh
from farm_executor.wire.security import new_key, write_key

__all__ = ["SSH_VARIABLE", "SshServer", "end_servers", "source_of", "start_servers"]

SSH_VARIABLE = "FARM_EXECUTOR_SSH"
START_SECONDS = 30.0  # for the whole start, until the server has answered through the tunnel
CONNECT_SECONDS = 10  # for ssh to connect and agree on keys
ALIVE_SECONDS, ALIVE_COUNT = 10, 3  # ssh ends after that many unanswered probes, at that interval
MAX_LINE = 64 * 1024  # bytes of one line that start-up files may print before our first message
SHOWN_LINES = 3  # lines of ssh's own output shown in errors

# A shared connection (ControlPath) would leave the tunnel to a process that is not ours to end. A forwarding of the
# user's own may fail, as it does while another session holds it, and must not stop ours; we test ours ourselves.
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": str(CONNECT_SECONDS),
    "ServerAliveInterval": str(ALIVE_SECONDS),
    "ServerAliveCountMax": str(ALIVE_COUNT),
    "ClearAllForwardings": "no",
    "ExitOnForwardFailure": "no",
    "StreamLocalBindUnlink": "yes",
    "StreamLocalBindMask": "0177",
    "ControlMaster": "no",
    "ControlPath": "none",
    "RemoteCommand": "none",
}

# This goes on the command line, so any shell must be able to parse it: no line breaks, no quotes, no secrets.
# Nothing is imported from the home directory, which is the current one there.
_COMMAND = (
    "import sys; sys.path[:] = filter(None, sys.path); import json; exec(json.loads(sys.stdin.buffer.readline()))"
)
_BOOT = """\
config = json.loads(sys.stdin.buffer.readline())
try:
    from farm_executor.launch.remote import run_remote
except Exception as error:
    words = {"error": type(error).__name__ + ": " + str(error)}
    if isinstance(error, ImportError):
        words["missing"] = str(error.name)
    print(config["mark"] + json.dumps(words), flush=True)
else:
    run_remote(config)
import os
os._exit(0)
"""


class SshServer:
    """A server on another machine, started over ssh and reached through its tunnel.

    Args:
        address: An address with ``ssh``.
        embedded: Whether the server belongs to one client.

    Raises:
        BrokenFarmError: This system has no unix sockets.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(self, address: Address, *, embedded: bool = True) -> None:
        assert address.ssh is not None
        if sys.platform == "win32":
            raise BrokenFarmError(
                f"cannot start {address}: the tunnel needs unix sockets. Start a server there by hand, "
                "make a tunnel with ssh -o ExitOnForwardFailure=yes -L, and pass its end here: "
                "FarmExecutor(['127.0.0.1:11111'])"
            )
        self._target = address
        self._ssh = address.ssh
        self._embedded = embedded
        self._lock = threading.Lock()
        self._held: Held | None = None
        self._address: Address | None = None  # set while the server is up
        self._was_up = False
        self._ended = False

    def __repr__(self) -> str:
        return f"<SshServer {self._target}: {'up' if self._address else 'not up'}>"

    def __str__(self) -> str:
        return str(self._target)

    @property
    def address(self) -> str:
        """The local end of the tunnel, for this user's clients to dial; empty if the server is not up."""
        return f"unix:{self._address.path}" if self._address else ""

    def fileno(self) -> int:
        """Return a descriptor for selectors, readable when the server that `locate` started has ended."""
        assert self._held is not None
        assert self._held.process.stdout is not None
        return self._held.process.stdout.fileno()

    def look(self) -> list[tuple[Address, Locate]]:
        """See `client.launching.Source`."""
        return [(self._target, self.locate)]

    def watch(self, changed: Callable[[], None]) -> None:
        """Do nothing: see `client.launching.Source`."""

    def attend(self, view: Any, remove: Any) -> None:
        """Do nothing: see `client.launching.Source`."""

    def locate(self, lost: bool = False) -> Address:
        """Return the local end of the tunnel, after starting the server if it is not running or has died.

        Args:
            lost: Whether the server has been silent for too long; ssh is then killed and the server started again.

        Raises:
            AuthenticationError: ssh is not let in, or does not know the host's key.
            BrokenFarmError: There is no ssh here, no such Python or no farm_executor there, or tunnels are
                forbidden there; or the server has been ended. Once the server has been up, only the last of these
                is raised, since the others may pass then.
            VersionMismatchError: The other side speaks another version of the protocol.
            OSError: The server cannot be reached, or was not up within `START_SECONDS`; worth trying again.

        Blocking: up to `START_SECONDS`; `end` cuts that short.
        """
        with self._lock:
            self._check_not_ended()
            if lost and self._held is not None:
                self._held.process.kill()
                self._held.process.wait()
            if self._held is None or self._address is None or self._held.process.poll() is not None:
                self._clean_up()
                try:
                    self._address = self._start(time.monotonic() + START_SECONDS)
                except BaseException as error:
                    if self._held is not None:
                        self._held.process.kill()
                    self._clean_up()
                    self._check_not_ended()
                    if self._was_up and isinstance(error, FarmError):
                        raise ConnectionError(str(error)) from error
                    raise
                self._was_up = True
            return self._address

    @property
    def ended(self) -> bool:
        """Whether the server has been ended for good."""
        return self._ended

    def let_go(self) -> None:
        """Make the server end, even while it is starting, without waiting for it."""
        # Do not take the lock: `locate` holds it for the whole start, which this must be able to cut short.
        self._ended = True
        held = self._held
        if held is not None:
            if self._address is None:
                held.process.kill()  # a thread waiting in `locate` will notice
            else:
                held.let_go()

    def end(self) -> None:
        """End the server for good, wait for its end, and remove its files here."""
        background.forget(self)
        self.let_go()
        with self._lock:
            self._clean_up()

    def abandon(self) -> None:
        """Release the server in a forked child; it belongs to the parent."""
        if self._held is not None:
            self._held.abandon()

    def wait(self) -> str:
        """Wait until the server that `locate` started has ended; return the reason as far as ssh gives one."""
        assert self._held is not None
        code = self._held.process.wait()
        said = _log(self._held.directory)
        return f"{self._ssh}: ssh ended with {code}{'; it said: ' if said else ''}{said}"

    def __enter__(self) -> SshServer:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    def _check_not_ended(self) -> None:
        if self._ended:
            raise BrokenFarmError(f"the server {self._target} has been ended")

    def _clean_up(self) -> None:
        self._address = None
        if self._held is not None:
            self._held.end()
        self._held = None

    def _start(self, deadline: float) -> Address:
        mark = secrets.token_hex(16)
        try:
            directory = private_directory()
        except OSError as error:
            raise BrokenFarmError(f"no place for this machine's end of a tunnel: {error}") from error
        near, far = os.path.join(directory, SOCKET), f"/tmp/farm-{mark}/socket"
        try:
            key = new_key()
            write_key(near + ".key", key)
            process = _run_ssh(self._ssh, near, far, _log_file(directory))
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        held = self._held = Held(process, directory, _await_end)
        if self._ended:  # `let_go` came before `_held` was set, so it had nothing to kill
            process.kill()
        config = {
            "mark": mark,
            "path": far,
            "key": key.hex(),
            "slots": self._ssh.workers,
            "embedded": self._embedded,
            "name": str(self._ssh._replace(env=())),
            "env": list(self._ssh.env),
        }
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already, as reading will tell at once
            process.stdin.write(b"".join(json.dumps(line).encode() + b"\n" for line in (_BOOT, config)))
        word = _next_word(process, mark, deadline)
        if word is None:
            said = _log(held.directory)
            raise TimeoutError(
                f"cannot start {self._ssh}: no answer within {START_SECONDS:.0f} s"
                f"{'; ssh said: ' if said else ''}{said}"
            )
        if "error" in word:
            raise _explain_word(self._ssh, word)
        if "ready" not in word:
            process.wait()
            raise _explain(self._ssh, process.returncode, _log(held.directory))
        address = self._target._replace(path=near)
        try:
            ask(address, "ping", max(deadline - time.monotonic(), 0.001))
        except OSError as error:
            said = _log(held.directory) or str(error)
            raise _explain(self._ssh, process.poll(), said) from error
        return address


def source_of(address: Address, find_key: FindKey) -> SshServer:
    """Return the source for an address, see `client.launching`; the server gets a key of its own."""
    return SshServer(address)


def start_servers(addresses: Sequence[Address], *, embedded: bool = False) -> list[SshServer]:
    """Start servers, all at the same time.

    Returns:
        The servers, once all are up.

    Raises:
        AuthenticationError, BrokenFarmError, VersionMismatchError, OSError: See `SshServer.locate`. The error is
            that of the first server that failed; all others are ended.
    """
    servers = [SshServer(address, embedded=embedded) for address in addresses]
    with ThreadPoolExecutor(len(servers) or 1, thread_name_prefix="farm-starter") as threads:
        try:
            for started in [threads.submit(server.locate) for server in servers]:
                started.result()
        except BaseException:
            end_servers(servers)
            raise
    return servers


def end_servers(servers: Sequence[SshServer]) -> None:
    """End servers, all at the same time, and wait for their ends."""
    for server in servers:
        server.let_go()
    for server in servers:
        server.end()


# -- ssh ----------------------------------------------------------------------------------------------------


def _run_ssh(ssh: Ssh, near: str, far: str, log_file: str) -> subprocess.Popen[bytes]:
    """Run ssh in a session of its own, so that Ctrl-C in the terminal does not reach it."""
    try:
        program = shlex.split(os.environ.get(SSH_VARIABLE) or "ssh")
    except ValueError as error:
        raise BrokenFarmError(f"cannot read the environment variable {SSH_VARIABLE}: {error}") from None
    command = [*program, "-T", "-E", log_file, "-L", f"{near}:{far}"]
    command += [part for name, value in _OPTIONS.items() for part in ("-o", f"{name}={value}")]
    command += ["-l", ssh.user] if ssh.user else []
    command += ["-p", str(ssh.port)] if ssh.port else []
    command += ["--", ssh.host, f"exec {shlex.quote(_python(ssh))} -c {shlex.quote(_COMMAND)}"]
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
    except (FileNotFoundError, PermissionError) as error:
        raise BrokenFarmError(
            f"cannot run {program[0]}, which starts {ssh}: {error.strerror}; install OpenSSH's client, or name it "
            f"in the environment variable {SSH_VARIABLE}"
        ) from None


def _python(ssh: Ssh) -> str:
    """Return the interpreter as given to the remote shell, which runs the command in the home directory."""
    return "./" + ssh.python[2:] if ssh.python.startswith("~/") else ssh.python or "python3"


def _next_word(process: subprocess.Popen[bytes], mark: str, deadline: float) -> dict[str, Any] | None:
    """Return the next message of the remote end: {} if it has ended, None if none arrives in time."""
    assert process.stdout is not None
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(deadline - time.monotonic(), 0.0)):
                return None
            data = os.read(process.stdout.fileno(), 4096)
            if not data:
                return {}
            *lines, line = (line + data).split(b"\n")
            for one in lines:
                if one.startswith(mark.encode()):
                    word: dict[str, Any] = json.loads(one[len(mark) :])
                    return word
            line = line[:MAX_LINE]


def _await_end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until the remote end reports its end or ssh ends; then end ssh.

    By itself, ssh would wait for any remote process that still has its standard error open.
    """
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.select(seconds)
    process.terminate()
    process.wait(max(deadline - time.monotonic(), 1.0))


# -- the meaning of failures --------------------------------------------------------------------------------

_ASKS = "nobody is asked for a password here: first make `{ssh} true` succeed without a question"
_FINAL = [
    ("Permission denied (", AuthenticationError, _ASKS),
    ("Too many authentication failures", AuthenticationError, _ASKS),
    ("Host key verification failed", AuthenticationError, "check its key, and connect once by hand: `{ssh} true`"),
    ("open failed", BrokenFarmError, "its ssh server allows no tunnel to a socket: see AllowStreamLocalForwarding"),
    ("Bad configuration option", BrokenFarmError, "mend the configuration of ssh"),
    ("Bad owner or permissions", BrokenFarmError, "mend the configuration of ssh"),
    ("no matching ", BrokenFarmError, "mend the configuration of ssh, here or there"),
]
"""Signs in ssh's output of lasting failures, with the error to raise and the advice to give."""


def _explain(ssh: Ssh, code: int | None, said: str) -> Exception:
    """Return the error for an ssh that has ended, or that has not provided the tunnel.

    Args:
        ssh: The server to be started.
        code: ssh's exit code: 255 if ssh itself failed, else that of the remote Python; None while ssh runs.
        said: The last of ssh's own output.
    """
    begin, words = f"cannot start {ssh}", f"; ssh said: {said}" if said else ""
    by_hand = _by_hand(ssh)
    for sign, kind, what_to_do in _FINAL:
        if sign in said:
            return kind(f"{begin}: {what_to_do.format(ssh=by_hand)}{words}")
    if code == 127:
        return BrokenFarmError(
            f"{begin}: there is no {_python(ssh)}; name an interpreter in which farm_executor is installed: "
            f"ssh://{ssh.host}?python=/path/to/python"
        )
    if code is None or code == 255 or code < 0:
        return ConnectionError(f"{begin}: {'no way through' if code is None else f'ssh ended with {code}'}{words}")
    return BrokenFarmError(
        f"{begin}: {_python(ssh)} ended with exit code {code}; standard error may say why, and so may "
        f"`{by_hand} {shlex.quote(_python(ssh))} -m farm_executor --version`{words}"
    )


def _explain_word(ssh: Ssh, word: dict[str, Any]) -> Exception:
    """Return the error for a failure that the remote end has reported."""
    begin, error = f"cannot start {ssh}", one_line(str(word.get("error")), MAX_MESSAGE)
    if "missing" in word:
        return BrokenFarmError(
            f"{begin}: farm_executor {__version__} is not installed for {_python(ssh)} there ({error}); "
            f"install it, or name another interpreter: ssh://{ssh.host}?python=/path/to/python"
        )
    return BrokenFarmError(f"{begin}: {error}")


def _by_hand(ssh: Ssh) -> str:
    port = f"-p {ssh.port} " if ssh.port else ""
    user = f"{ssh.user}@" if ssh.user else ""
    return f"ssh {port}{user}{ssh.host}"


def _log_file(directory: str) -> str:
    return os.path.join(directory, "ssh.log")


def _log(directory: str) -> str:
    """Return the last lines of ssh's own log."""
    try:
        with open(_log_file(directory), errors="replace") as file:
            lines = [line.strip() for line in file]
    except OSError:
        return ""
    return " / ".join(line[:500] for line in [line for line in lines if line][-SHOWN_LINES:])
