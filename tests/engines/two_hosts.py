"""Two more machines, hostA and hostB, for as long as a command runs on a third: this one, as if it were new.

    python tests/engines/two_hosts.py pytest tests/engines/test_two_hosts.py

Each is a namespace of networks, of mounts and of names: a cable leads from this machine to each host, `hostA` and
`hostB` are names that resolve, each machine has an empty home directory of its own, and ssh leads to the hosts.
Other files, Python with its packages and the processors are what there is. It needs root, OpenSSH, `unshare`, `ip`
and `mount`; what it lacks it says, and ends with 0 without having run the command.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import alone

HOSTS = {"hostA": "10.98.1.2", "hostB": "10.98.2.2"}
SSHD = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
DEADLINE = 20.0

# A host waits for the other end of its cable, which is put into it from outside.
HOST = """\
hostname {name}
mount --bind {folder}/{name}.passwd /etc/passwd
ip link set lo up
until ip link show eth0 > /dev/null 2>&1; do sleep 0.02; done
ip address add {address}/24 dev eth0
ip link set eth0 up
cd {folder}/{name}
exec {sshd} -D -e -f {folder}/sshd_config -o PidFile=none > {folder}/{name}.log 2>&1
"""


def why_not() -> str:
    """What is lacking; empty if nothing is."""
    if reason := alone.why_not():
        return reason
    lacking = [name for name in ("ssh", "ssh-keygen", "scp", "mount") if not shutil.which(name)]
    if SSHD is None:
        lacking.append("sshd")
    return f"it needs {', '.join(lacking)}" if lacking else ""


def run(command: list[str]) -> int:
    """Run the command beside the hosts, within the namespaces."""
    with tempfile.TemporaryDirectory(prefix="hosts-") as name:
        folder = Path(name)
        known = Path("/etc/passwd").read_text().splitlines(keepends=True)
        others = "".join(line for line in known if not line.startswith("root:"))
        for machine in ("here", *HOSTS):
            (folder / machine).mkdir(mode=0o700)
            ours = f"root:x:0:0:root:{folder / machine}:/bin/sh\n"
            (folder / f"{machine}.passwd").write_text(ours + others)
        names = "".join(f"{address} {name}\n" for name, address in HOSTS.items())
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        _configure_ssh(folder)
        subprocess.run(["mount", "--bind", folder / "hosts", "/etc/hosts"], check=True)
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # which sshd demands of root
        hosts = [_start(name, address, folder) for name, address in HOSTS.items()]
        subprocess.run(["mount", "--bind", folder / "here.passwd", "/etc/passwd"], check=True)
        try:
            for name in HOSTS:
                _wait_for(name, folder)
            environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
            environment |= {"HOME": str(folder / "here"), "PATH": _path(), "FARM_EXECUTOR_TESTS_HOSTS": "1"}
            return subprocess.run(command, env=environment).returncode
        finally:
            for host in hosts:
                host.send_signal(signal.SIGTERM)
                host.wait()
            for file in ("/etc/passwd", "/etc/hosts"):  # which lie in the folder that goes
                subprocess.run(["umount", "-l", file], check=True)


def _path() -> str:
    """Where all three machines find this Python, and the command that is installed for it."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def _configure_ssh(folder: Path) -> None:
    """Have each host let in this machine's user, whose ssh knows the hosts: as it is where ssh is in use."""
    for name in ("host", "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    ours = folder / "here" / ".ssh"
    ours.mkdir(mode=0o700)
    shutil.move(folder / "id_ed25519", ours)
    key = (folder / "host.pub").read_text()
    (ours / "known_hosts").write_text("".join(f"{name} {key}{address} {key}" for name, address in HOSTS.items()))
    settings = {
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "id_ed25519.pub",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "MaxStartups": 100,
        "SetEnv": f"PATH={_path()} PYTHONPATH={os.environ.get('PYTHONPATH', '')}",
        "Subsystem": "sftp internal-sftp",
    }
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))


def _start(name: str, address: str, folder: Path) -> "subprocess.Popen[bytes]":
    script = HOST.format(name=name, address=address, folder=folder, sshd=SSHD)
    host = subprocess.Popen(["unshare", "-n", "-m", "-u", "--propagation", "private", "sh", "-ec", script])
    ours = os.readlink("/proc/self/ns/net")
    deadline = time.monotonic() + DEADLINE
    while os.readlink(f"/proc/{host.pid}/ns/net") == ours:  # until it has entered its own
        assert time.monotonic() < deadline
        time.sleep(0.01)
    cable, gateway = f"to-{name}", address.rpartition(".")[0] + ".1"
    ip = ["ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid)]
    subprocess.run(ip, check=True)
    subprocess.run(["ip", "address", "add", f"{gateway}/24", "dev", cable], check=True)
    subprocess.run(["ip", "link", "set", cable, "up"], check=True)
    return host


def _wait_for(name: str, folder: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    while subprocess.run(["ssh", "-o", "BatchMode=yes", name, "true"], stderr=subprocess.DEVNULL).returncode:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} does not answer: {(folder / f'{name}.log').read_text()[-2000:]}")
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(alone.run("farm of two hosts", why_not, run))
