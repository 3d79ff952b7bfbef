"""Run mypy and pyright, strictly, over the programs in this folder: they find what is marked, and nothing else.

A line that ends in ``# E`` is one in which both find an error; ``# E: mypy`` or ``# E: pyright`` one that only that
checker finds. The programs are never run. Those in ``swapped`` are written for ProcessPoolExecutor, and checked as
they are and with FarmExecutor in its place: a swap of names brings no error and hides none.

Nothing that the package makes public may leave a checker to guess its type, either.

Run by ``nox -s types``, where the package is installed as users install it. The arguments are the versions of
Python to check for.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import farm_executor
import farm_executor.lfarm

HERE = Path(__file__).parent
MARK = re.compile(r"# E(?:: (mypy|pyright))?$")
WITH_POOL = "from concurrent.futures import ProcessPoolExecutor as Pool\n"
WITH_FARM = "from farm_executor import FarmExecutor as Pool\n"

Found = dict[tuple[str, int], str]
"""What is said of each line of each file."""


def mypy(folder: Path, version: str) -> Found:
    """What mypy finds."""
    options = ("--strict", "--config-file=", "--output=json", f"--python-version={version}")
    return {
        (report["file"], report["line"]): report["message"]
        for report in map(json.loads, run("mypy", *options, ".", cwd=folder).splitlines())
        if report["severity"] == "error"
    }


def pyright(folder: Path, version: str) -> Found:
    """What pyright finds."""
    settings = {"typeCheckingMode": "strict", "pythonVersion": version, "reportUnusedExpression": False}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    output = json.loads(run("pyright", "--pythonpath", sys.executable, "--outputjson", cwd=folder))
    if not output["summary"]["filesAnalyzed"]:
        sys.exit("pyright has looked at nothing")
    return {
        (str(Path(report["file"]).relative_to(folder)), report["range"]["start"]["line"] + 1): report["message"]
        for report in output["generalDiagnostics"]
        if report["severity"] == "error"
    }


def run(tool: str, *arguments: str, cwd: Path | None = None) -> str:
    """The output of a tool that finds errors, or none; anything else ends the check."""
    done = subprocess.run(
        [sys.executable, "-m", tool, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1) or done.stderr:
        sys.exit(f"{tool} failed with {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def write_programs(folder: Path) -> None:
    """The programs as they are, and the swapped ones once more with the other executor."""
    for path in HERE.glob("*.py"):
        if path.name != Path(__file__).name:
            (folder / path.name).write_text(path.read_text())
    for path in HERE.glob("swapped/*.py"):
        text = path.read_text()
        if WITH_POOL not in text:
            sys.exit(f"{path.name} does not say: {WITH_POOL}")
        (folder / f"{path.stem}_with_pool.py").write_text(text)
        (folder / f"{path.stem}_with_farm.py").write_text(text.replace(WITH_POOL, WITH_FARM))


def marked(folder: Path, checker: str) -> set[tuple[str, int]]:
    """Where that checker should find errors."""
    return {
        (path.name, number)
        for path in folder.glob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (mark := MARK.search(line)) and mark[1] in (None, checker)
    }


def differences(folder: Path, version: str) -> Iterator[str]:
    """Where what is found and what is marked are not the same."""
    for checker in (mypy, pyright):
        found, expected = checker(folder, version), marked(folder, checker.__name__)
        for file, line in sorted(found.keys() | expected):
            if (file, line) not in expected:
                yield f"{file}:{line}: {checker.__name__}, Python {version}: {found[file, line]}"
            elif (file, line) not in found:
                yield f"{file}:{line}: {checker.__name__}, Python {version}: the error that is marked is not found"


def guesses() -> Iterator[str]:
    """Public names, and attributes of theirs, whose types pyright does not know, or has only inferred."""
    output = json.loads(run("pyright", "--verifytypes", "farm_executor", "--ignoreexternal", "--outputjson"))
    public = {
        f"{owner.__module__}.{owner.__qualname__}"
        for module in (farm_executor, farm_executor.lfarm)
        for value in (getattr(module, name) for name in module.__all__)
        for owner in getattr(value, "__mro__", (value,))
        if getattr(owner, "__module__", "").startswith("farm_executor")
    }
    symbols = [
        symbol
        for symbol in output["typeCompleteness"]["symbols"]
        if any(f"{symbol['name']}.".startswith(f"{name}.") for name in public)
    ]
    if len(symbols) < len(public):
        sys.exit("pyright has not looked at all that is public")
    for symbol in symbols:
        for diagnostic in symbol["diagnostics"]:
            yield f"{symbol['name']}: {diagnostic['message']}"


def main(versions: list[str]) -> None:
    """Check, say what differs, and fail if anything does."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        write_programs(folder)
        found = [difference for version in versions for difference in differences(folder, version)]
    sys.exit("\n".join([*found, *guesses()]) or None)


if __name__ == "__main__":
    main(sys.argv[1:])
