"""A Slurm cluster of two "nodes" on this machine, for as long as a command runs, in a network that has nobody else.

    python tests/engines/slurm_cluster.py pytest tests/engines/test_slurm.py

It needs root, `unshare`, `ip`, and Debian's packages slurm-wlm and munge, which it installs where it can. What it
lacks it says, and ends with 0 without having run the command: nothing of that is a fault of the project.

Network and process ids are namespaces of their own: no port is seen outside, and all processes end with it.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from engines import alone

PACKAGES = {"srun": "slurm-client", "slurmctld": "slurmctld", "slurmd": "slurmd", "munged": "munge"}
HERE = (
    "10.99.0.1"  # on the loopback device, but not of 127.0.0.0/8: Slurm resolves no name where there is only that
)
DEADLINE = 60.0

CONF = """\
ClusterName=test
SlurmctldHost={host}({here})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort=26817
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,defer_batch
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
SwitchType=switch/none
InactiveLimit=0
KillWait=3
MinJobAge=10
NodeName=n1 NodeHostname={host} NodeAddr={here} Port=26818 CPUs=4 RealMemory=1000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr={here} Port=26819 CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """What is lacking; empty if nothing is."""
    if reason := alone.why_not():
        return reason
    lacking = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    return _install(lacking) if lacking else ""


def _install(packages: list[str]) -> str:
    """Install Debian's packages; return why they cannot be, or nothing."""
    if not shutil.which("apt-get"):
        return f"it needs {', '.join(packages)}, and there is no apt-get"
    install = ("install", "--yes", "--no-install-recommends", *packages)
    for arguments in (install, ("update",), install):  # the lists of packages may be missing, or old
        # Where no mirror answers, apt-get goes on trying for many minutes.
        command = ["timeout", "90", "apt-get", *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if arguments is install and not done.returncode:
            return ""
    return f"{', '.join(packages)} cannot be installed: {done.stderr.strip()[-200:]}"


def run(command: list[str]) -> int:
    """Run the command beside the cluster, within the namespaces."""
    subprocess.run(["ip", "address", "add", f"{HERE}/32", "dev", "lo"], check=True)
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        for part in ("state", "spool.n1", "spool.n2"):
            (folder / part).mkdir()
        key = folder / "munge.key"
        key.touch(0o400)
        key.write_bytes(secrets.token_bytes(128))
        conf = folder / "slurm.conf"
        conf.write_text(CONF.format(host=socket.gethostname(), here=HERE, folder=folder))
        os.environ.update({"SLURM_CONF": str(conf), alone.ON: "slurm://debug"})
        files = [f"--{one}={folder}/munge.{one.split('-')[0]}" for one in ("socket", "pid-file", "log-file")]
        subprocess.run(["munged", f"--key-file={key}", f"--seed-file={folder}/seed", "--force", *files], check=True)
        subprocess.run(["slurmctld", "-f", conf], check=True)
        for node in ("n1", "n2"):
            subprocess.run(["slurmd", "-f", conf, "-N", node], check=True)
        deadline = time.monotonic() + DEADLINE
        while "idle" not in subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout:
            if time.monotonic() > deadline:
                print((folder / "slurmctld.log").read_text()[-2000:])
                return 1
            time.sleep(0.1)
        return subprocess.run(command).returncode  # everything here ends with this process


if __name__ == "__main__":
    sys.exit(alone.run("Slurm", why_not, run))
