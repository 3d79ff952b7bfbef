"""The file for Docker Compose: what its containers run is what there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from farm_executor.cli import _parser

FOLDER = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture(scope="module")
def services():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((FOLDER / "docker" / "compose.yaml").read_text("utf-8"))["services"]


def test_it_fits_the_schema_of_compose():
    pytest.importorskip("check_jsonschema")
    file = FOLDER / "docker" / "compose.yaml"
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", file]
    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout


def test_the_commands_are_ours(services):
    server = services["server"]
    check = server["healthcheck"]["test"]
    parser = _parser()[0]

    assert parser.parse_args(server["command"]).workers == 2
    assert check[:2] == ["CMD", "farm-executor"]
    assert parser.parse_args(check[2:])


def test_the_image_is_built_from_the_file_that_there_is(services):
    build = services["server"]["build"]
    folder = (FOLDER / "docker" / build["context"]).resolve()

    assert (folder / build["dockerfile"]).is_file()
    assert (folder / "pyproject.toml").is_file()
    assert services["program"]["image"] == services["server"]["image"]


def test_the_servers_port_and_key_are_where_the_program_looks(services):
    source = (FOLDER / "docker" / "compose.yaml").read_text("utf-8")
    port = re.search(r"0\.0\.0\.0:(\d+)", source)[1]

    assert f"farm://server:{port}?all" in source
    for each in services.values():
        (secret,) = each["secrets"]
        assert each["environment"]["FARM_EXECUTOR_KEY_FILE"] == f"/run/secrets/{secret}"
