"""Where the project is: nowhere yet, so nothing may name a host of its own.

`HOST` is the one thing to change when there is one: from then on this test names each place that lacks it. The
table of docs/contributing.md, "Before the first release", says what belongs there.
"""

import re
from pathlib import Path

import pytest

HOST = ""  # such as "https://codeberg.org/farms/farm_executor"

ROOT = Path(__file__).parents[1]
PLACES = {  # and what comes before the host there
    "pyproject.toml": r"^\[project\.urls\]\n(?:.*\n)*?Source = \"",
    "SECURITY.md": r"^## Report a vulnerability\n[^#]*",
    "README.md": r"\]\(",
    "CHANGELOG.md": r"^\[\d+\.\d+\.\d+\]: ",
}
# The hosts of what the documentation links to, with the reserved names, and that of names in XML.
OTHERS = re.compile(
    r"(?:.*\.)?(?:example|example\.(?:com|net|org)|localhost|127\.0\.0\.1|\{[\w.]+\}|host|www\.w3\.org|"
    r"docs\.(?:astral\.sh|celeryq\.dev|dask\.org|pypi\.org|python\.org|ray\.io)|"
    r"(?:anyio|executorlib|filesystem-spec|joblib|parsl)\.readthedocs\.io|"
    r"(?:it4innovations|kislyuk|tqdm)\.github\.io|github\.com|distributed\.dask\.org|fastapi\.tiangolo\.com|"
    r"keepachangelog\.com|lparallel\.org|mirai\.r-lib\.org|opentelemetry\.io|peps\.python\.org|prometheus\.io|"
    r"semver\.org)"
)
REPOSITORIES = {"cloudpipe/cloudpickle", "lmj/lfarm", "prometheus/node_exporter"}


def _texts():
    """What users get to see, and what publishes it."""
    files = [ROOT / name for name in PLACES]
    for folder, kinds in {"docs": "*", "farm_executor": "*.*", ".github": "*.yml"}.items():
        files += [path for path in (ROOT / folder).rglob(kinds) if "_build" not in path.parts and path.is_file()]
    for file in files:
        if file.suffix not in {".png", ".pyc", ".so"}:
            yield file.relative_to(ROOT), file.read_text("utf-8")


def test_no_host_is_invented():
    found = []
    for name, text in _texts():
        for host, path in re.findall(r"https?://([^\s/:'\"`)<>,]+)(?::\d+)?/?([^\s'\"`)<>]*)", text):
            known = OTHERS.fullmatch(host) and (
                host != "github.com" or "/".join(path.split("/")[:2]) in REPOSITORIES
            )
            if not known and not (HOST and f"{host}/{path}".startswith(HOST.partition("//")[2])):
                found.append(f"{name}: {host}/{path}")

    assert found == []


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_is_to_name_the_host_does_so_once_there_is_one(place):
    table = (ROOT / "docs" / "contributing.md").read_text("utf-8").partition("## Before the first release")[2]
    text = (ROOT / place).read_text("utf-8")

    assert f"`{place}`" in table
    assert not HOST or re.search(PLACES[place] + re.escape(HOST), text, re.M)
