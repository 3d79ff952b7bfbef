"""`farm-executor demo`: the standard library of the running Python, analysed file by file on a farm.

Owns the analysis of one source file (`analyse`, a pure function), its spreading over an executor (`run`) and
the report. It must know nothing of how a farm works: `run` takes any `concurrent.futures.Executor`, and only
`main` names FarmExecutor. Sources travel as bytes, for another machine's standard library may be elsewhere.
"""

from __future__ import annotations

import argparse
import ast
import gc
import json
import os
import platform
import sys
import sysconfig
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

Progress = Callable[[int, int], None]
SAMPLE_STRIDE = 10
SHOWN_FAILURES = 20
CONNECT_TIMEOUT = 30.0


class UnparsableError(Exception):
    """A file is not Python source that this Python can parse; the cause is what the parser raised."""


@dataclass(frozen=True)
class FunctionReport:
    """One function or method: its dotted name in the module, where it stands, its size and complexity."""

    name: str
    line: int
    lines: int
    complexity: int


@dataclass(frozen=True)
class ModuleReport:
    """What `analyse` found in one file; `functions` are in the order of their lines."""

    name: str
    lines: int
    classes: int
    complexity: int
    functions: tuple[FunctionReport, ...]

    @property
    def longest(self) -> FunctionReport | None:
        """The function with most lines, the first of equals; None where there is no function."""
        return max(self.functions, key=lambda function: function.lines, default=None)


@dataclass(frozen=True)
class Failure:
    """A file without a report: in one line, and (not compared, for it tells of the machine) in full."""

    name: str
    unparsable: bool
    error: str
    traceback: str = field(compare=False)


@dataclass(frozen=True)
class Analysis:
    """The outcome of each file by name, in the order given; equal to any other run over the same files.

    `busy` holds by worker ("host:pid") the seconds that each of the files it analysed took; it is not compared.
    """

    outcomes: dict[str, ModuleReport | Failure]
    busy: dict[str, list[float]] = field(compare=False)

    @property
    def reports(self) -> list[ModuleReport]:
        """The files that were analysed."""
        return [outcome for outcome in self.outcomes.values() if isinstance(outcome, ModuleReport)]

    @property
    def failures(self) -> list[Failure]:
        """The files that were not."""
        return [outcome for outcome in self.outcomes.values() if isinstance(outcome, Failure)]


def _case_decisions(case: ast.match_case) -> int:
    irrefutable = isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None
    return (not irrefutable) + (case.guard is not None)


_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert)
_DECISIONS: dict[type[ast.AST], Callable[[Any], int]] = {
    **dict.fromkeys(_BRANCHES, lambda node: 1),
    ast.BoolOp: lambda node: len(node.values) - 1,
    ast.comprehension: lambda node: len(node.ifs),
    ast.match_case: _case_decisions,
}
_WARNING_FILTERS = threading.Lock()  # catch_warnings swaps a global: two threads at once would mix theirs up


def _parse(name: str, source: bytes) -> ast.Module:
    # The parser warns of odd literals, and under `-W error` it would refuse them.
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source, name)


def analyse(name: str, source: bytes) -> ModuleReport:
    """Measure one module.

    A function's cyclomatic complexity is 1 and one more for each decision within it: `if`, `elif`, ternary,
    `for`, `while`, `except`, `assert`, each further operand of `and` and `or`, each `if` of a comprehension,
    each `case` but a bare name or `_`, each guard. A nested function answers for its own. The top level of
    a module counts as one more function, and the module's complexity is the sum of all.

    Raises:
        UnparsableError: The file cannot be parsed: syntax, encoding, or nested too deeply for the parser.
    """
    try:
        tree = _parse(name, source)
    except SyntaxError as error:
        raise UnparsableError(f"line {error.lineno}: {error.msg}" if error.lineno else error.msg) from error
    except Exception as error:
        raise UnparsableError(f"{type(error).__name__}: {error}".removesuffix(": ")) from error
    classes = 0
    found: list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]] = []
    complexity = [1]  # of the top level, then of each function found
    stack: list[tuple[ast.AST, str, int]] = [(tree, "", 0)]  # not recursion: trees may be deeper than our stack
    while stack:
        node, path, owner = stack.pop()
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            path += f".{node.name}"
            if isinstance(node, ast.ClassDef):
                classes += 1
            else:
                owner = len(complexity)
                complexity.append(1)
                found.append((path[1:], node))
        if decisions := _DECISIONS.get(type(node)):
            complexity[owner] += decisions(node)
        stack.extend([(child, path, owner) for child in ast.iter_child_nodes(node)])
    functions = [
        FunctionReport(path, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1, count)
        for (path, node), count in zip(found, complexity[1:], strict=True)
    ]
    functions.sort(key=lambda function: function.line)
    return ModuleReport(name, len(source.splitlines()), classes, sum(complexity), tuple(functions))


def task(name: str, source: bytes) -> tuple[ModuleReport, str, float]:
    """Analyse one file on a worker: the report, who made it ("host:pid"), and in how many seconds."""
    started = time.perf_counter()
    report = analyse(name, source)
    return report, f"{platform.node()}:{os.getpid()}", time.perf_counter() - started


class SerialExecutor(Executor):
    """Runs each call at once in the calling thread: what a farm is measured against."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the call and return its settled future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def stdlib() -> Path:
    """The directory of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def read_sources(root: Path) -> Iterator[tuple[str, bytes]]:
    """Every Python file under `root` but installed packages: its relative name and bytes, ordered by path."""
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not {"site-packages", "dist-packages"}.intersection(name.parts) and path.is_file():
            yield name.as_posix(), path.read_bytes()


def run(executor: Executor, files: Iterable[tuple[str, bytes]], progress: Progress | None = None) -> Analysis:
    """Analyse each file as one task on `executor`.

    A task that fails costs its own file only. `progress` is told how many of how many are done, after each.

    Raises:
        Exception: Whatever `executor.submit` raises, when the executor is broken or shut down.
    """
    names = {executor.submit(task, name, source): name for name, source in files}
    outcomes: dict[str, ModuleReport | Failure] = {}
    busy: dict[str, list[float]] = {}
    for done, future in enumerate(as_completed(names), 1):
        name, error = names[future], future.exception()
        if error is None:
            outcomes[name], worker, seconds = future.result()
            busy.setdefault(worker, []).append(seconds)
        else:
            outcomes[name] = _failure(name, error)
        if progress is not None:
            progress(done, len(names))
    return Analysis({name: outcomes[name] for name in names.values()}, dict(sorted(busy.items())))


def _failure(name: str, error: BaseException) -> Failure:
    unparsable = isinstance(error, UnparsableError)
    summary = str(error) if unparsable else "".join(traceback.format_exception_only(error))
    return Failure(name, unparsable, " ".join(summary.split()), "".join(traceback.format_exception(error)))


def show_progress(stream: TextIO) -> Progress:
    """A progress line on `stream`: rewritten in place on a terminal, else a plain line at each quarter."""
    started = shown = time.perf_counter()
    live = stream.isatty()

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.perf_counter()
        line = f"{done:>{len(str(total))}} of {total} files, {now - started:.1f} s"
        if not live:
            if done * 4 // total > (done - 1) * 4 // total:
                print(line, file=stream)
        elif done == total:
            print(end="\r" + " " * len(line) + "\r", file=stream, flush=True)
        elif now - shown >= 0.1:
            shown = now
            print(end="\r" + line, file=stream, flush=True)

    return show


def summarise(analysis: Analysis, *, top: int, tracebacks: bool) -> dict[str, Any]:
    """What `--json` prints of an analysis, and `render` draws; the times are `main`'s to add."""
    reports = analysis.reports

    def row(report: ModuleReport) -> dict[str, Any]:
        counts = {"complexity": report.complexity, "lines": report.lines, "functions": len(report.functions)}
        longest = asdict(report.longest) if report.longest else None
        return {"module": report.name, **counts, "classes": report.classes, "longest_function": longest}

    def failures(unparsable: bool) -> list[dict[str, str]]:
        keys = ("name", "error", "traceback") if tracebacks else ("name", "error")
        chosen = [failure for failure in analysis.failures if failure.unparsable is unparsable]
        return [{key: getattr(failure, key) for key in keys} for failure in chosen]

    rows = [row(report) for report in sorted(reports, key=lambda report: -report.complexity)]
    owners = [row for row in rows if row["longest_function"]]
    longest = max(owners, key=lambda row: row["longest_function"]["lines"], default=None)
    return {
        "files": len(analysis.outcomes),
        "modules": len(rows),
        **{key: sum(row[key] for row in rows) for key in ("complexity", "lines", "functions", "classes")},
        "longest_function": longest and {"module": longest["module"], **longest["longest_function"]},
        "most_complex": rows[:top],
        "unparsable": failures(True),
        "failed": failures(False),
        "workers": [
            {"worker": worker, "files": len(seconds), "seconds": sum(seconds)}
            for worker, seconds in analysis.busy.items()
        ],
    }


def render(summary: dict[str, Any]) -> Iterator[str]:
    """The report in lines of at most 80 columns, but for tracebacks, failures and the directory's name."""
    row_of = "{:<27} {:>10} {:>7} {:>6} {:>6}  {}".format
    counts = ("complexity", "lines", "functions", "classes")
    yield f"The standard library of Python {summary['python']}, {summary['directory']}\n"
    yield row_of("module", "complexity", "lines", "def", "class", "lines of longest")
    for row in summary["most_complex"]:
        longest = row["longest_function"]
        named = f"{longest['lines']:>5} {longest['name'].rpartition('.')[2]:.12}" if longest else ""
        module = row["module"] if len(row["module"]) <= 27 else "..." + row["module"][-24:]
        yield row_of(module, *(row[key] for key in counts), named).rstrip()
    yield row_of(f"all {summary['modules']} modules", *(summary[key] for key in counts), "").rstrip()
    if longest := summary["longest_function"]:
        yield f"\nlongest function: {longest['name']}, {longest['lines']} lines\n  in {longest['module']}"
    yield from _failure_lines("files that cannot be parsed", summary["unparsable"], 80)
    yield from _failure_lines("FILES THAT FAILED", summary["failed"], sys.maxsize)
    wall, serial = summary["seconds"], summary["serial"]
    yield f"\n{'worker':<40} {'files':>7} {'busy':>10} {'of wall':>8}"
    for worker in summary["workers"]:
        busy = worker["seconds"]
        yield f"{worker['worker']:<40} {worker['files']:>7} {busy:>8.2f} s {busy / wall:>8.0%}"
    yield f"\nwall time   {wall:8.2f} s  for {summary['files']} files on {len(summary['workers'])} workers"
    if serial:
        how = "measured" if serial["files"] == summary["files"] else f"estimated from {serial['files']} files"
        yield f"serial time {serial['estimated_seconds']:8.2f} s  {how}"
        yield f"speed-up    {serial['speed_up']:8.2f} x"
        equal = serial["files"] - len(serial["different"])
        yield f"equal       {equal:>8}    of {serial['files']} results compared with the serial ones"
        yield from (f"  DIFFERENT: {name}" for name in serial["different"])


def _failure_lines(title: str, failures: Sequence[dict[str, str]], width: int) -> Iterator[str]:
    if failures:
        yield f"\n{title}: {len(failures)}"
    for failure in failures[:SHOWN_FAILURES]:
        line = f"  {failure['name']}: {failure['error']}"
        yield line if len(line) <= width else line[: width - 3] + "..."
        yield from (f"    {text}" for text in failure.get("traceback", "").splitlines())
    if len(failures) > SHOWN_FAILURES:
        yield f"  ... and {len(failures) - SHOWN_FAILURES} more"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `main` reads, but for `--key-file`, which every command has."""
    add = parser.add_argument
    add("--servers", nargs="+", metavar="ADDR", help="run on these servers (default: a farm on this machine)")
    add("--workers", type=positive, metavar="N", help="at most so many workers")
    serial = f"analyse all files, every {SAMPLE_STRIDE}th (sample, the default) or none again without the farm, "
    serial += "for the speed-up and to compare the results"
    add("--serial", choices=("all", "sample", "none"), default="sample", help=serial)
    add("--top", type=positive, default=15, metavar="N", help="show this many modules (default: 15)")
    add("--tracebacks", action="store_true", help="show in full why files could not be parsed")
    add("--json", action="store_true", help="print one JSON object instead of tables")


def positive(text: str) -> int:
    """A number of one or more; argparse names this function in its message."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def main(args: argparse.Namespace) -> int:
    """Run the demo.

    Returns:
        0; or 1 when a file failed for another reason than that it cannot be parsed, when a result differs
        from the serial one, or when this Python has come without its sources.

    Raises:
        FarmError: The farm cannot be used: a bad address, a wrong key, versions that differ.
        TimeoutError: None of the servers answered in time.
    """
    from farm_executor import FarmExecutor

    files = list(read_sources(stdlib()))
    if not files:
        print(f"no Python source files in {stdlib()}", file=sys.stderr)
        return 1
    started = time.perf_counter()  # the farm's start is part of its price
    farm = FarmExecutor(
        args.servers,
        max_workers=args.workers,
        key_file=args.key_file,
        connect_timeout=CONNECT_TIMEOUT if args.servers else None,
    )
    try:
        farm.submit(os.getpid).result()  # without a farm this is one error, else it would be each file's
        analysis = run(farm, files, show_progress(sys.stderr))
        seconds = time.perf_counter() - started
    finally:
        farm.shutdown(cancel_futures=True)  # after Ctrl-C too: what has not begun is not worth waiting for
    serial = None
    if sample := {"all": files, "sample": files[::SAMPLE_STRIDE], "none": []}[args.serial]:
        print(f"timing {len(sample)} of {len(files)} files without the farm", file=sys.stderr)
        serial = _measure_serial(sample, sum(len(source) for _, source in files), analysis, seconds)
    summary = {
        "python": platform.python_version(),
        "directory": str(stdlib()),
        **summarise(analysis, top=args.top, tracebacks=args.tracebacks),
        "seconds": seconds,
        "serial": serial,
    }
    text = json.dumps(summary, indent=2) if args.json else "\n".join(render(summary))
    # The parser quotes what it could not read: characters that this terminal may not have.
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    return int(bool(summary["failed"]) or bool(serial and serial["different"]))


def _measure_serial(
    sample: Sequence[tuple[str, bytes]], all_bytes: int, analysis: Analysis, seconds: float
) -> dict[str, Any]:
    # The collector would walk the farm's reports again and again, as it does on no worker: a third more time,
    # which would flatter the farm. For the same reason each serial result is compared and dropped.
    gc.freeze()
    serial, known = SerialExecutor(), analysis.outcomes.items()
    started = time.perf_counter()
    different = [file[0] for file in sample if not run(serial, [file]).outcomes.items() <= known]
    elapsed = time.perf_counter() - started
    gc.unfreeze()
    estimated = elapsed * all_bytes / sum(len(source) for _, source in sample)
    return {
        "files": len(sample),
        "seconds": elapsed,
        "estimated_seconds": estimated,
        "speed_up": estimated / seconds,
        "different": different,
    }
