"""The project's checks. `nox` runs the default ones; `nox -l` lists all; what follows ``--`` is passed on."""

import os
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = False  # tests run on every Python that is found
nox.options.sessions = ["lint", "types", "tests", "promises", "not_led", "docs"]

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
OF_THE_PYTHON = [
    "tests/contract",
    "tests/conformance",
    "tests/client/test_future.py",
    "tests/client/test_interrupt.py",
    "tests/client/test_functions.py",
    "tests/client/test_lifecycle.py",
    "tests/server/test_worker.py",
    "tests/test_byvalue.py",
    "tests/test_failure.py",
    "tests/test_payload.py",
    "tests/test_serialization_end_to_end.py",
    "tests/test_tls.py",
    "tests/test_exports.py",
]
SIDE_BY_SIDE = ("-n", "3", "--dist", "worksteal")  # most tests wait for a process most of the time


def _find_pyenv_versions() -> None:
    """Put the interpreters that pyenv has installed, but not activated, where nox looks for them."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(root.glob("3.*/bin")) if root.is_dir() else []
    os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *map(str, found)])


def _group(name: str) -> list[str]:
    return nox.project.dependency_groups(PROJECT, name)


_find_pyenv_versions()


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    session.install(*_group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy, strictly."""
    session.install(".", *_group("types"))
    session.run("mypy", *session.posargs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests on every Python that is found, but for those that do harm: see `promises`.

    Between the oldest and the newest, those whose outcome depends on the Python; `-- tests` runs all on each.
    """
    found = [version for version in PYTHONS if shutil.which(f"python{version}")]
    whole = session.python in (found[0], found[-1])
    session.install(".", *_group("tests"))
    parts = session.posargs or (["--ignore=tests/faults"] if whole else OF_THE_PYTHON)
    session.run("pytest", *SIDE_BY_SIDE, *parts)


@nox.session(python="3.13")
def promises(session: nox.Session) -> None:
    """Hold the promises against a short form of every fault; `faults` does it at length, and with figures."""
    session.install(".", *_group("tests"))
    session.run("pytest", *SIDE_BY_SIDE, "tests/faults", *session.posargs)


@nox.session(python="3.13")
def not_led(session: nox.Session) -> None:
    """Run the contract and the standard library's own tests with callers that do not lead."""
    session.install(".", *_group("tests"))
    parts = (
        "tests/contract",
        "tests/conformance",
        "tests/client/test_executor.py",
        "tests/client/test_reactor.py",
        "tests/client/test_future.py",
    )
    session.run("pytest", *SIDE_BY_SIDE, "--not-led", *parts, *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; warnings are errors."""
    session.install(".", *_group("docs"))
    session.run("sphinx-build", "-n", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")


@nox.session(python="3.10", default=False)
def minimums(session: nox.Session) -> None:
    """Run the tests with the lowest versions of the dependencies that the project declares."""
    lowest = [requirement.replace(">=", "==") for requirement in PROJECT["project"]["dependencies"]]
    session.install(".", *_group("tests"), *lowest)
    session.run("pytest", *SIDE_BY_SIDE, *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure the executor beside ProcessPoolExecutor, in one run."""
    peers = ["loky", "distributed"] if "--peers" in session.posargs else []
    session.install(".", "numpy", *peers)
    session.run("python", "tests/bench/compare.py", *session.posargs)


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """Hold the promises against faults for ten minutes and more, and print the figures; `--short` for two."""
    session.install(".", *_group("tests"))
    session.run("python", "tests/faults/figures.py", *session.posargs)


@nox.session(python="3.11", default=False)  # the newest for which the fuzzer has wheels everywhere
def fuzz(session: nox.Session) -> None:
    """Give hostile bytes to everything that reads a peer's, guided by coverage: `-- --inputs 1000000`."""
    session.install(".", "atheris")
    session.run("python", "tests/faults/fuzz.py", *session.posargs)


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build the distributions, install the wheel, and import it."""
    session.install("build")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    (wheel,) = Path("dist").glob("*.whl")
    session.install(str(wheel))
    with session.chdir(session.create_tmp()):
        session.run("python", "-W", "error", "-c", "import farm_executor; print(farm_executor.__version__)")
        session.run("farm-executor", "--version")


if __name__ == "__main__":
    sys.exit("run `nox`, or `python -m nox`")
