"""A script in srun's place: it does as srun does, on this machine."""

import os

import pytest

from farm_executor.launch import errand, slurm
from farm_executor.launch.slurm import SRUN_VARIABLE

SRUN = """#!/bin/bash
echo "$@" >> {folder}/asked
echo "srun: job 17 queued and waiting for resources" >&2
{does}
export SLURM_JOB_ID=17 SLURMD_NODENAME=n1 SLURM_LAUNCH_NODE_IPADDR=127.0.0.1 CUDA_VISIBLE_DEVICES=4,5,6,7
echo "srun: job 17 has been allocated resources" >&2
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""


@pytest.fixture
def srun(tmp_path, monkeypatch):
    """Puts a script in srun's place, which does that before it runs the job; returns what it was asked."""
    monkeypatch.setattr(errand, "LISTEN", "127.0.0.1")
    monkeypatch.setattr(slurm, "AGAIN_SECONDS", 0.01)
    (tmp_path / "asked").touch()

    def become(does="true", squeue="exit 1"):
        for name, text in (
            ("srun", SRUN.format(folder=tmp_path, does=does)),
            ("squeue", f"#!/bin/bash\n{squeue}\n"),
        ):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o700)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.delenv(SRUN_VARIABLE, raising=False)
        return lambda: (tmp_path / "asked").read_text().splitlines()

    return become
