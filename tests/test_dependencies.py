"""What pyproject.toml declares of Pythons and dependencies is what is tested."""

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest needs there

# Of extras whose tests are skipped where they are not installed, and run in sessions of their own.
ELSEWHERE = {
    *(
        "distributed",
        "grpcio",
        "joblib",
        "opentelemetry-api",
        "opentelemetry-sdk",
        "prometheus-client",
        "ray",
        "starlette",
        "uvicorn",
    ),
}
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def declared():
    with open(ROOT / "pyproject.toml", "rb") as file:
        return tomllib.load(file)


@pytest.fixture(scope="module")
def requirements(declared):
    project = declared["project"]
    return [
        *project["dependencies"],
        *(requirement for extra in project["optional-dependencies"].values() for requirement in extra),
        *declared["dependency-groups"]["tests"],
    ]


def parsed(requirement):
    """The name and the lower bound of a requirement, which has nothing else."""
    name, bound = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups()
    return name, bound


def test_each_dependency_is_declared_once_with_a_lower_bound_and_no_more(requirements):
    """`minimums` installs the bound itself; an upper bound would keep the newest version from being tested."""
    names = [parsed(requirement)[0] for requirement in requirements]

    assert sorted(names) == sorted(set(names))


def test_what_is_installed_is_what_is_declared(requirements, pytestconfig):
    """With `--minimums`, as the session of that name runs, it is the lowest version; else that, or a newer one."""
    relation = "==" if pytestconfig.getoption("--minimums") else ">="
    installed = {name: _installed(name) for name, _ in map(parsed, requirements)}
    if not pytestconfig.getoption("--minimums"):  # these tests are skipped where it is not, and run by a session
        installed = {name: version for name, version in installed.items() if version or name not in ELSEWHERE}

    wrong = [
        f"{name} {installed[name]}, not {relation}{bound}"
        for name, bound in map(parsed, requirements)
        if name in installed
        if not SpecifierSet(f"{relation}{bound}").contains(installed[name] or "0", prereleases=True)
    ]

    assert wrong == []


def _installed(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def test_the_oldest_python_that_is_declared_is_the_oldest_that_is_tested(declared):
    """The sessions go by the classifiers, pip by `requires-python`, and the checkers by their own settings."""
    prefix = "Programming Language :: Python :: 3."
    classifiers = [name for name in declared["project"]["classifiers"] if name.startswith(prefix)]
    oldest = min(int(name.removeprefix(prefix)) for name in classifiers)

    assert declared["project"]["requires-python"] == f">=3.{oldest}"
    assert declared["tool"]["mypy"]["python_version"] == f"3.{oldest}"
    assert declared["tool"]["ruff"]["target-version"] == f"py3{oldest}"
