"""The project's checks. `nox` runs the default ones; `nox -l` lists all; what follows ``--`` is passed on.

Every session but `minimums` installs the newest versions of what it needs. Each prints what it runs with, so that
what a new version changes is seen on the day it comes.
"""

import itertools
import os
import re
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = False  # tests run on every Python that is found

PROJECT = nox.project.load_toml("pyproject.toml")
SUPPORTED = nox.project.python_versions(PROJECT)
OF_THE_PYTHON = [
    "tests/contract",
    "tests/conformance",
    "tests/client/test_future.py",
    "tests/client/test_interrupt.py",
    "tests/client/test_functions.py",
    "tests/client/test_lifecycle.py",
    "tests/server/test_worker.py",
    "tests/data/test_byvalue.py",
    "tests/data/test_failure.py",
    "tests/data/test_payload.py",
    "tests/data/test_serialization_end_to_end.py",
    "tests/wire/test_tls.py",
    "tests/test_exports.py",
]
OF_THE_PACKAGES = [  # what depends on the versions of what is installed
    "tests/data",
    "tests/shipping",
    "tests/wire/test_encrypted_farm.py",
    "tests/wire/test_keygen.py",
    "tests/wire/test_versions.py",
    "tests/client/test_async_tasks.py",
    "tests/client/test_executor.py",
    "tests/client/test_map_blocks.py",
    "tests/client/test_repeated.py",
    "tests/client/test_stream.py",
    "tests/lfarm/test_closure.py",
    "tests/server/test_keeping.py",
    "tests/server/test_supervisor.py",
    "tests/test_admin.py",
    "tests/test_arguments.py",
    "tests/test_dashboard.py",
    "tests/test_dependencies.py",
    "tests/test_metrics.py",
    "tests/test_progress.py",
    "tests/test_telemetry.py",
]
EMBEDDED = ("--rows", "farm-embedded")  # of the contract: what depends on the Python shows there
OURS = ("--rows", "farm-embedded,farm-servers")  # not what the standard library's own pools do
# Most tests wait for a process most of the time.
SIDE_BY_SIDE = ("-n", str(2 * max(os.cpu_count() or 1, 2)), "--dist", "worksteal")


def _find_pythons() -> list[str]:
    """The Pythons that are here, from the oldest that is supported to the newest, which need not be known yet.

    Those that pyenv or uv has installed, but not activated, are put where nox looks for them.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions").glob("*/bin")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR", Path.home() / ".local/share/uv/python")).glob("*/bin")
    releases = {}
    for folder in (*pyenv, *uv):
        release = re.fullmatch(r"(?:cpython-)?3\.(\d+)\.(\d+)(?:-\w+-\w+-\w+)?", folder.parent.name)
        if release:
            releases[folder] = tuple(map(int, release.groups()))
    newest_first = sorted(releases, key=lambda folder: releases[folder], reverse=True)
    os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *map(str, newest_first)])
    oldest = int(SUPPORTED[0].removeprefix("3."))
    found = [f"3.{minor}" for minor in range(oldest, 100) if shutil.which(f"python3.{minor}")]
    return found or [f"3.{sys.version_info.minor}"]


def _install(session: nox.Session, *requirements: str) -> None:
    """Install what a session needs, and say what that is."""
    session.install("--upgrade", "--upgrade-strategy=eager", *requirements)
    installed = session.run("python", "-m", "pip", "list", "--format=freeze", silent=True) or ""
    python = session.run("python", "--version", silent=True) or ""
    session.log(f"runs with {python.strip()}, {', '.join(installed.split())}")


def _pytest(session: nox.Session, *arguments: str) -> None:
    """Run tests side by side."""
    # Where Python is told not to keep what it compiles, each of thousands of processes would compile it again.
    session.run("pytest", *SIDE_BY_SIDE, *arguments, env={"PYTHONDONTWRITEBYTECODE": None})


def _group(name: str) -> list[str]:
    return nox.project.dependency_groups(PROJECT, name)


PYTHONS = _find_pythons()
# `minimums` runs on the oldest Python, so that `tests` need not do so by default.
NEWER = [f"tests-{python}" for python in PYTHONS if python != SUPPORTED[0]] or ["tests"]
nox.options.sessions = [
    "lint",
    "types",
    "house",
    "minimums",
    *NEWER,
    "promises",
    "not_led",
    "engines",
    "origins",
    "docs",
]
FOR_TESTS = [".[completion,dashboard,metrics,otel,tls]", *_group("tests")]
ON_CLUSTERS = [".[tls]", *_group("tests")]


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    _install(session, *_group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the package's types with mypy, strictly, and those of programs that use it with pyright, too."""
    _install(session, ".", *_group("types"))
    session.run("mypy", *session.posargs)
    session.run("python", "tests/typing/check.py", SUPPORTED[0], SUPPORTED[-1])


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests on every Python that is found, but for those that do harm: see `promises`.

    On the newest all of them, on others those whose outcome depends on the Python; `-- tests` runs all on each.
    """
    _install(session, *FOR_TESTS)
    whole = ["--ignore=tests/faults"]
    parts = session.posargs or (whole if session.python == PYTHONS[-1] else [*EMBEDDED, *OF_THE_PYTHON])
    _pytest(session, *parts)


@nox.session(python=SUPPORTED[0])
def minimums(session: nox.Session) -> None:
    """Run the tests with the lowest versions of all that the project declares.

    It runs those whose outcome depends on these or on the Python; `-- tests` runs all.
    """
    project = PROJECT["project"]
    extras = itertools.chain(*project["optional-dependencies"].values())
    declared = [*project["dependencies"], *extras, *_group("tests")]
    _install(session, ".", *(requirement.replace(">=", "==") for requirement in declared))
    parts = session.posargs or [*OURS, *sorted({*OF_THE_PYTHON, *OF_THE_PACKAGES})]
    _pytest(session, "--minimums", *parts)


@nox.session(python=PYTHONS[-1])
def promises(session: nox.Session) -> None:
    """Hold the promises against a short form of every fault; `faults` does it at length, and with figures."""
    _install(session, *FOR_TESTS)
    _pytest(session, "tests/faults", *session.posargs)


@nox.session(python=PYTHONS[-1])
def not_led(session: nox.Session) -> None:
    """Run the contract and the standard library's own tests with callers that do not lead."""
    _install(session, *FOR_TESTS)
    parts = (
        "tests/contract",
        "tests/conformance",
        "tests/client/test_executor.py",
        "tests/client/test_reactor.py",
        "tests/client/test_future.py",
    )
    # The contract's farm over servers is never led: `tests` has run it.
    _pytest(session, "--not-led", *EMBEDDED, *parts, *session.posargs)


@nox.session(python=PYTHONS[-1], default=False)
def systems(session: nox.Session) -> None:
    """Run the contract with a client that lacks what macOS lacks, and with one that lacks what Windows does."""
    _install(session, *FOR_TESTS)
    for system in ("macos", "windows"):
        session.run("python", "tests/other_systems.py", system, "-q", *session.posargs)


@nox.session(python=PYTHONS[-1])
def origins(session: nox.Session) -> None:
    """Send modules from where tools put them: a real Jupyter kernel, editable installs of each build backend."""
    _install(session, *FOR_TESTS, *_group("origins"), "pip")
    _pytest(session, "tests/shipping/test_origins.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; warnings are errors."""
    _install(session, ".", *_group("docs"))
    session.run("sphinx-build", "-n", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")


@nox.session(venv_backend="none")
def house(session: nox.Session) -> None:
    """Measure how easy the package is to read: sizes, comments, private accesses; what passes a limit is named."""
    session.run("python", "tests/house.py")


@nox.session(python=PYTHONS[-1], default=False)
def coverage(session: nox.Session) -> None:
    """Measure which branches the tests take, module by module; those below a limit are named: `-- --limit 90`."""
    _install(session, *FOR_TESTS, "coverage")
    session.run("python", "tests/covered.py", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure the executor beside ProcessPoolExecutor, in one run; `-- --svg` makes the documentation's chart."""
    peers = ["loky", "distributed", "ray"] if "--peers" in session.posargs else []
    _install(session, ".", "numpy", *peers)
    session.run("python", "tests/bench/compare.py", *session.posargs)


@nox.session(python=PYTHONS[-1], default=False)
def scale(session: nox.Session) -> None:
    """Print what grows with servers, workers, sessions and tasks, and how fast."""
    _install(session, ".", "numpy")
    session.run("python", "tests/bench/scale.py", *session.posargs)


@nox.session(python=PYTHONS[-1], default=False)
def integrations(session: nox.Session) -> None:
    """Run the tests of what works with other libraries, with the newest of these; elsewhere they are skipped."""
    _install(session, *FOR_TESTS, *_group("integrations"))
    session.run("pytest", "tests/integrations", *session.posargs)


@nox.session(python=PYTHONS[-1], default=False)
def containers(session: nox.Session) -> None:
    """Build the image and run the farm of Docker Compose, by a Docker that must be here."""
    _install(session, *FOR_TESTS, "pip")
    session.run("pytest", "tests/integrations/test_containers.py", *session.posargs, env={"CONTAINERS": "1"})


@nox.session(python=PYTHONS[-1], default=False)
def recipes(session: nox.Session) -> None:
    """Run the pages that use other libraries, with the newest of these; elsewhere such blocks are passed over."""
    _install(session, *FOR_TESTS, *_group("recipes"))
    pages = ("tests/test_docs.py", "-k", "runs and how-to")
    session.run("pytest", *(session.posargs or pages), env={"RECIPES": "1"})


@nox.session(python=PYTHONS[-1], default=False)
def dashboard(session: nox.Session) -> None:
    """Look at the dashboard in a Chromium, which must be installed: its console, keys, frames, and axe's rules."""
    _install(session, *FOR_TESTS, *_group("browser"))
    environment = {}
    if shutil.which("npm"):
        folder = session.create_tmp()
        session.run("npm", "install", "--silent", "--no-save", "--prefix", folder, "axe-core", external=True)
        environment["AXE"] = str(Path(folder).resolve() / "node_modules/axe-core/axe.min.js")
    session.run("pytest", "tests/dashboard", *session.posargs, env=environment)


@nox.session(python=PYTHONS[-1], default=False)
def site(session: nox.Session) -> None:
    """Look at the documentation in a Chromium, which must be installed: widths, search, links; and its spelling."""
    _install(session, ".", *_group("docs"), *_group("browser"), *_group("tests"), "codespell")
    session.run("codespell", "README.md", "SECURITY.md", "CHANGELOG.md", "docs", "--skip", "_build,_static")
    session.run("sphinx-build", "-q", "-n", "-W", "-b", "html", "docs", "docs/_build/html")
    session.run("pytest", "tests/pages", *session.posargs)


@nox.session(python=PYTHONS[-1], default=False)
def screenshots(session: nox.Session) -> None:
    """Make the screenshots of the documentation, in a Chromium, which must be installed."""
    _install(session, ".[dashboard]", *_group("browser"))
    session.run("python", "tests/dashboard/screenshots.py")


@nox.session(python=PYTHONS[-1], default=False)
def joblib(session: nox.Session) -> None:
    """Run joblib's own tests of backends with the farm's."""
    _install(session, *FOR_TESTS, *_group("integrations"))
    session.run("python", "tests/integrations/joblib_suite.py", *session.posargs)


RAY = ("-m", "pip", "install", "-q", "--only-binary=ray", "ray[client]")


def _install_engines(session: nox.Session) -> None:
    """Install Dask, and Ray where there is a wheel of it: for a new Python there is none for months."""
    session.install("--upgrade", "distributed")
    session.run("python", *RAY, success_codes=[0, 1])


def _python_with_ray(session: nox.Session) -> str:
    """Return an interpreter that has Ray: the session's, or else one of the next older Python."""
    script = "import importlib.util; print(importlib.util.find_spec('ray'))"
    for python in PYTHONS[-2:-1] if session.run("python", "-c", script, silent=True) == "None\n" else ():
        folder = Path(session.create_tmp()).resolve() / python
        session.run(f"python{python}", "-m", "venv", "--clear", str(folder), external=True)
        session.run(str(folder / "bin/python"), *RAY, *ON_CLUSTERS, external=True, success_codes=[0, 1])
        return str(folder / "bin/python")
    return "python"


@nox.session(python=PYTHONS[-1])
def engines(session: nox.Session) -> None:
    """Run the contract and faults on real clusters, which are started here: Dask, Ray, Slurm; and on two hosts.

    Each says why where it cannot be: all but Dask need root and namespaces, Slurm a Debian to install it from.
    `-- ray` runs but that part, `-- ray -- -x` passes the rest on to pytest. `-- dask-engine ray-engine` runs the
    contract with all bytes carried by the engines.
    """
    _install(session, *ON_CLUSTERS)
    _install_engines(session)
    command = ("python", "tests/engines/every.py", "--ray", _python_with_ray(session))
    session.run(*command, *session.posargs, env={"PYTHONDONTWRITEBYTECODE": None})


@nox.session(python=PYTHONS[-1], default=False)
def clusters(session: nox.Session) -> None:
    """Print what calls cost on real clusters, beside an own server and their own executors, and by joblib."""
    _install(session, ".[joblib,tls]", "numpy", "scikit-learn")
    _install_engines(session)
    environment = {"PYTHONDONTWRITEBYTECODE": None}
    session.run("python", "tests/bench/clusters.py", *session.posargs, env=environment)


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """Hold the promises against faults for ten minutes and more, and print the figures; `--short` for two."""
    _install(session, *FOR_TESTS)
    session.run("python", "tests/faults/figures.py", *session.posargs)


@nox.session(python=PYTHONS[-1], default=False)
def properties(session: nox.Session) -> None:
    """Test properties with examples that no run has had, and many of them; `tests` has few, and always the same."""
    _install(session, *FOR_TESTS)
    parts = session.posargs or ["tests", "--ignore=tests/faults"]
    _pytest(session, "--hypothesis-profile=many", "-m", "hypothesis", "--timeout=3600", *parts)


@nox.session(python="3.11", default=False)  # the newest for which the fuzzer has wheels everywhere
def fuzz(session: nox.Session) -> None:
    """Give hostile bytes to everything that reads a peer's, guided by coverage: `-- --inputs 1000000`."""
    _install(session, ".", "atheris")
    session.run("python", "tests/faults/fuzz.py", *session.posargs)


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build the distributions, check them, install each on every Python, and run README's first commands."""
    session.install("build", "twine", "check-wheel-contents")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    (wheel,), (sdist,) = Path("dist").resolve().glob("*.whl"), Path("dist").resolve().glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(wheel), str(sdist))
    session.run("check-wheel-contents", str(wheel))
    for python in PYTHONS:
        folder = Path(session.create_tmp()).resolve() / python
        shutil.rmtree(folder, ignore_errors=True)
        session.run(f"python{python}", "-m", "venv", str(folder), external=True)
        inside = str(folder / "bin" / "python")
        session.run(inside, "-m", "pip", "install", "-q", str(wheel), external=True)
        with session.chdir(folder):
            program = "import farm_executor; print(farm_executor.__version__)"
            session.run(inside, "-W", "error", "-c", program, external=True)
            session.run(str(folder / "bin" / "farm-executor"), "--version", external=True)
            session.run(str(folder / "bin" / "farm-executor"), "explain", "still", "dialling", external=True)
    _run_readme(session, sdist)


def _run_readme(session: nox.Session, sdist: Path) -> None:
    """Unpack the sdist, and run what the README says to run first, in a fresh environment."""
    folder = Path(session.create_tmp()).resolve() / "readme"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.unpack_archive(sdist, folder)
    (project,) = folder.iterdir()
    install = re.search(r"```shell\n(python -m pip install \..*)\n```", (project / "README.md").read_text("utf-8"))
    if install is None:
        session.error("README does not say how to install it")
    session.run("python", "-m", "venv", str(folder / "env"), external=True)
    environment = {"PATH": os.pathsep.join([str(folder / "env" / "bin"), os.environ["PATH"]])}
    with session.chdir(project):
        session.run("bash", "-ec", install[1], external=True, env=environment)


if __name__ == "__main__":
    sys.exit("run `nox`, or `python -m nox`")
