"""Standard error of workers: nothing of it is lost, nobody waits for it, and its end is in the report."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from contract.gate import Gate
from contract.tasks import pass_gate
from hypothesis import given
from hypothesis import strategies as st
from server import tasks
from server.peers import SessionPeer
from server.processes import DEADLINE, children, descriptors, wait_until
from server.serving import KEY, TESTS, Serving

from farm_executor import FarmExecutor, WorkerLostError
from farm_executor.core.frames import MAX_HELLO
from farm_executor.server.stderr import KEPT, MAX_CHARACTERS, MAX_LINES, StderrPipe, last_words

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a server needs fork")
RECORD = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ farm_executor.*\n")
"""What the server itself logs: of other workers and sessions at any moment, also amid what a worker writes."""
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

# -- the last words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"one\n\ntwo\n", "one\ntwo"),
        (b"no newline", "no newline"),
        (b"\x1b[31mred\x1b[0m\x07 \x00bell\tand tab\n", "red bell\tand tab"),
        (b"\r10%\r 20%\r100%\ndone\r\n", "100%\ndone"),
        ("größer ☃ \u202e\n".encode(), "größer ☃"),
        (b"\xff\xfe?\n", "\ufffd\ufffd?"),
    ],
)
def test_last_words_are_what_a_terminal_would_show(data, text):
    assert last_words(data) == text


def test_last_words_are_the_last_lines():
    assert last_words(b"".join(b"line %d\n" % n for n in range(100))).split("\n") == [
        f"line {n}" for n in range(100 - MAX_LINES, 100)
    ]


def test_of_a_crash_the_beginning_is_kept_and_what_was_said_just_before():
    frames = "".join(f'  File "x.py", line {n} in f\n' for n in range(100))
    report = f"start\nterminate called\nFatal Python error: Aborted\n\nCurrent thread:\n{frames}"
    words = last_words(report.encode()).split("\n")
    assert words[:4] == ["start", "terminate called", "Fatal Python error: Aborted", "Current thread:"]
    assert len(words) == MAX_LINES


@given(st.binary(max_size=KEPT))
def test_whatever_the_bytes_last_words_are_few_and_harmless(data):
    words = last_words(data)
    assert len(words) <= MAX_CHARACTERS
    assert len(words.split("\n")) <= MAX_LINES
    assert all(c in "\t\n" or c.isprintable() for c in words)
    assert len(json.dumps(words)) < MAX_HELLO // 2


# -- the pipe ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe(no_leaks):
    """A pipe, the end to write to, and the other end of what stands for our own standard error."""
    pipe = StderrPipe(whole=True)
    shown, own = os.pipe()
    os.set_blocking(shown, False)
    pipe._sink = own
    ends = {"worker": pipe._write_end, "shown": shown, "own": own}
    yield pipe, ends
    pipe.close()
    for descriptor in ends.values():
        os.close(descriptor)


def test_what_is_written_is_passed_on_as_it_is(pipe):
    pipe, ends = pipe
    os.write(ends["worker"], b"\x00\xff any \x1b bytes")
    assert not pipe.copy()
    assert os.read(ends["shown"], 100) == b"\x00\xff any \x1b bytes"
    os.close(ends.pop("worker"))
    assert pipe.copy()


def test_while_nobody_reads_on_it_does_not_wait_and_then_nothing_is_lost(pipe):
    pipe, ends = pipe
    os.set_blocking(ends["worker"], False)
    sent = received = b""
    for _ in range(100):
        try:
            sent += (data := os.urandom(4096))[: os.write(ends["worker"], data)]
        except BlockingIOError:
            break
        pipe.copy()
    assert pipe.stuck
    os.close(ends.pop("worker"))
    while not pipe.copy():
        received += os.read(ends["shown"], 65536)
    os.close(ends.pop("own"))
    while data := os.read(ends["shown"], 65536):
        received += data
    assert received == sent


def test_at_a_worker_s_death_what_is_there_is_taken_though_another_holds_the_other_end(pipe):
    pipe, ends = pipe
    os.write(ends["worker"], b"x" * 50_000 + b"\nlast")
    pipe.drain()
    assert pipe.evidence.endswith("\nlast")
    assert not pipe.copy()


def test_a_report_can_be_had_although_nobody_reads_on(pipe):
    pipe, ends = pipe
    os.set_blocking(ends["own"], False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(ends["own"], b"full")
    os.write(ends["worker"], b"last")
    pipe.drain()
    assert pipe.evidence == "last"
    assert pipe.stuck


def test_what_nobody_can_read_any_more_is_dropped(pipe):
    pipe, ends = pipe
    os.close(ends.pop("shown"))
    os.write(ends["worker"], b"last")
    assert not pipe.copy()
    assert not pipe.stuck
    assert pipe.evidence == "last"


# -- from end to end --------------------------------------------------------------------------------------------


def farm(server, **options):
    return FarmExecutor(server.address, **{"key": KEY, "max_attempts": 1, **options})


@LINUX
def test_the_server_s_standard_error_has_all_of_it_and_the_error_the_end(serving):
    text = "".join(f"line {n}\n" for n in range(20_000))
    with farm(serving, output="server") as executor:
        error = executor.submit(tasks.write_stderr_and_die, text, "exit").exception(DEADLINE)
    assert isinstance(error, WorkerLostError)
    assert error.exit_code == 7
    assert error.stderr.split("\n") == [f"line {n}" for n in range(20_000 - MAX_LINES, 20_000)]
    assert error.stderr in str(error)
    wait_until(lambda: text in RECORD.sub("", serving.log), "the whole text in the server's log")


@LINUX
def test_a_worker_that_is_killed_leaves_its_last_words(serving):
    with farm(serving) as executor:
        error = executor.submit(tasks.write_stderr_and_die, "so far, so good", "kill").exception(DEADLINE)
    assert (error.exit_code, error.stderr) == (-signal.SIGKILL, "so far, so good")


def test_a_crash_in_c_is_reported_with_python_s_stack(no_leaks, serving):
    for executor in (farm(serving), FarmExecutor(1, max_attempts=1)):
        with executor:
            error = executor.submit(tasks.die_deep_down, 50).exception(DEADLINE)
        assert error.exit_code == -signal.SIGSEGV
        assert error.stderr.startswith("Fatal Python error: Segmentation fault\n")
        assert "in die_deep_down" in error.stderr


def test_an_embedded_farm_s_workers_write_to_this_program_s_own_standard_error(no_leaks, capfd):
    with FarmExecutor(1, max_attempts=1) as executor:
        executor.submit(tasks.write_stderr, "from the task\n").result(DEADLINE)
        assert capfd.readouterr().err == "from the task\n"
        error = executor.submit(tasks.die, "segfault").exception(DEADLINE)
        crash = "Fatal Python error: Segmentation fault"
        assert crash in error.stderr
        assert crash in capfd.readouterr().err


@LINUX
def test_a_process_that_outlives_its_worker_delays_no_report_and_goes_on_writing(serving, tmp_path):
    before = len(descriptors(serving.pid))
    with Gate() as gate, farm(serving, max_workers=1) as executor:
        future = executor.submit(tasks.leave_a_child_and_die, str(tmp_path / "pids"), gate.address)
        gate.wait_for_arrivals()
        assert future.exception(DEADLINE).exit_code == 3
    wait_until(lambda: not children(serving.pid), "the workers have ended")
    wait_until(lambda: len(descriptors(serving.pid)) <= before, "no descriptor is left behind")


@LINUX
def test_a_server_whose_standard_error_nobody_reads_serves_on():
    command = [sys.executable, "-m", "farm_executor", "serve", "127.0.0.1:0", "--workers", "1"]
    with (
        Serving() as helper,  # for its key file
        subprocess.Popen(
            [*command, "--key-file", str(helper.key_file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([TESTS, *filter(None, sys.path)])},
        ) as server,
    ):
        try:
            address = server.stdout.readline().split()[2].decode().rstrip(",")
            with FarmExecutor(address, key=KEY, output="server") as loud, FarmExecutor(address, key=KEY) as other:
                future = loud.submit(tasks.write_stderr, "x" * 1_000_000)
                assert [other.submit(abs, -n).result(DEADLINE) for n in range(50)] == list(range(50))
                with SessionPeer(address) as session:
                    session.open_lane().start()
                assert not future.done(), "it waits, as it would if it wrote to a terminal that stands still"
                assert len(server.stderr.read(1_000_000)) == 1_000_000
                future.result(DEADLINE)
        finally:
            server.kill()


@LINUX
def test_a_worker_at_the_gate_holds_one_pipe_and_no_other_worker_s(serving):
    with Gate() as gate, farm(serving, max_workers=2) as executor:
        held = [executor.submit(pass_gate, gate.address) for _ in range(2)]
        gate.wait_for_arrivals(2)
        workers = sorted(children(serving.pid))
        pipes = [{d for d in descriptors(pid) if d.startswith("2=pipe")} for pid in workers]
        assert [len(found) for found in pipes] == [1, 1]
        others = [{d.partition("=")[2] for d in descriptors(pid)} for pid in workers]
        assert pipes[0].pop().partition("=")[2] not in others[1]
        gate.open()
        for future in held:
            future.result(DEADLINE)
