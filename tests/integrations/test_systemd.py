"""The units for systemd that the documentation shows are what systemd understands."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import test_docs

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "run-as-a-service.md"

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def _verify(folder, unit):
    """What systemd says against a unit; the server's own file need not be where the page has it."""
    file = folder / "farm-executor.service"
    file.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", unit, flags=re.M))
    done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, timeout=60)
    # It looks at all units that this one names, some of which a container has not.
    return [line for line in done.stderr.splitlines() if file.name in line]


def test_the_unit_of_a_service_is_understood(tmp_path):
    unit, credential = (block.text for block in test_docs._blocks(PAGE) if block.language == "ini")
    own_key = unit.replace(
        "Environment=FARM_EXECUTOR_KEY_FILE=/etc/farm_executor/key\n", credential.split("\n", 1)[1]
    )

    assert own_key != unit
    assert _verify(tmp_path, unit) == []
    assert _verify(tmp_path, own_key) == []
    assert _verify(tmp_path, unit.replace("KillMode=mixed", "KillMode=nobody")) != []
