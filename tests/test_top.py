"""`farm-executor top`: what it shows of any servers, and the terminal that it takes over and gives back."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server.processes import DEADLINE, wait_until
from server.serving import KEY, Serving

from farm_executor import FarmExecutor, cli
from farm_executor.core.census import (
    WORKER_COLUMNS,
    ClientStatus,
    Death,
    FarmStatus,
    Machine,
    Status,
    Totals,
    WorkerTable,
)
from farm_executor.core.messages import from_json, to_json
from farm_executor.core.text import width_of
from farm_executor.observe.frame import SORTS, Choices, frame
from farm_executor.observe.model import Server, clients_of, workers_of
from farm_executor.observe.top import paint, press
from farm_executor.wire.versions import local_versions


def document(number=0, at=1000.0, tasks=0, busy=0.0, **changes):
    """What a server says that has ten workers and two clients."""
    ada = FarmStatus(queued=12_000, running=5, submitted=99_000, succeeded=86_000, failed=3, lost=1)
    rows = [
        [1 + slot % 2, slot, 4000 + slot, 3600, "busy" if slot < 5 else "idle", 1.5, 10, busy / 10, 1.0, 120, 9, 4]
        for slot in range(10)
    ]
    status = Status(
        *(
            2,
            "0.0.0.0:11111",
            "lab",
            f"node{number}",
            "farm",
            900 + number,
            3600.0,
            at,
            10,
            False,
            local_versions(),
        ),
        machine=Machine(8.0, [3.2, 3.0, 2.0], 64 << 30, 32 << 30),
        totals=Totals(2, 12, {}, tasks, busy, tasks * 900, tasks * 400),
        sessions=[
            ClientStatus(1, "pid 88 at 10.0.0.3:5", "login1", "ada", "fit.py", "gridsearch", 60.0, "open", 5, ada),
            ClientStatus(2, "pid 99 at 10.0.0.4:5", "login2", "grace", "ipykernel.py", "", 60.0, "open", 5),
        ],
        sessions_left_out=0,
        workers=WorkerTable(list(WORKER_COLUMNS), rows),
        deaths=[],
    )
    return status._replace(**changes)


def servers_of(count):
    servers = []
    for number in range(count):
        server = Server(f"node{number:03d}:11111")
        server.take(document(number), 10.0)
        server.take(document(number, at=1001.0, tasks=50, busy=5.0), 11.0)
        servers.append(server)
    return servers


def text_of(lines):
    return ["".join(text for text, _ in line).rstrip() for line in lines]


# -- rates ---------------------------------------------------------------------------------------------


def test_rates_are_differences_of_two_documents():
    (server,) = servers_of(1)
    assert (server.rates.tasks, server.rates.busy) == (50.0, 0.5)
    assert server.rates.workers[4000][0] == pytest.approx(0.5)


def test_the_same_document_once_more_changes_no_rate():
    (server,) = servers_of(1)
    before = server.rates
    server.take(document(at=1001.0, tasks=50, busy=5.0), 11.3)
    assert server.rates == before


def test_a_server_that_restarts_has_no_rates_at_first():
    (server,) = servers_of(1)
    server.take(document(at=1002.0, pid=77, tasks=3), 12.0)
    assert server.rates.tasks == 0
    server.take(document(at=1003.0, pid=77, tasks=5), 13.0)
    assert server.rates.tasks == 2


@pytest.mark.parametrize("jump", [-86_400.0, -1.0, 0.5, 3600.0, 1e9])
def test_a_clock_that_jumps_makes_no_wild_rates(jump):
    (server,) = servers_of(1)
    server.take(document(at=1002.0 + jump, tasks=100, busy=6.0), 12.0)
    assert 0 <= server.rates.tasks <= 100
    assert 0 <= server.rates.busy <= 1


def test_counters_that_fall_make_no_negative_rates():
    (server,) = servers_of(1)
    server.take(document(at=1002.0, tasks=1, busy=0.0), 12.0)
    assert (server.rates.tasks, server.rates.busy, server.rates.received) == (0, 0, 0)


def test_a_client_of_several_servers_is_one():
    ada, grace = clients_of(servers_of(3))
    assert (ada.name, ada.pid, ada.workers, ada.busy, ada.servers) == ("gridsearch", "88", 15, 9, 3)
    assert ada.farm.queued == 12_000, "its farm's queue counts once"
    assert (grace.name, grace.farm) == ("ipykernel.py", None)


@pytest.mark.parametrize(
    "table",
    [
        WorkerTable([], [[1, 2, 3]]),
        WorkerTable(["pid", "state", "slot"], [["x", 3, None], [], [1], [1, "busy", 2, 4, 5]]),
        WorkerTable(list(WORKER_COLUMNS), [[None] * 12, ["busy"] * 12, [2**62] * 12]),
        WorkerTable(["unknown", *WORKER_COLUMNS], [["x", 1, 2, 3]]),
    ],
)
def test_a_table_of_any_cells_can_be_shown(table):
    server = Server("x")
    for at in (1.0, 2.0):
        server.take(document(at=1000.0 + at, workers=table), at)
    assert len(workers_of(server.status)) == len(table.rows)
    for width in (20, 80):
        assert all(width_of(line) <= width for line in text_of(frame([server], Choices(), width, 30)))


# -- frames --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [10, 40, 80, 120, 200])
@pytest.mark.parametrize("count", [0, 1, 20, 200])
@pytest.mark.parametrize("height", [1, 5, 24, 50])
def test_a_frame_fits(count, width, height):
    lines = frame(servers_of(count), Choices(), width, height, "12:34:56")
    assert len(lines) <= height
    assert all(width_of(line) <= width for line in text_of(lines))


def test_one_server_shows_its_workers():
    text = "\n".join(text_of(frame(servers_of(1), Choices(), 130, 40)))
    assert "1/1 servers  5/10 workers busy   12,000 queued   50 tasks/s" in text
    assert "load 3.2 of 8 cpus, memory 32.0G of 64.0G" in text
    assert re.search(r"^gridsearch +ada +login1 +88 +5 +3 +12,000 +86,000 +3 +1 ", text, re.M)
    assert re.search(r"^ +4 +4004 +gridsearch +busy +1\.5s", text, re.M)


def test_columns_go_by_priority_and_names_stay_whole():
    def titles(width):
        return next(
            line.split() for line in text_of(frame(servers_of(20), Choices(), width, 50)) if "SERVER " in line
        )

    assert titles(130)[-4:] == ["DEATHS", "IN/s", "OUT/s", "UP"]
    assert titles(80) == ["SERVER", "STATE", "WORKERS", "%", "TASKS/s", "LOAD", "MEM%", "DEATHS"]
    assert titles(45) == ["SERVER", "STATE", "WORKERS", "%"]


def test_what_needs_attention_comes_first():
    servers = servers_of(200)
    servers[7].take(document(7, at=1002.0, draining=True), 12.0)
    servers[9].take(document(9, at=1002.0, totals=Totals(1, 13, {"oom": 1, "ended": 5}, 60, 6.0, 0, 0)), 12.0)
    servers[111].lose("ConnectionRefusedError: nobody")
    lines = text_of(frame(servers, Choices(), 120, 40))
    body = lines[next(i for i, line in enumerate(lines) if line.startswith("SERVER")) + 1 :]
    assert [line.split()[:2] for line in body[:2]] == [["node111:11111", "down"], ["node007:11111", "draining"]]
    assert body[2].startswith("node009")
    assert "ConnectionRefusedError: nobody" in body[0]
    assert " 199/200 servers" in lines[0]
    assert sum(line.count("x") for line in lines[1:4]) == 1, "the strip shows where it is"
    assert any("more; by attention" in line for line in lines)


@pytest.mark.parametrize("sort", SORTS)
def test_every_sort_sorts_all(sort):
    assert len(frame(servers_of(20), Choices(sort=sort), 100, 60)) > 20


def test_deaths_are_shown_with_their_cause():
    server = Server("x")
    deaths = [
        Death(1e9 + n, 1, n, 4100, cause, code, 1 << 30)
        for n, (cause, code) in enumerate([("exit", 3), ("signal", -11), ("oom", -9)])
    ]
    server.take(document(deaths=deaths), 1.0)
    text = "\n".join(text_of(frame([server], Choices(), 120, 60)))
    for word in ("exit code 3", "signal 11", "out of memory", "1.0G"):
        assert word in text


def test_a_year_that_no_clock_knows_is_shown():
    server = Server("x")
    server.take(document(deaths=[Death(1e10, 1, 1, 1, "exit", 1, 0), Death(0.0, 1, 1, 1, "exit", 1, 0)]), 1.0)
    assert frame([server], Choices(), 120, 60)


NASTY = st.text(max_size=30) | st.sampled_from(
    ["\x1b]0;owned\x07", "\u202eevil", "👩‍👩‍👧", "日本語" * 20, "a\nb", "\r"]
)


@settings(max_examples=60, deadline=None)
@given(NASTY, NASTY, NASTY, st.integers(1, 150), st.integers(1, 40))
def test_no_byte_of_a_peers_steers_the_terminal_and_no_line_is_too_wide(label, user, cause, width, height):
    said = to_json(document(deaths=[Death(1.0, 1, 1, 1, cause, 3, 0)], name=label, host=user))
    said["sessions"][0] |= {"label": label, "user": user, "host": cause}
    said["workers"]["rows"][0][4] = cause
    server, lost = Server("a"), Server("b")
    try:
        server.take(from_json(Status, json.loads(json.dumps(said))), 1.0)
    except UnicodeEncodeError:
        return
    lost.lose(label)
    for shown in ([server], [server, lost]):
        lines = frame(shown, Choices(), width, height)
        for line in text_of(lines):
            assert line.isprintable()
            assert width_of(line) <= width


def test_ascii_where_there_is_nothing_else():
    lines = text_of(frame(servers_of(200), Choices(blocks=False), 120, 50))
    assert all(line.isascii() for line in lines)
    assert any("#" in line for line in lines)


def test_no_colour_is_no_colour_and_plain_is_plain():
    lines = frame(servers_of(2), Choices(), 100, 30)
    assert re.search(r"\x1b\[3\dm", "".join(paint(lines, colour=True)))
    assert not re.search(r"\x1b\[3\dm", "".join(paint(lines, colour=False)))
    assert "\x1b" not in "".join(paint(lines, colour=False, plain=True))


# -- keys ----------------------------------------------------------------------------------------------


def test_keys():
    servers, choices = servers_of(5), Choices(sort="name")
    for key in (b"j", b"\x1b[B", b"\x1bOB"):
        assert not press(key, choices, servers)
    assert choices.selected == 3
    press(b"k", choices, servers)
    press(b"\r", choices, servers)
    assert (choices.opened, choices.selected) == ("node002:11111", 0)
    assert any("SLOT" in line for line in text_of(frame(servers, choices, 100, 30)))
    for _ in range(50):
        press(b"j", choices, servers)
    assert choices.selected == 9, "its last worker"
    press(b"\x1b", choices, servers)
    assert not choices.opened
    press(b"s", choices, servers)
    assert choices.sort == "tasks"
    press(b"p", choices, servers)
    assert choices.paused
    press(b"+", choices, servers)
    assert choices.interval == 2
    for _ in range(9):
        press(b"-", choices, servers)
    assert choices.interval == 0.5
    assert press(b"q", choices, servers)


def test_a_filter_is_typed():
    servers, choices = servers_of(30), Choices()
    for key in (b"/", b"0", b"1", b"q", b"\x7f", b"\x1b]0;", b"\x7f", b"\x7f", b"\x7f", b"\r"):
        assert not press(key, choices, servers)
    assert choices.filter == "01"
    assert {one.split()[0] for one in text_of(frame(servers, choices, 100, 60)) if one.startswith("node")} == {
        "node001:11111",
        *(f"node01{n}:11111" for n in range(10)),
    }


@given(st.lists(st.binary(min_size=1, max_size=4), max_size=30))
@settings(deadline=None)
def test_no_key_is_an_error(keys):
    servers, choices = [*servers_of(2), Server("z")], Choices()
    for key in keys:
        press(key, choices, servers)
        frame(servers, choices, 80, 24)


# -- the command ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def serving():
    with Serving("--name", "lab", workers=2) as serving:
        yield serving


def test_once_is_a_table(serving, capsys):
    with FarmExecutor(serving.address, key=KEY, name="gridsearch") as farm:
        farm.submit(abs, 1).result(DEADLINE)
        assert cli.main(["top", serving.address, "--once", "-i", "0.5", "--key-file", str(serving.key_file)]) == 0
    said = capsys.readouterr().out
    assert "1/1 servers" in said
    assert "gridsearch" in said
    assert "\x1b" not in said


def test_a_server_that_is_down_is_exit_code_1_and_does_not_hide_the_others(serving, capsys):
    command = ["top", serving.address, "127.0.0.1:1", "--once", "-i", "0.5", "--key-file", str(serving.key_file)]
    assert cli.main(command) == 1
    said = capsys.readouterr().out
    assert re.search(r"^127\.0\.0\.1:1 +down +ConnectionRefusedError", said, re.M)
    assert re.search(rf"^{serving.address} +open", said, re.M)


def test_a_server_that_never_answers_holds_nobody_up(serving, capsys):
    with __import__("socket").create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        command = ["top", serving.address, address, "--once", "-i", "0.5", "--timeout", "0.5"]
        assert cli.main([*command, "--key-file", str(serving.key_file)]) == 1
    said = capsys.readouterr().out
    assert re.search(rf"^{serving.address} +open", said, re.M)


def test_json_is_a_line_for_each_server(serving, capsys):
    command = ["top", serving.address, "127.0.0.1:1", "--once", "--json", "--key-file", str(serving.key_file)]
    assert cli.main(command) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["farm_status"], first["pid"]) == (2, serving.pid)
    assert "ConnectionRefusedError" in second["error"]


def test_a_reader_that_leaves_ends_it(serving):
    command = f"{sys.executable} -m farm_executor top {serving.address} --json -i 0.5 --key-file {serving.key_file}"
    done = subprocess.run(["bash", "-c", f"{command} | head -2"], capture_output=True, text=True, timeout=60)
    assert len(done.stdout.splitlines()) == 2
    assert "Traceback" not in done.stderr


def set_size(terminal, lines, columns):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


class Screen:
    """The command on a terminal of its own."""

    def __init__(self, serving, width=100, **environment):
        self.terminal, theirs = pty.openpty()
        if width is not None:
            set_size(theirs, 24, width)
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        command = [sys.executable, "-m", "farm_executor", "top", serving.address, "-i", "0.5"]
        self.process = subprocess.Popen(
            [*command, "--key-file", str(serving.key_file)],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "", "LINES": "", **environment},
            start_new_session=True,
        )
        self.text = ""

    def wait_for(self, text):
        deadline = time.monotonic() + DEADLINE
        while text not in self.text:
            assert time.monotonic() < deadline, self.text
            self.text += os.read(self.terminal, 65536).decode()

    def ends(self):
        os.set_blocking(self.terminal, False)

        def ended():
            try:
                self.text += os.read(self.terminal, 65536).decode()
            except (BlockingIOError, OSError):
                pass
            return self.process.poll() is not None

        wait_until(ended, "the command has ended")
        return self.process.returncode

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        for descriptor in (self.terminal, self.theirs):
            try:
                os.close(descriptor)
            except OSError:
                pass


@pytest.fixture
def screen(serving):
    screen = Screen(serving)
    screen.wait_for("servers")
    screen.wait_for("q quit")
    yield screen
    screen.close()


@pytest.mark.parametrize(
    ("how", "code"), [("q", 0), ("\x03", 130), (signal.SIGTERM, 130), (signal.SIGINT, 130)], ids=str
)
def test_the_terminal_is_given_back_however_it_ends(screen, how, code):
    if isinstance(how, str):
        os.write(screen.terminal, how.encode()) if how == "q" else os.kill(screen.process.pid, signal.SIGINT)
    else:
        os.kill(screen.process.pid, how)
    assert screen.ends() == code
    assert screen.text.endswith("\x1b[?25h\x1b[?1049l")
    assert termios.tcgetattr(screen.theirs) == screen.before
    assert screen.process.stderr.read() == b""


def test_a_terminal_that_goes_away_ends_it_without_a_word(screen):
    os.close(screen.theirs)
    os.close(screen.terminal)
    os.kill(screen.process.pid, signal.SIGHUP)
    wait_until(lambda: screen.process.poll() is not None, "the command has ended")
    assert screen.process.stderr.read() == b""


def test_another_size_is_another_frame(screen):
    screen.text = ""
    set_size(screen.theirs, 24, 30)
    os.kill(screen.process.pid, signal.SIGWINCH)
    screen.wait_for("\x1b[J")
    screen.text = ""
    screen.wait_for("\x1b[J")
    lines = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", screen.text).replace("\r", "").split("\n")
    assert max(map(len, lines)) <= 31


def test_a_terminal_that_does_not_say_its_size(serving):
    screen = Screen(serving, width=None)
    try:
        screen.wait_for("q quit")
    finally:
        screen.close()


def test_no_color(serving):
    screen = Screen(serving, NO_COLOR="1")
    try:
        screen.wait_for("q quit")
        assert not re.search(r"\x1b\[3\dm|\x1b\[1;31m", screen.text)
    finally:
        screen.close()
