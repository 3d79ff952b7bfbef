"""What tasks write comes out here: all of it, in order, before their results, and bound to their futures."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import wait

import pytest
from client import output_tasks as tasks
from contract.gate import Gate
from faults.proxy import Proxy
from server.processes import DEADLINE, wait_until

from farm_executor import (
    FarmExecutor,
    OutputLine,
    TaskKilledError,
    TaskTimeoutError,
    WorkerLostError,
    start_server,
)
from farm_executor.client.farm import hearing, voice
from farm_executor.client.farm.output import Source

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a server needs fork"),
    pytest.mark.usefixtures("no_leaks"),
]


class Listener(list):
    """A callable for ``output=`` that keeps the lines."""

    def __call__(self, line):
        self.append(line)

    def texts(self, stream="stdout"):
        return [line.text for line in self if line.stream == stream]


@pytest.fixture
def heard():
    return Listener()


@pytest.fixture
def _patience(monkeypatch):
    """On a busy machine output may take longer than an outcome would have to wait for it."""
    monkeypatch.setattr(hearing, "PATIENCE", DEADLINE)
    monkeypatch.setattr(voice, "STUCK_SECONDS", DEADLINE)


@pytest.fixture(scope="module")
def server():
    with start_server("127.0.0.1", 0, background=True, workers=2) as server:
        yield server


@pytest.fixture(params=["embedded", "served"])
def where(request, server):
    return {"addresses": None if request.param == "embedded" else server.address, "max_workers": 1}


# -- all of it, in order ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_patience")
def test_output_of_every_kind_comes_in_order(where, heard):
    with FarmExecutor(**where, output=heard) as farm:
        farm.submit(tasks.say_in_every_way).result()
    assert heard.texts() == ["print", "os.write", "subprocess", "forked", "puts", "buffer"]
    errors = heard.texts("stderr")
    assert errors[0] == "stderr"
    assert any("a warning" in line for line in errors)
    assert any("say_in_every_way" in line for line in errors), "faulthandler"


@pytest.mark.usefixtures("_patience")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_it_comes_with_its_task_whether_python_buffers_or_not(monkeypatch, heard, unbuffered):
    """Unbuffered, each print is several writes, and C's own standard output is not buffered by lines."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with FarmExecutor(1, output=heard) as farm:
        futures = [farm.submit(tasks.say_by_c, f"line {number}") for number in range(50)]
        for number, future in enumerate(futures):
            future.result()
            assert future.output == f"line {number} of python\nline {number} of c\n"
    assert len(heard) == 100


def test_a_line_says_where_it_comes_from(server, heard):
    with FarmExecutor(server.address, max_workers=1, output=heard) as farm:
        pid = farm.submit(os.getpid).result()
        farm.submit(tasks.say, "hello").result()
    assert heard == [OutputLine("hello", "stdout", str(server.address), 0, pid)]


def test_a_program_writes_it_with_its_source_in_front(server, capsys):
    with FarmExecutor(server.address, max_workers=1) as farm:
        farm.submit(tasks.say, "out").result()
        farm.submit(tasks.say, "err", "stderr").result()
    assert capsys.readouterr() == (f"({server.address}/0) out\n", f"({server.address}/0) err\n")


@pytest.mark.usefixtures("_patience")
def test_an_embedded_farm_is_heard_under_capture_and_needs_no_source(capsys):
    with FarmExecutor(1) as farm:
        farm.submit(tasks.say, "hello").result()
    assert capsys.readouterr().out == "hello\n"


def test_output_goes_to_what_stdout_is_at_that_moment(where):
    with FarmExecutor(**where, output="forward") as farm:
        with contextlib.redirect_stdout(io.StringIO()) as first:
            farm.submit(tasks.say, "one").result()
        with contextlib.redirect_stdout(io.StringIO()) as second:
            farm.submit(tasks.say, "two").result()
    assert first.getvalue().endswith("one\n")
    assert second.getvalue().endswith("two\n")


def test_an_embedded_farm_shares_the_output_of_a_program_that_has_it_for_itself():
    program = (
        "import sys, os; from farm_executor import FarmExecutor\n"
        "def f():\n    print('hello')\n    return os.fstat(1).st_ino\n"
        "with FarmExecutor(1) as farm:\n    future = farm.submit(f)\n"
        "    assert future.result() == os.fstat(1).st_ino\n    assert future.output == ''\n"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"hello\n"


def test_the_server_keeps_it_if_told_to(server, capsys):
    with FarmExecutor(server.address, max_workers=1, output="server") as farm:
        future = farm.submit(tasks.say, "hello")
        future.result()
        assert future.output == ""
    assert capsys.readouterr().out == ""


def test_a_program_that_cannot_write_a_character_writes_its_escape(where, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with FarmExecutor(**where, output="forward") as farm:
        monkeypatch.setattr(sys, "stdout", out)
        farm.submit(tasks.say, "\u00e4\u2603").result()
        farm.submit(tasks.say, "on").result()
        monkeypatch.undo()
    out.flush()
    lines = out.buffer.getvalue().splitlines()
    assert lines[0].endswith(rb"\xe4\u2603")
    assert lines[1].endswith(b"on")


def test_standard_output_is_still_what_tasks_expect(where, heard):
    with FarmExecutor(**where, output=heard) as farm:
        assert farm.submit(tasks.stdout_as_it_is).result() == (1, "<stdout>", "utf-8", True)


def test_code_that_holds_the_interpreter_may_write_more_than_a_pipe_takes(where, heard):
    with FarmExecutor(**where, output=heard) as farm:
        farm.submit(tasks.hold_the_lock_and_write, 1_000_000).result(DEADLINE)
    assert sum(map(len, heard.texts())) == 1_000_000


@pytest.mark.usefixtures("_patience")
def test_a_flood_comes_whole_and_in_order(where, heard):
    with FarmExecutor(**where, output=heard) as farm:
        farm.submit(tasks.say_many, 20_000, 100).result()
    assert [int(line.split()[1]) for line in heard.texts()] == list(range(20_000))


# -- bound to futures, before results ----------------------------------------------------------------------------


@pytest.mark.usefixtures("_patience")
def test_no_result_overtakes_its_output_and_each_future_has_its_own(where, heard):
    """Thousands of short tasks, of which half write, in batches and one after the other."""

    def ended(future):
        behind[future] = len(heard)

    behind = {}
    with FarmExecutor(**where, output=heard) as farm:
        futures = [farm.submit(*((tasks.say, f"<{n}>") if n % 2 else (tasks.quiet,))) for n in range(2000)]
        for future in futures:
            future.add_done_callback(ended)
        wait(futures)
        for n in range(2000, 2200):
            futures.append(farm.submit(tasks.say, f"<{n}>"))
            futures[-1].result()
            behind[futures[-1]] = len(heard)
    for n, future in enumerate(futures):
        said = f"<{n}>" if n % 2 or n >= 2000 else ""
        assert future.output == (said and f"{said}\n")
        if said:
            assert said in heard.texts()[: behind[future]]


# Less than fills a window in all, as else a program that a busy machine holds up for a second counts as deaf.
@pytest.mark.parametrize(("size", "count"), [(10, 1000), (30_000, 30)])
def test_each_future_has_its_own_output_though_showing_it_is_not_waited_for(where, monkeypatch, size, count):
    monkeypatch.setattr(hearing, "PATIENCE", 0.001)
    monkeypatch.setattr(voice, "STUCK_SECONDS", 0.0)
    with FarmExecutor(**where, output=lambda line: None) as farm:
        futures = [farm.submit(tasks.say, f"<{n}>".ljust(size, ".")) for n in range(count)]
        for n, future in enumerate(futures):
            future.result()
            assert future.output == (f"<{n}>".ljust(size, ".") + "\n")[-hearing.KEPT_OF_TASK :]


@pytest.mark.usefixtures("_patience")
def test_the_first_output_of_a_worker_that_was_silent_for_long_is_bound_right(where, heard):
    with FarmExecutor(**where, output=heard) as farm:
        list(farm.map(abs, range(5000)))
        futures = [farm.submit(tasks.say, "rare") if n == 500 else farm.submit(abs, n) for n in range(1000)]
        wait(futures)
    assert [n for n, future in enumerate(futures) if future.output] == [500]


def test_output_of_the_initializer_is_shown_and_belongs_to_no_task(where, heard):
    with FarmExecutor(**where, output=heard, initializer=tasks.say, initargs=("starting",)) as farm:
        future = farm.submit(tasks.say, "working")
        future.result()
    assert heard.texts() == ["starting", "working"]
    assert future.output == "working\n"


@pytest.mark.usefixtures("_patience")
def test_a_tail_of_both_streams_is_kept(where, heard):
    with FarmExecutor(**where, output=heard) as farm:
        future = farm.submit(tasks.say_many, 1000, 100)
        future.result()
    assert future.output.endswith("line 999 ".ljust(100, ".") + "\n")
    assert len(future.output) == hearing.KEPT_OF_TASK


@pytest.mark.usefixtures("_patience")
def test_a_failed_task_has_its_output_in_its_report(where, heard):
    with FarmExecutor(**where, output=heard) as farm:
        future = farm.submit(tasks.say_and_fail, "\x1b[31mabout to fail\x1b[0m")
        error = future.exception()
    report = error.__cause__
    assert report.output == future.output == "\x1b[31mabout to fail\x1b[0m\n"
    assert str(report).endswith('the last that it wrote:\n"""\nabout to fail\n"""'), "nothing controls a terminal"


@pytest.mark.usefixtures("_patience")
@pytest.mark.parametrize("end", ["died", "killed", "overran"])
def test_a_task_that_is_ended_has_its_output_in_its_error(where, heard, end):
    with FarmExecutor(**where, output=heard) as farm:
        if end == "died":
            future = farm.with_options(max_attempts=1).submit(tasks.say_and_die, "last words")
        elif end == "killed":
            future = farm.submit(tasks.say_and_hang, "last words")
            wait_until(heard.texts, "a line")
            assert farm.kill(future)
        else:
            future = farm.with_options(timeout=1.5).submit(tasks.say_and_hang, "last words")
        error = future.exception()
    assert type(error) is {"died": WorkerLostError, "killed": TaskKilledError, "overran": TaskTimeoutError}[end]
    assert error.output.rstrip("\n") == future.output.rstrip("\n") == "last words"
    assert "last words" in str(error)
    assert heard.texts() == ["last words"]


@pytest.mark.usefixtures("_patience")
def test_a_task_that_runs_again_has_the_output_of_its_last_attempt(where, heard, tmp_path):
    with FarmExecutor(**where, output=heard) as farm:
        future = farm.with_options(max_attempts=2).submit(tasks.say_and_die, "again")
        future.exception()
    assert future.output == "again"
    assert heard.texts() == ["again", "again"]


@pytest.mark.usefixtures("_patience")
def test_lines_of_tasks_do_not_run_into_each_other(where, heard):
    with FarmExecutor(**where, output=heard) as farm:
        for text in ("one", "two"):
            assert farm.submit(tasks.say, text, end="").result() == text
            assert heard.texts()[-1] == text


def test_a_line_that_does_not_end_is_shown_after_a_while(where, heard):
    with Gate() as gate, FarmExecutor(**where, output=heard) as farm:
        future = farm.submit(_say_and_pass, "a prompt: ", gate.address)
        wait_until(heard.texts, "a line")
        gate.open()
        future.result()
    assert heard.texts() == ["a prompt: "]


def _say_and_pass(text, address):
    from contract.tasks import pass_gate

    print(text, end="", flush=True)
    pass_gate(address)


def test_tasks_may_do_what_they_like_with_their_descriptors(where, heard):
    with FarmExecutor(**where, output=heard) as farm:
        future = farm.submit(tasks.replace_descriptor)
        future.result()
        assert future.output == "here again\n"
        farm.submit(tasks.close_output).result()
        assert farm.submit(abs, -1).result() == 1, "and the farm goes on"


def test_what_a_process_writes_that_a_task_has_left_behind_is_shown(where, heard):
    with FarmExecutor(**where, output=heard) as farm:
        future = farm.submit(tasks.leave_a_writer_behind, 0.2)
        future.result()
        assert future.output == ""
        wait_until(heard.texts, "a line")
    assert heard.texts() == ["the orphan"]


def test_an_orphan_is_heard_when_its_worker_is_dead_and_harms_nobody(server, heard):
    with FarmExecutor(server.address, max_workers=1, output=heard) as farm:
        pid = farm.submit(os.getpid).result()
        farm.submit(tasks.leave_a_writer_behind, 0.5).result()
        os.kill(pid, signal.SIGKILL)
        assert farm.submit(abs, -1).result() == 1
        wait_until(heard.texts, "a line")
    assert heard.texts() == ["the orphan"]


# -- nobody listens ----------------------------------------------------------------------------------------------


def test_a_program_that_does_not_take_it_costs_its_tasks_a_second_at_most(where):
    """The callable never returns: results come all the same, and the flood ends."""
    stop = threading.Event()
    with FarmExecutor(**where, output=lambda line: stop.wait()) as farm:
        try:
            future = farm.submit(tasks.say_many, 50_000, 100)
            assert future.result(DEADLINE) == 50_000
            assert [farm.submit(tasks.say, "more").result(DEADLINE) for _ in range(20)] == ["more"] * 20
            assert future.output.endswith("\n") or future.output == "", "what is not heard of is not kept"
        finally:
            stop.set()


def test_a_callable_that_raises_is_logged_and_loses_its_line_only(where, caplog):
    heard = Listener()

    def take(line):
        if line.text == "bad":
            raise ValueError("no such line")
        heard(line)

    with FarmExecutor(**where, output=take) as farm:
        for text in ("one", "bad", "two"):
            farm.submit(tasks.say, text).result()
    assert heard.texts() == ["one", "two"]
    assert "no such line" in caplog.text


def test_a_callable_may_use_the_farm(where):
    results = []

    def take(line):
        results.append(farm.submit(abs, -1).result(DEADLINE))

    with FarmExecutor(**where, output=take) as farm:
        farm.submit(tasks.say, "hello").result()
        wait_until(lambda: results, "the callable has its result")
    assert results == [1]


# -- connections that break --------------------------------------------------------------------------------------


def test_over_cuts_what_is_missing_is_said_and_results_are_right(server, heard):
    lines = 3000
    with (
        Proxy(server.address) as proxy,
        FarmExecutor(proxy.address, max_workers=1, output=heard, resume_timeout=DEADLINE) as farm,
    ):
        farm.submit(tasks.quiet).result()
        future = farm.submit(_say_slowly, lines)
        for part in (1, 2, 3):
            wait_until(lambda part=part: len(heard) > part * lines // 5, "some lines")
            proxy.cut()
        assert future.result(DEADLINE) == lines
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        wait_until(lambda: heard.texts()[-1] == f"line {lines - 1}" or "lost" in heard.texts()[-1], "the end")
    said = sum(len(text) + 1 for text in heard.texts() if not text.startswith("["))
    lost = sum(int(text[1:].split()[0]) for text in heard.texts() if text.startswith("["))
    assert abs(said + lost - sum(len(f"line {n}\n") for n in range(lines))) <= 3, "a cut may end a line"
    numbers = [int(text.split()[1]) for text in heard.texts() if text.startswith("line ") and text[5:].isdigit()]
    assert numbers == sorted(numbers)


def _say_slowly(count):
    import time

    for number in range(count):
        print(f"line {number}")
        if number % 10 == 0:
            time.sleep(0.002)
    return count


def test_marks_are_repeated_over_another_connection(server, heard):
    with (
        Proxy(server.address) as proxy,
        FarmExecutor(proxy.address, max_workers=1, output=heard, resume_timeout=DEADLINE) as farm,
    ):
        farm.submit(tasks.quiet).result()
        for n in range(20):
            futures = [farm.submit(tasks.say, f"<{n} {m}>") for m in range(50)]
            proxy.cut()
            for m, future in enumerate(futures):
                assert future.result(DEADLINE) == f"<{n} {m}>"
                assert future.output in ("", f"<{n} {m}>\n"), "never another task's"


# -- many at once ------------------------------------------------------------------------------------------------


def test_workers_that_are_replaced_after_each_task_are_heard(server, heard):
    with FarmExecutor(server.address, max_workers=2, max_tasks_per_child=1, output=heard) as farm:
        futures = [farm.submit(tasks.say, f"<{n}>") for n in range(10)]
        wait(futures)
    assert [future.output for future in futures] == [f"<{n}>\n" for n in range(10)]
    assert sorted(heard.texts()) == sorted(f"<{n}>" for n in range(10))


@pytest.mark.usefixtures("_patience")
def test_map_and_views_are_heard(where, heard):
    with FarmExecutor(**where, output=heard) as farm:
        view = farm.with_options(priority="high")
        assert list(view.map(tasks.say, "abc", chunksize=2)) == ["a", "b", "c"]
    assert heard.texts() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("output", "error"), [("foo", ValueError), (5, TypeError), (b"server", TypeError), (True, TypeError)]
)
def test_output_is_checked(output, error):
    with pytest.raises(error, match="output must be"):
        FarmExecutor(output=output)


def test_the_mark_of_a_line_is_the_server_without_how_it_is_started():
    source = Source.of("ssh://me@host?workers=4&python=/opt/python", 3, 1, own=False)
    assert source.prefix == "(ssh://me@host/3) "
