"""A real OpenSSH server on loopback, with keys of its own, and the client's configuration that reaches it."""

import contextlib
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import cloudpickle
import tblib
from server.processes import DEADLINE, wait_until
from server.serving import DIE_WITH_TESTS, TESTS

import farm_executor

SSHD = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
WHY_NOT = "" if SSHD and shutil.which("ssh") else "OpenSSH's server and client are not both installed"


class Sshd:
    """It lets in whoever runs the tests, by a key. Its sessions have the tests' packages, and a mark.

    Attributes:
        mark: A word in the environment of whatever runs in its sessions.
        folder: Its files: ``config`` is for ``ssh -F``, ``known_hosts``, ``id``.
        port: Where it listens.
    """

    def __init__(self, **settings: str) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="sshd-")
        self.folder = Path(self._temporary.name)
        self.mark = f"sshd-{uuid.uuid4()}"
        for name in ("host", "id", "stranger"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.folder / name)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        shutil.copy(self.folder / "id.pub", self.folder / "authorized_keys")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        host_key = (self.folder / "host.pub").read_text()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}")
        # Where the tests find the package, what it needs and what tasks import: so that any interpreter does.
        modules = (farm_executor, cloudpickle, tblib)
        path = os.pathsep.join([TESTS, *(str(Path(module.__file__).parents[1]) for module in modules)])
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # python3 is the tests'
        chosen = {
            "Port": self.port,
            "ListenAddress": "127.0.0.1",
            "HostKey": self.folder / "host",
            "AuthorizedKeysFile": self.folder / "authorized_keys",
            "StrictModes": "no",
            "UsePAM": "no",
            "PidFile": "none",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            "MaxStartups": "100",
            "SetEnv": f"FARM_TEST_MARK={self.mark} PYTHONPATH={path}",
            # The shell that runs it may have changed the path, as a user's start-up files do.
            "ForceCommand": f'PATH={shlex.quote(programs)} exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"',
            **settings,
        }
        (self.folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in chosen.items()))
        self.configure()
        if os.getuid() == 0:  # it demands that directory, which the system makes when it starts its own server
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        serve = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"{DIE_WITH_TESTS}; import os; os.execv({SSHD!r}, {serve!r})"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, "it answers")

    def configure(self, **settings: str) -> str:
        """Write a client's configuration, in which every name stands for this server; return ssh's command."""
        chosen = {
            "HostName": "127.0.0.1",
            "Port": self.port,
            "User": getpass.getuser(),
            "IdentityFile": self.folder / "id",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": self.folder / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            **settings,
        }
        file = self.folder / f"config-{len(list(self.folder.glob('config-*')))}"
        file.write_text("Host *\n" + "".join(f"  {name} {value}\n" for name, value in chosen.items()))
        return f"ssh -F {shlex.quote(str(file))}"

    @property
    def ssh(self) -> str:
        """For the environment variable FARM_EXECUTOR_SSH."""
        return f"ssh -F {shlex.quote(str(self.folder / 'config-0'))}"

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
            return True
        return False

    def stop(self) -> None:
        """Have it answer nobody, without refusing anybody."""
        self.process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(DEADLINE)
        self._temporary.cleanup()
