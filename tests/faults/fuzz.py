"""A coverage-guided fuzzer over the targets of `hostile`: ``nox -s fuzz -- --inputs 1000000``.

Each target runs in a process of its own, so that its memory can be measured and a crash costs no other. It begins
with genuine bytes (`hostile.SEEDS`). What has crashed is kept in a file, which ``--replay`` runs again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

RSS_LIMIT = 512  # MB, at which a target counts as one that takes memory for what a peer says
LONGEST = 8192  # bytes of an input


@dataclass(frozen=True)
class Fuzzed:
    """What came of one target."""

    target: str
    inputs: int
    crashed: bool
    peak_mb: float
    output: str


def fuzz(target: str, inputs: int, seed: int, artifacts: Path) -> Fuzzed:
    """Run a target with so many inputs, in a process of its own."""
    artifacts.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--run", target, "--inputs", str(inputs), "--seed", str(seed)]
    with tempfile.TemporaryFile("w+") as output:
        environment = {**os.environ, "FUZZ_ARTIFACTS": str(artifacts)}
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    executed = re.search(r"number_of_executed_units: (\d+)", text)
    done = int(executed[1]) if executed else 0
    return Fuzzed(target, done, child.returncode != 0 or done < inputs, usage.ru_maxrss / 1024, text)


def run(target: str, inputs: int, seed: int) -> None:
    """Be that process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["farm_executor"]):
        from faults.hostile import SEEDS, TARGETS, no_unpickling

    with tempfile.TemporaryDirectory() as corpus, no_unpickling():
        for number, data in enumerate(SEEDS[target]):
            Path(corpus, f"seed-{number}").write_bytes(data)
        options = {
            "runs": inputs,
            "seed": seed,
            "max_len": LONGEST,
            "rss_limit_mb": RSS_LIMIT,
            "timeout": 30,
            "print_final_stats": 1,
            "artifact_prefix": f"{os.environ['FUZZ_ARTIFACTS']}/{target}-",
        }
        arguments = [f"-{name}={value}" for name, value in options.items()]
        atheris.Setup([sys.argv[0], *arguments, corpus], TARGETS[target])
        atheris.Fuzz()


def replay(target: str, file: Path) -> None:
    """Run one input, as when it crashed, without a fuzzer."""
    from faults.hostile import TARGETS, no_unpickling

    with no_unpickling():
        TARGETS[target](file.read_bytes())
    print(f"{target}: nothing came of {file} but what is provided for")


def main() -> int:
    """Do what the command line says; 1 if anything crashed."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all (default: %(default)s)")
    parser.add_argument("--target", action="append", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--artifacts", type=Path, default=Path(".fuzz"), help="where inputs that crash are kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this input through the --target given")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run, options.inputs, options.seed)  # which must be the first to import the package
    from faults.hostile import TARGETS

    targets = options.target or list(TARGETS)
    if options.replay:
        replay(targets[0], options.replay)
        return 0
    each = -(-options.inputs // len(targets))
    done = []
    for target in targets:
        result = fuzz(target, each, options.seed, options.artifacts)
        done.append(result)
        state = "CRASHED" if result.crashed else "ok"
        print(f"{target:18} {result.inputs:>9} inputs  peak {result.peak_mb:5.0f} MB  {state}", flush=True)
        if result.crashed:
            print(result.output[-6000:])
    crashes = sum(result.crashed for result in done)
    peak = max(result.peak_mb for result in done)
    inputs = sum(result.inputs for result in done)
    print(f"{inputs} inputs: {crashes} targets crashed, peak memory {peak:.0f} MB of {RSS_LIMIT} MB")
    if options.json:
        figures = [{name: value for name, value in asdict(one).items() if name != "output"} for one in done]
        options.json.write_text(json.dumps(figures, indent=2))
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
