"""The farm of Docker Compose, for real: ``nox -s containers``, by a Docker and its Compose that must be here.

The image is built from the project's Dockerfile, under a name of its own, and removed at the end. The folder is a
copy, as program and key are put beside the file.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(not os.environ.get("CONTAINERS"), reason="nox -s containers has it: Docker builds an image"),
    pytest.mark.timeout(900),
]

ROOT = Path(__file__).parents[2]
FILES = ("docs/examples/docker/compose.yaml", "docs/examples/kubernetes/Dockerfile")
PROGRAM = """\
import socket
import time

from farm_executor import FarmExecutor


def task(number):
    time.sleep(0.02)
    return socket.gethostname(), number


deadline = time.monotonic() + 60
with FarmExecutor("farm://server:11111?all") as farm:
    farm.connect()
    while sum(server.up for server in farm.statistics().servers) < 3:
        assert time.monotonic() < deadline, farm.statistics()
        time.sleep(0.1)
    results = list(farm.map(task, range(600)))
assert [number for _, number in results] == list(range(600))
print(len({host for host, _ in results}), "hosts")
"""


@pytest.fixture
def compose(tmp_path):
    """`docker compose` with some words, in the folder of the example."""
    image = f"farm-test-{secrets.token_hex(4)}"
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / name, tmp_path / name)
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path / "dist", ROOT]
    subprocess.run(wheel, check=True)
    file = tmp_path / FILES[0]
    file.write_text(file.read_text("utf-8").replace("farm:0.1.0", f"{image}:0"), "utf-8")
    (file.parent / "app").mkdir()
    (file.parent / "app" / "main.py").write_text(PROGRAM, "utf-8")
    subprocess.run([sys.executable, "-m", "farm_executor", "keygen", file.parent / "farm.key"], check=True)

    def call(*words):
        command = ["docker", "compose", "--project-name", image, *words]
        environment = {**os.environ, "FARM_UID": str(os.getuid())}
        done = subprocess.run(command, cwd=file.parent, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    yield call
    call("down", "--timeout", "10", "--rmi", "all", "--volumes")


def test_a_program_uses_all_servers_of_the_file_and_these_end_well(compose):
    compose("up", "--detach", "--build", "--scale", "server=3")
    compose("wait", "program")

    assert "3 hosts" in compose("logs", "--no-log-prefix", "program")

    compose("stop", "--timeout", "30")
    lines = compose("ps", "--all", "--format", "json").splitlines()
    ended = {each["Name"]: (each["State"], each["ExitCode"]) for each in map(json.loads, lines)}

    assert len(ended) == 4
    assert set(ended.values()) == {("exited", 0)}
