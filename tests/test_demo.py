import argparse
import io
import itertools
import json
import operator
import os
import sys
import textwrap
import warnings
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from types import SimpleNamespace

import pytest

import farm_executor
from farm_executor import demo
from farm_executor.demo import Failure, FunctionReport, SerialExecutor, UnparsableError, analyse, run


def source(text):
    return textwrap.dedent(text).encode()


def complexity_of(body):
    """The complexity of one function with this body."""
    report = analyse("m.py", b"async def f():\n" + textwrap.indent(textwrap.dedent(body), "    ").encode())
    (function,) = report.functions
    assert report.complexity == 1 + function.complexity
    return function.complexity


@pytest.mark.parametrize(
    ("body", "complexity"),
    [
        ("pass", 1),
        ("if a: pass", 2),
        ("if a: pass\nelse: pass", 2),
        ("if a: pass\nelif b: pass\nelif c: pass\nelse: pass", 4),
        ("for x in y: pass\nelse: pass", 2),
        ("async for x in y: pass", 2),
        ("while a: pass", 2),
        ("try: a\nexcept A: pass\nexcept B: pass\nelse: pass\nfinally: pass", 3),
        ("try: a\nfinally: pass", 1),
        ("with a as b: pass", 1),
        ("async with a as b: pass", 1),
        ("assert a", 2),
        ("return a if b else c", 2),
        ("return a and b", 2),
        ("return a and b and c", 3),
        ("return a and b or c", 3),
        ("if a and not b: pass", 3),
        ("return [x for x in y]", 1),
        ("return [x for x in y if x]", 2),
        ("return {x: z for x in y if x if x > 1 for z in x if z}", 4),
        ("return {x async for x in y if x}", 2),
        ("return lambda: a or b", 2),
        ("match a:\n  case 1: pass\n  case 2 | 3: pass\n  case _: pass", 3),
        ("match a:\n  case [x, _]: pass\n  case y: pass", 2),
        ("match a:\n  case 1 if b: pass\n  case _ if c or d: pass", 5),
        ("for x in y:\n  while x:\n    if x and z: break\n    assert x", 6),
    ],
)
def test_complexity_is_that_counted_by_hand(body, complexity):
    assert complexity_of(body) == complexity


@pytest.mark.skipif(sys.version_info < (3, 11), reason="except* is new in Python 3.11")
def test_except_star_counts_as_except():
    assert complexity_of("try: a\nexcept* A: pass\nexcept* B: pass") == 3


def test_each_function_answers_for_its_own_decisions_and_the_module_for_all():
    report = analyse(
        "m.py",
        source(
            """\
            import a

            if a: pass                      # the top level: 1 + 1

            class C:
                x = 1 if a else 2           # and 1
                @decorated
                def method(self):           # 1 + 1
                    if a: pass
                    async def inner():      # 1 + 2
                        for x in a:
                            if x: pass
                    class D:
                        y = a or 0          # 1, of method
                        def deepest(self): pass

            def last():
                return (
                    1
                )
            """
        ),
    )
    assert report.functions == (
        FunctionReport("C.method", line=8, lines=8, complexity=3),
        FunctionReport("C.method.inner", line=10, lines=3, complexity=3),
        FunctionReport("C.method.D.deepest", line=15, lines=1, complexity=1),
        FunctionReport("last", line=17, lines=4, complexity=1),
    )
    assert (report.name, report.lines, report.classes) == ("m.py", 20, 2)
    assert report.complexity == 3 + 3 + 3 + 1 + 1
    assert report.longest == report.functions[0]


def test_the_longest_function_is_the_first_of_equals_and_none_where_there_is_none():
    assert analyse("m.py", b"def f(): pass\ndef g(): pass\n").longest.name == "f"
    assert analyse("m.py", b"x = lambda: 0").longest is None


def test_an_empty_module_has_the_complexity_of_one_path():
    report = analyse("m.py", b"")
    assert (report.lines, report.classes, report.complexity, report.functions) == (0, 0, 1, ())


def test_sources_are_decoded_as_they_declare():
    assert analyse("m.py", "# coding: latin-1\ndef é(): pass".encode("latin-1")).functions[0].name == "é"
    assert analyse("m.py", b"\xef\xbb\xbfdef f(): pass").functions[0].name == "f"


@pytest.mark.parametrize(
    ("content", "causes", "message"),
    [
        (b"x = 1\nprint 'x'\n", SyntaxError, "line 2: Missing parentheses"),
        (b"if x:\npass\n", IndentationError, "line 2: expected an indented block"),
        (b"# coding: uft-8\n", SyntaxError, "unknown encoding: uft-8"),
        (b"x = '\xf6'\n", SyntaxError, "line 1: "),
        (b"x = 1\0\n", (SyntaxError, ValueError), "null bytes"),
        (b"(" * 10_000, SyntaxError, "too many nested parentheses"),
        (b"-" * 100_000 + b"1", (MemoryError, RecursionError), "Error"),
    ],
)
def test_a_file_that_cannot_be_parsed_says_where_and_why(content, causes, message):
    with pytest.raises(UnparsableError) as caught:
        analyse("m.py", content)
    assert message in str(caught.value)
    assert isinstance(caught.value.__cause__, causes)


def test_a_tree_that_is_deeper_than_the_stack_is_analysed_or_unparsable():
    """Which of both depends on the Python; it must be no crash, and no RecursionError of our own."""
    depth = 3 * sys.getrecursionlimit()
    try:
        assert analyse("m.py", b"x" + b"[0]" * depth + b" or y").complexity == 2
    except UnparsableError as error:
        assert isinstance(error.__cause__, RecursionError)


ODD = b"x = '\\d' or 1or 2 is 2\n"  # the parser warns of it


def test_the_parser_s_warnings_neither_show_nor_refuse_a_file():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        analyse("m.py", ODD)
    assert shown == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert analyse("m.py", ODD).complexity == 3


def test_threads_at_once_leave_the_warning_filters_as_they_were():
    before, interval = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            analysis = run(threads, [(f"{number}.py", ODD) for number in range(400)])
    finally:
        sys.setswitchinterval(interval)
    assert analysis.failures == []
    assert list(warnings.filters) == before


def test_read_sources_orders_every_python_file_by_path_and_skips_installed_packages(tmp_path):
    installed = ("site-packages/x.py", "a/site-packages/y/z.py", "dist-packages/x.py")
    for name in ("b.py", "a/z.py", "a.py", "a/data.txt", "d.py/e.py", *installed):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    names = ["a/z.py", "a.py", "b.py", "d.py/e.py"]
    assert list(demo.read_sources(tmp_path)) == [(name, f"# {name}".encode()) for name in names]


# The whole standard library takes twenty seconds serially and once more on each executor (`farm-executor demo
# --serial all` compares it): here every fifth of its files, and all that lie beside the ones that do not parse.
@pytest.fixture(scope="module")
def library():
    files = list(demo.read_sources(demo.stdlib()))
    odd = [file for file in files if "/data/" in file[0] or "bad" in file[0]]
    return list(dict([*files[::5], *odd]).items())


@pytest.fixture(scope="module")
def serial(library):
    return run(SerialExecutor(), library)


@pytest.fixture(params=["thread", "process", "farm"])
def executor(request):
    if request.param == "thread":
        executor = ThreadPoolExecutor(2)
    elif request.param == "process":
        executor = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
    else:
        executor = farm_executor.FarmExecutor(max_workers=2)
    with executor:
        yield executor


class Sabotaged(Executor):
    """Runs `call` in the place of the task for the file `name`."""

    def __init__(self, executor, name, *call):
        self.executor, self.name, self.call = executor, name, call

    def submit(self, fn, /, *args):
        return self.executor.submit(*(self.call if args[0] == self.name else (fn, *args)))


FILES = [
    ("one.py", b"def f(): pass\n"),
    ("bad.py", b"x = 1\nprint 'x'\n"),
    ("two.py", b"class C:\n    def g(self): return 1 or 2\n"),
    ("three.py", b"\n"),
]


# Not on threads: there CPython 3.11 mixes up the depths of what it parses (CPython issue 106905).
@pytest.mark.parametrize("executor", ["process", "farm"], indirect=True)
def test_the_standard_library_gives_the_serial_result_on_any_executor(executor, library, serial):
    analysis = run(executor, library)

    different = {
        name: outcome for name, outcome in analysis.outcomes.items() if serial.outcomes.get(name) != outcome
    }
    assert different == {}
    assert analysis == serial
    assert list(serial.outcomes) == [name for name, _ in library]
    assert len(serial.reports) > 200
    assert {failure.name for failure in serial.failures} >= {
        name for name, _ in library if name.endswith(("/bad_coding.py", "/badsyntax_pep3120.py"))
    }
    assert all(failure.unparsable for failure in serial.failures)


def test_an_unparsable_file_is_reported_with_its_traceback_and_costs_nothing_else(executor):
    analysis = run(executor, FILES)
    assert [report.name for report in analysis.reports] == ["one.py", "two.py", "three.py"]
    (failure,) = analysis.failures
    assert (failure.name, failure.unparsable) == ("bad.py", True)
    assert failure.error.startswith("line 2: Missing parentheses")
    for part in ('File "bad.py", line 2', "print 'x'", "in analyse", "SyntaxError: Missing"):
        assert part in failure.traceback


def test_a_task_that_fails_costs_its_own_file_only(executor):
    analysis = run(Sabotaged(executor, "two.py", operator.truediv, 1, 0), FILES)
    assert [report.name for report in analysis.reports] == ["one.py", "three.py"]
    bad, broken = analysis.failures
    assert (bad.unparsable, broken.unparsable) == (True, False)
    assert (broken.name, broken.error) == ("two.py", "ZeroDivisionError: division by zero")
    assert "ZeroDivisionError" in broken.traceback


def test_a_task_that_kills_its_worker_costs_its_own_file_only():
    with farm_executor.FarmExecutor(max_workers=2, max_attempts=1) as farm:
        analysis = run(Sabotaged(farm, "two.py", os._exit, 3), FILES)
    assert [report.name for report in analysis.reports] == ["one.py", "three.py"]
    broken = analysis.failures[1]
    assert (broken.name, broken.unparsable) == ("two.py", False)
    assert "WorkerLostError" in broken.error


def test_a_broken_executor_is_the_caller_s_to_know():
    executor = ThreadPoolExecutor(1, initializer=operator.truediv, initargs=(1, 0))
    executor.submit(int).exception(timeout=30)
    with executor, pytest.raises(BrokenExecutor):
        run(executor, FILES)


def test_workers_are_told_apart_and_their_files_add_up(executor):
    analysis = run(executor, FILES)
    assert sum(len(seconds) for seconds in analysis.busy.values()) == len(analysis.reports)
    assert all(second >= 0 for seconds in analysis.busy.values() for second in seconds)
    pids = {int(worker.rpartition(":")[2]) for worker in analysis.busy}
    assert (pids == {os.getpid()}) is isinstance(executor, ThreadPoolExecutor)


def test_progress_is_told_after_each_file_failed_ones_too():
    told = []
    run(SerialExecutor(), FILES, lambda *numbers: told.append(numbers))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_no_files_are_no_trouble():
    assert run(SerialExecutor(), []).outcomes == {}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_few_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    show = demo.show_progress(stream)
    for done in range(1, 101):
        show(done, 100)
    assert [line.split(",")[0] for line in stream.getvalue().splitlines()] == [
        " 25 of 100 files",
        " 50 of 100 files",
        " 75 of 100 files",
        "100 of 100 files",
    ]


def test_progress_is_one_line_rewritten_and_at_last_erased_on_a_terminal(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(demo, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    stream = Terminal()
    show = demo.show_progress(stream)
    for done in range(1, 11):
        show(done, 10)
    text = stream.getvalue()
    assert "\n" not in text
    assert "\r 9 of 10 files, 9.0 s" in text
    assert text.endswith("\r" + " " * len(" 9 of 10 files, 10.0 s") + "\r")


def in_place_of_farm(executor):
    return lambda servers, *, max_workers, key_file, connect_timeout: executor(max_workers)


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs `demo` over files with a stand-in for the farm: the exit code, stdout and stderr."""

    def run_command(*arguments, farm=in_place_of_farm(ThreadPoolExecutor), files=FILES):
        for name, content in files:
            (tmp_path / name).write_bytes(content)
        monkeypatch.setattr(demo, "stdlib", lambda: tmp_path)
        monkeypatch.setattr(farm_executor, "FarmExecutor", farm)
        parser = argparse.ArgumentParser()
        parser.add_argument("--key-file")
        demo.add_arguments(parser)
        code = demo.main(parser.parse_args(arguments))
        return code, *capsys.readouterr()

    return run_command


def sabotaged(name, *call):
    class Farm(ThreadPoolExecutor):
        def submit(self, fn, /, *args):
            return super().submit(*(call if args[:1] == (name,) else (fn, *args)))

    return in_place_of_farm(Farm)


def test_json_has_the_documented_keys(command):
    code, out, err = command("--json", "--serial", "all", "--tracebacks", "--top", "2")
    assert code == 0
    assert "4 of 4 files" in err
    answer = json.loads(out)
    longest = {"name": "C.g", "line": 2, "lines": 1, "complexity": 2}
    seconds = answer.pop("seconds")
    times = answer.pop("serial")
    (worker,) = answer.pop("workers")
    (unparsable,) = answer.pop("unparsable")
    directory = answer.pop("directory")
    assert answer == {
        "python": sys.version.split()[0],
        "files": 4,
        "modules": 3,
        "complexity": 6,
        "lines": 4,
        "functions": 2,
        "classes": 1,
        "longest_function": {"module": "two.py", **longest},
        "most_complex": [
            {
                "module": "two.py",
                "complexity": 3,
                "lines": 2,
                "functions": 1,
                "classes": 1,
                "longest_function": longest,
            },
            {
                "module": "one.py",
                "complexity": 2,
                "lines": 1,
                "functions": 1,
                "classes": 0,
                "longest_function": {"name": "f", "line": 1, "lines": 1, "complexity": 1},
            },
        ],
        "failed": [],
    }
    assert directory == str(demo.stdlib())
    assert set(unparsable) == {"name", "error", "traceback"}
    assert set(worker) == {"worker", "files", "seconds"}
    assert worker["files"] == 3
    assert set(times) == {"files", "seconds", "estimated_seconds", "speed_up", "different"}
    assert (times["files"], times["different"]) == (4, [])
    assert times["estimated_seconds"] == pytest.approx(times["seconds"])
    assert times["speed_up"] == pytest.approx(times["estimated_seconds"] / seconds)


def test_json_without_serial_run_and_tracebacks_leaves_them_out(command):
    answer = json.loads(command("--json", "--serial", "none")[1])
    assert answer["serial"] is None
    assert set(answer["unparsable"][0]) == {"name", "error"}


def test_tables_show_modules_failures_workers_and_times_in_eighty_columns(command):
    wide = [
        (f"a_module_with_a_rather_long_name_{number}.py", b"class C:\n  def " + b"f" * 50 + b"(): 0\n")
        for number in range(30)
    ]
    code, out, _ = command("--top", "33", files=[*FILES, *wide])
    lines = out.splitlines()
    assert code == 0
    assert max(map(len, lines[1:])) <= 80
    assert "all 33 modules" in out
    assert "files that cannot be parsed: 1\n  bad.py: line 2: Missing" in out
    assert "wall time" in out
    assert "estimated from 4 files" in out
    assert "speed-up" in out
    assert "4    of 4 results compared" in out
    assert "Traceback" not in out
    assert "FAILED" not in out


def test_the_table_orders_modules_by_complexity(command):
    _, out, _ = command("--serial", "none")
    table = out[out.index("\nmodule") : out.index("\nall 3 modules")].splitlines()[2:]
    assert [line.split() for line in table] == [
        ["two.py", "3", "2", "1", "1", "1", "g"],
        ["one.py", "2", "1", "1", "0", "1", "f"],
        ["three.py", "1", "1", "0", "0"],
    ]
    assert "speed-up" not in out


def test_tracebacks_are_shown_in_full_on_request(command):
    _, out, _ = command("--tracebacks")
    assert '      File "bad.py", line 2' in out


def test_a_file_that_failed_for_another_reason_is_exit_code_1(command):
    code, out, _ = command("--serial", "none", farm=sabotaged("two.py", operator.truediv, 1, 0))
    assert code == 1
    assert "FILES THAT FAILED: 1\n  two.py: ZeroDivisionError: division by zero" in out
    assert "all 2 modules" in out


def test_many_failures_are_shown_by_their_first_ones(command):
    code, out, _ = command(files=[(f"{number:03}.py", b"(") for number in range(50)])
    assert code == 0
    assert "files that cannot be parsed: 50" in out
    assert "  019.py: " in out
    assert "  020.py: " not in out
    assert "  ... and 30 more" in out


def test_a_result_that_differs_from_the_serial_one_is_exit_code_1(command):
    wrong = (analyse("two.py", b""), "elsewhere:1", 0.5)
    code, out, _ = command("--serial", "all", farm=sabotaged("two.py", lambda: wrong))
    assert code == 1
    assert "3    of 4 results compared" in out
    assert "  DIFFERENT: two.py" in out


def test_what_the_terminal_cannot_show_is_escaped(command, monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    command(files=[("euro.py", "€ = 1".encode())])
    stdout.flush()
    assert rb"invalid character '\u20ac'" in stdout.buffer.getvalue()


def test_a_python_without_its_sources_is_told_and_exit_code_1(command):
    code, out, err = command(files=[])
    assert (code, out) == (1, "")
    assert "no Python source files in" in err


@pytest.mark.parametrize(
    "arguments", [["--workers", "0"], ["--workers", "x"], ["--top", "-1"], ["--serial", "some"], ["--servers"]]
)
def test_bad_options_are_a_usage_error(command, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        command(*arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_failures_and_reports_compare_without_what_tells_of_the_machine():
    assert Failure("a", True, "e", "here") == Failure("a", True, "e", "there")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"servers": None, "max_workers": None, "key_file": None, "connect_timeout": None}),
        (
            ["--servers", "a:1", "b:2", "--workers", "3", "--key-file", "k"],
            {"servers": ["a:1", "b:2"], "max_workers": 3, "key_file": "k", "connect_timeout": demo.CONNECT_TIMEOUT},
        ),
    ],
)
def test_the_farm_is_built_as_the_options_say_and_waits_for_servers_no_longer_than_a_while(
    command, arguments, expected
):
    class BuiltError(Exception):
        pass

    def farm(servers, **options):
        assert {"servers": servers, **options} == expected
        raise BuiltError

    with pytest.raises(BuiltError):
        command(*arguments, farm=farm)


def test_a_farm_that_cannot_be_had_is_one_error_not_each_file_s(command):
    class Farm(ThreadPoolExecutor):
        def submit(self, fn, /, *args):
            future = Future()
            future.set_exception(TimeoutError("nobody listens"))
            return future

    with pytest.raises(TimeoutError, match="nobody listens"):
        command(farm=in_place_of_farm(Farm))


def test_the_demo_runs_on_servers(command):
    start = partial(farm_executor.start_server, "127.0.0.1", 0, background=True, workers=1)
    with start() as one, start() as two:
        arguments = ["--servers", one.address, two.address, "--serial", "all", "--json"]
        code, out, _ = command(*arguments, farm=farm_executor.FarmExecutor)
    answer = json.loads(out)
    assert code == 0
    assert (answer["modules"], answer["failed"], answer["serial"]["different"]) == (3, [], [])
    assert sum(worker["files"] for worker in answer["workers"]) == 3


def test_what_interrupts_the_run_cancels_what_has_not_begun(command):
    ends = []

    class Farm(ThreadPoolExecutor):
        def submit(self, fn, /, *args):
            raise KeyboardInterrupt

        def shutdown(self, wait=True, *, cancel_futures=False):
            ends.append(cancel_futures)
            super().shutdown(wait, cancel_futures=cancel_futures)

    with pytest.raises(KeyboardInterrupt):
        command(farm=in_place_of_farm(Farm))
    assert ends == [True]
