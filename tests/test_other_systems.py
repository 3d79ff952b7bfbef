"""A client works without what only Linux, or only Unix, has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import farm_executor
from farm_executor import start_server

ROOT = Path(farm_executor.__file__).parents[1]
PROGRAM = Path(__file__).with_name("other_systems.py")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a server needs fork")


@pytest.mark.parametrize("system", ["macos", "windows"])
def test_a_client_works_without_what_its_system_lacks(system, no_leaks):
    with start_server("127.0.0.1", 0, background=True, workers=2) as server:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), system, server.address],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )

    assert (done.stdout, done.returncode) == ("all is well\n", 0), done.stderr
