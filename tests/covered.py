"""Which branches of each module the tests take. ``python tests/covered.py`` runs them, and prints the modules.

What runs in other processes, which are servers, workers and programs that tests start, is measured, too, as far as
they end in an orderly way: a killed worker writes nothing. So the figures of ``server`` are lower than the truth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT = 85.0  # per cent of lines and branches, below which a module is named
ROOT = Path(__file__).resolve().parents[1]
SETTINGS = """\
[run]
branch = True
source = farm_executor
parallel = True
patch = subprocess
concurrency = thread
relative_files = True
data_file = {folder}/data
"""


def below(report: dict, limit: float) -> list[tuple[float, str]]:
    """The modules of coverage's JSON report that are below a limit, the lowest first."""
    shares = [(file["summary"]["percent_covered"], name) for name, file in report["files"].items()]
    return sorted((share, name) for share, name in shares if share < limit)


def main() -> int:
    """Run the tests, print the table, and name what is below the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=LIMIT, help="per cent, below which a module is named")
    parser.add_argument("tests", nargs="*", default=["tests"], help="those to run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings, found = Path(folder, "rc"), Path(folder, "report.json")
        settings.write_text(SETTINGS.format(folder=folder), "utf-8")
        coverage = [sys.executable, "-m", "coverage"]
        rc = f"--rcfile={settings}"
        tests = [*options.tests, "--ignore=tests/faults", "-q", "-p", "no:cacheprovider"]
        ran = subprocess.run([*coverage, "run", rc, "-m", "pytest", *tests], cwd=ROOT, check=False)
        for command in (["combine", "-q"], ["report", "--skip-covered"], ["json", "-q", "-o", str(found)]):
            subprocess.run([*coverage, command[0], rc, *command[1:]], cwd=ROOT, check=True)
        report = json.loads(found.read_text("utf-8"))
    lowest = below(report, options.limit)
    print(f"\n{len(lowest)} of {len(report['files'])} modules below {options.limit:g} %")
    for share, name in lowest:
        print(f"{share:6.1f} %  {name}")
    return ran.returncode or bool(lowest)


if __name__ == "__main__":
    sys.exit(main())
