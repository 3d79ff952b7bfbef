"""The command line, as a shell and a script see it: what it says, where, and with which exit code."""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading

import pytest
from server import tasks
from server.peers import free_address, listening
from server.processes import DEADLINE, children, wait_until
from server.serving import KEY, TESTS, Serving

import farm_executor
from farm_executor import FarmExecutor, WorkerLostError, ping
from farm_executor.launch.ssh import SSH_VARIABLE
from farm_executor.wire.security import KEY_FILE_VARIABLE, write_key

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="servers need fork"),
    pytest.mark.usefixtures("no_leaks"),
]

COMMANDS = ("serve", "launch", "ping", "status", "end", "doctor", "demo")


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="such sockets are Linux's")


def run(*arguments, code=0, env=None):
    """Run the program to its end, check its exit code; return what it said on either stream."""
    command = [sys.executable, "-m", "farm_executor", *map(str, arguments)]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def serving():
    with Serving("--name", "the name", workers=1) as server:
        yield server


@pytest.fixture
def key_file(tmp_path):
    write_key(tmp_path / "key", KEY)
    return tmp_path / "key"


# -- help ---------------------------------------------------------------------------------------------------


def test_help_lists_every_command_with_what_it_is_for():
    out, err = run("--help")
    assert not err
    for command in COMMANDS:
        assert re.search(rf"^ +{command} +\w.{{20,}}", out, re.MULTILINE), command


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_teaches(command):
    out, _ = run(command, "--help")
    assert out.startswith(f"usage: farm-executor {command} ")
    description = out.split("\n\n")[1]
    assert len(description) > 20
    assert description.strip().endswith(".")
    assert "--key-file" in out
    assert KEY_FILE_VARIABLE in out, "it says where the key is found"
    assert re.search(rf"^    farm-executor {command}", out, re.MULTILINE), "it shows an example"
    for option in re.findall(r"^  (--?[a-z][\w-]*)", out, re.MULTILINE):
        assert re.search(rf"^  {option}\b.*(  \S|\n {{10,}}\S)", out, re.MULTILINE), f"{option} is explained"


def test_the_help_of_serve_tells_how_it_ends_and_what_it_exposes():
    out, _ = run("serve", "--help")
    assert all(word in out for word in ("SIGTERM", "Ctrl-C", "--insecure", "ssh", "encryption"))


def test_the_version_is_the_package_s():
    out, _ = run("--version")
    assert out == f"farm-executor {farm_executor.__version__}\n"


def test_the_installed_command_is_the_same_program():
    from importlib.metadata import entry_points

    (command,) = [point for point in entry_points(group="console_scripts") if point.name == "farm-executor"]
    from farm_executor.cli import main

    assert command.load() is main


# -- wrong command lines ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["dance"], "'dance': there are serve, launch"),
        (["serve", "host:"], "'host:' is no server address"),
        (["srve"], "did you mean serve?"),
        (["serve", "127.0.0.1:70000"], "there is no such port"),
        (["serve", "127.0.0.1:0", "--workers", "0"], "at least 1"),
        (["serve", "127.0.0.1:0", "--workers", "many"], "many"),
        (["serve", "127.0.0.1:0", "--env", "OMP_NUM_THREADS"], "write it as NAME=VALUE"),
        (["serve", "127.0.0.1:0", "--env", "=1"], "write it as NAME=VALUE"),
        (["serve", "--dance"], "--dance"),
        (["launch"], "address"),
        (["launch", "host:"], "'host:' is no server address"),
        (["launch", "host:1"], "'host:1': only servers over ssh"),
        (["launch", "ssh://-v"], "is no server address"),
        (["launch", "ssh://host", "--workers", "0"], "at least 1"),
        (["ping", "host:"], "'host:' is no server address"),
        (["ping", "127.0.0.1:0"], "there is no such port"),
        (["ping", "--timeout", "soon"], "soon"),
        (["status", "host:port"], "is no server address"),
        (["end", ""], "is no server address"),
        (["end", "127.0.0.1:9", "two:"], "'two:' is no server address"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_exit_code_2_and_a_line_that_says_why(arguments, said):
    out, err = run(*arguments, code=2)
    assert not out
    assert said in err.splitlines()[-1]


# -- ping, status, end --------------------------------------------------------------------------------------


def test_ping_says_whether_a_server_answers_also_by_its_exit_code(serving):
    out, _ = run("ping", serving.address, "--key-file", serving.key_file)
    assert out == f"{serving.address} answers\n"
    nobody = free_address()
    out, err = run("ping", nobody, "--timeout", "0.1", "--key-file", serving.key_file, code=1)
    assert not out
    assert err.startswith(f"{nobody} does not answer: ConnectionRefusedError: ")
    assert "start one with" in err


def test_ping_prints_json_for_programs(serving):
    out, _ = run("ping", serving.address, "--json", "--key-file", serving.key_file)
    assert json.loads(out) == {"address": serving.address, "alive": True}
    nobody = free_address()
    out, _ = run("ping", nobody, "--json", "--timeout", "0.1", "--key-file", serving.key_file, code=1)
    answer = json.loads(out)
    assert "ConnectionRefusedError" in answer.pop("error")
    assert answer == {"address": nobody, "alive": False}


def test_status_shows_the_server_its_clients_and_their_workers(serving):
    with FarmExecutor(serving.address, key=KEY) as farm:
        worker = farm.submit(tasks.pid).result(DEADLINE)
        out, _ = run("status", serving.address, "--key-file", serving.key_file)
        for word in (serving.address, "'the name'", "open", f"pid {serving.pid}", "1 slot\n", f"pid {os.getpid()}"):
            assert word in out
        assert f"slot 0: worker pid {worker}" in out
        out, _ = run("status", serving.address, "--json", "--key-file", serving.key_file)
        data = json.loads(out)
        assert data["pid"] == serving.pid
        assert worker in data["workers"]["rows"][0]
    wait_until(lambda: not children(serving.pid), "no worker")
    assert "no clients" in run("status", serving.address, "--key-file", serving.key_file)[0]


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_status_is_the_same_plain_text_at_a_terminal(serving, environment):
    """However narrow it is: no colours, nothing cut off, and nothing broken in the middle of an address."""
    import fcntl
    import pty
    import termios

    command = [
        sys.executable,
        "-m",
        "farm_executor",
        "status",
        serving.address,
        "--key-file",
        str(serving.key_file),
    ]
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 30, 0, 0))
    try:
        subprocess.run(
            command, stdout=theirs, check=True, timeout=60, env={**os.environ, "TERM": "xterm", **environment}
        )
        shown = os.read(terminal, 65536).decode().replace("\r\n", "\n")
    finally:
        os.close(terminal)
        os.close(theirs)
    plain, _ = run(*command[3:])
    assert "\x1b" not in shown
    assert re.sub(r"up \d+ s", "", shown) == re.sub(r"up \d+ s", "", plain)


@pytest.mark.parametrize("command", ["status", "end"])
def test_asking_nobody_is_exit_code_1(command, key_file):
    nobody = free_address()
    out, err = run(command, nobody, "--key-file", key_file, code=1)
    assert not out
    assert err.startswith(f"{nobody} does not answer: ")
    out, err = run(command, nobody, "--json", "--key-file", key_file, code=1)
    assert json.loads(out)["address"] == nobody
    assert json.loads(out)["error"]
    assert not err


@pytest.mark.parametrize("as_json", [False, True])
def test_end_ends_the_server(as_json):
    with Serving(workers=1) as server:
        out, _ = run("end", server.address, "--key-file", server.key_file, *(["--json"] if as_json else []))
        if as_json:
            assert json.loads(out) == {"address": server.address, "ended": True}
        else:
            assert out == f"{server.address}: shutting down\n"
        assert server.wait() == 0


@pytest.mark.parametrize("command", ["ping", "status", "end"])
def test_a_wrong_key_is_exit_code_2_and_says_so(command, serving, tmp_path):
    write_key(tmp_path / "other", b"another key than the server's")
    out, err = run(command, serving.address, "--key-file", tmp_path / "other", code=2)
    assert not out
    assert "refused the key" in err
    assert "another key than" not in err


def test_several_servers_are_asked_each_for_itself_and_the_worst_is_the_exit_code(serving, tmp_path):
    nobody = free_address()
    asked = [nobody, serving.address, f"farm://{serving.address}?all"]
    out, err = run("status", *asked, "--key-file", serving.key_file, code=1)
    assert out.count(f"{serving.address} 'the name': open") == 2
    assert err.startswith(f"{nobody} does not answer: ")
    out, err = run("status", *asked, "--json", "--key-file", serving.key_file, code=1)
    assert not err
    assert [json.loads(line)["address"] for line in out.splitlines()] == [nobody, serving.address, serving.address]


def test_a_server_is_named_as_it_was_asked_and_says_where_it_listens(key_file):
    with Serving("--insecure", at="0.0.0.0:0", workers=1) as server:
        asked = f"127.0.0.1:{server.port}"
        out, _ = run("status", asked, "--key-file", server.key_file)
        assert out.startswith(f"{asked}: open")
        data = json.loads(run("status", asked, "--json", "--key-file", server.key_file)[0])
        assert (data["address"], data["listens"]) == (asked, server.address)


def test_a_wrong_key_is_json_too_when_json_is_asked_for(serving, tmp_path):
    write_key(tmp_path / "other", b"another key than the server's")
    out, err = run("ping", serving.address, "--json", "--key-file", tmp_path / "other", code=2)
    assert not err
    assert "refused the key" in json.loads(out)["error"]


def test_ping_says_that_something_else_listens_there(key_file):
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet():
            with other.accept()[0] as guest:
                guest.sendall(b"220 mail.example ESMTP ready" * 9)

        thread = threading.Thread(target=greet)
        thread.start()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        _, err = run("ping", address, "--timeout", "0.05", "--key-file", key_file, code=1)
        thread.join()
    assert "not a farm server" in err


# -- the shell ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "offered"), [("farm-executor st", {"status"}), ("farm-executor serve --pa", {"--path"})]
)
def test_a_shell_is_told_what_could_come_next(typed, offered, tmp_path):
    done = subprocess.run(
        ["bash", "-c", f"exec 8>{tmp_path}/out 9>/dev/null; exec {sys.executable} -m farm_executor"],
        env={
            **os.environ,
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_IFS": "\n",
            "COMP_LINE": typed,
            "COMP_POINT": str(len(typed)),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert {word.strip() for word in (tmp_path / "out").read_text().split("\n")} == offered


@pytest.mark.parametrize("columns", [60, 100])
def test_help_is_as_wide_as_the_terminal(columns):
    out, _ = run("serve", "--help", env={"COLUMNS": str(columns)})
    prose = [line for line in out.splitlines() if not line.startswith("    ")]
    assert columns - 25 < max(map(len, prose)) < columns


# -- key files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["serve", "ping", "status", "end"])
def test_a_key_file_that_is_missing_or_open_to_others_is_exit_code_2(command, tmp_path):
    write_key(tmp_path / "open", KEY)
    (tmp_path / "open").chmod(0o644)
    _, err = run(command, "127.0.0.1:1", "--key-file", tmp_path / "open", code=2)
    assert f"chmod 600 {tmp_path / 'open'}" in err
    _, err = run(command, "127.0.0.1:1", "--key-file", tmp_path / "missing", code=2)
    assert f"cannot read the key file {tmp_path / 'missing'}" in err
    _, err = run(command, "127.0.0.1:1", env={KEY_FILE_VARIABLE: str(tmp_path / "missing")}, code=2)
    assert f"cannot read the key file {tmp_path / 'missing'}" in err


def test_the_key_file_may_be_named_in_the_environment(serving):
    out, _ = run("ping", serving.address, env={KEY_FILE_VARIABLE: str(serving.key_file)})
    assert "answers" in out


def test_without_a_key_file_the_user_s_own_is_made(tmp_path):
    run("ping", free_address(), "--timeout", "0.1", code=1, env={"XDG_CONFIG_HOME": str(tmp_path)})
    assert (tmp_path / "farm_executor" / "key").stat().st_mode & 0o777 == 0o600


# -- serve --------------------------------------------------------------------------------------------------


def test_serve_prints_where_it_serves_and_with_how_many_workers():
    with Serving(workers=3) as server:
        assert server.greeting == f"serving on {server.address}, 3 workers for each client\n"
        assert server.port > 0
        assert ping(server.host, server.port, key=KEY)


def test_each_worker_gets_the_environment_of_its_slot_and_so_does_the_one_after_it():
    env = ("--env", "FARM_TEST=gpu {slot}", "--env", "FARM_TEST_TWO=a", "--env", "FARM_TEST_TWO=b")
    with Serving(*env, workers=2) as server, FarmExecutor(server.address, key=KEY) as farm:
        assert sorted(farm.broadcast(os.getenv, "FARM_TEST")) == ["gpu 0", "gpu 1"]
        assert farm.broadcast(os.getenv, "FARM_TEST_TWO") == ["b", "b"]
        with pytest.raises(WorkerLostError):
            farm.with_options(max_attempts=1).submit(tasks.die, "kill").result(DEADLINE)
        assert sorted(farm.broadcast(os.getenv, "FARM_TEST")) == ["gpu 0", "gpu 1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_exit_code_0_and_no_word(number):
    with Serving(workers=1) as server:
        server.process.send_signal(number)
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_a_second_ctrl_c_ends_it_with_clients_and_all(tmp_path):
    from contract.gate import Gate
    from contract.tasks import pass_gate

    with Gate() as gate, Serving(workers=1) as server:
        farm = FarmExecutor(server.address, key=KEY)
        try:
            worker = farm.submit(tasks.pid).result(DEADLINE)
            farm.submit(pass_gate, gate.address)  # with nothing to do, its client would leave at the first
            gate.wait_for_arrivals()
            server.process.send_signal(signal.SIGINT)
            server.wait_for_line("draining")
            assert worker in children(server.pid)
            server.process.send_signal(signal.SIGINT)
            assert server.wait() == 0
            assert "Traceback" not in server.log
        finally:
            farm.kill_workers()
            farm.shutdown()


def test_ctrl_c_at_the_terminal_reaches_the_server_and_no_task(tmp_path):
    """The terminal sends it to the whole process group."""
    from contract.gate import Gate
    from contract.tasks import pass_gate

    with Gate() as gate, Serving(workers=1) as server, FarmExecutor(server.address, key=KEY) as farm:
        future = farm.submit(pass_gate, gate.address, "not interrupted")
        gate.wait_for_arrivals()
        os.killpg(server.pid, signal.SIGINT)
        server.wait_for_line("draining")
        gate.open()
        assert future.result(DEADLINE) == "not interrupted"


def test_the_end_of_the_terminal_drains_the_server_however_often_it_is_told():
    from contract.gate import Gate
    from contract.tasks import pass_gate

    with (
        Gate() as gate,
        Serving(workers=1) as server,
        FarmExecutor(server.address, key=KEY, max_attempts=1) as farm,
    ):
        future = farm.submit(pass_gate, gate.address, "not lost")
        gate.wait_for_arrivals()
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("draining")
        server.process.send_signal(signal.SIGHUP)
        gate.open()
        assert future.result(DEADLINE) == "not lost"
        assert server.wait() == 0


def test_a_server_that_is_to_outlive_its_terminal_does(monkeypatch):
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"  # as nohup does
    with Serving(workers=1, before=ignoring) as server, FarmExecutor(server.address, key=KEY) as farm:
        server.process.send_signal(signal.SIGHUP)
        assert farm.submit(signal.getsignal, signal.SIGHUP).result(DEADLINE) == signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_programs_that_tasks_start_have_signals_at_their_defaults(number):
    with Serving(workers=1) as server, FarmExecutor(server.address, key=KEY) as farm:
        assert farm.submit(subprocess.call, ["sh", "-c", f"kill -{number:d} $$"]).result(DEADLINE) == -number


@pytest.mark.parametrize("abstract", [False, pytest.param(True, marks=LINUX)])
def test_a_service_manager_is_told_when_it_serves_and_when_it_stops(abstract, tmp_path, monkeypatch):
    path = f"@farm-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path.replace("@", "\0"))
        manager.settimeout(DEADLINE)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        with Serving(workers=1) as server:
            assert manager.recv(1000).decode() == f"READY=1\nSTATUS=serving on {server.address}"
            with FarmExecutor(server.address, key=KEY) as farm:
                assert "NOTIFY_SOCKET" not in farm.submit(tasks.own_environment).result(DEADLINE)
            server.terminate()
            assert manager.recv(1000).startswith(b"STOPPING=1")
            assert server.wait() == 0


def test_a_service_manager_that_is_gone_keeps_no_server_from_serving(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    with Serving(workers=1) as server, FarmExecutor(server.address, key=KEY) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_server_at_localhost_is_reached_in_either_family(host):
    with Serving(at="localhost:0") as server:
        if host == "[::1]" and not _has_ipv6():
            pytest.skip("no IPv6 loopback here")
        assert ping(host.strip("[]"), server.port, DEADLINE, key=KEY)


def _has_ipv6():
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError:
            return False
    return True


def test_a_port_in_use_is_exit_code_2_and_a_line_that_names_it(key_file):
    with listening() as (_, address):
        out, err = run("serve", address, "--key-file", key_file, code=2)
    assert not out
    assert len(err.splitlines()) == 1
    assert f"cannot listen on {address}" in err
    assert "in use" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["IN USE"],
        ["192.0.2.1:0", "--insecure"],
        ["0.0.0.0:0"],
        ["127.0.0.1:0", "--workers", "0"],
        ["127.0.0.1:0", "--key-file", "missing"],
        ["unix:socket", "--key-file", "missing"],
        ["127.0.0.1:0", "--certificate", "missing"],
        ["unix:missing/socket"],
    ],
)
def test_a_serve_that_is_refused_leaves_no_key_and_no_other_file(arguments, tmp_path, monkeypatch):
    """A key that is left behind would be taken for the one that clients have."""
    monkeypatch.chdir(tmp_path)
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": "", "XDG_RUNTIME_DIR": "", "TMPDIR": str(tmp_path)}
    with listening() as (_, address):
        run("serve", *[address if said == "IN USE" else said for said in arguments], code=2, env=home)
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_is_not_local_is_exit_code_2_and_a_line_that_names_it(key_file):
    out, err = run("serve", "192.0.2.1:0", "--insecure", "--key-file", key_file, code=2)
    assert not out
    assert len(err.splitlines()) == 1
    assert "cannot listen on 192.0.2.1:0" in err


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "somewhere.example:0"])
def test_an_address_that_others_can_reach_is_refused_unless_asked_for(address, key_file):
    out, err = run("serve", address, "--key-file", key_file, code=2)
    assert not out
    assert "refusing to listen" in err
    assert "--insecure" in err


def test_an_address_that_others_can_reach_is_served_when_asked_for():
    with Serving("--insecure", at="0.0.0.0:0", workers=1) as server:
        assert ping("127.0.0.1", server.port, key=KEY)


def test_serve_at_a_unix_socket_leaves_no_file_and_takes_over_one_that_was_left(tmp_path, key_file):
    path = tmp_path / "socket"
    for _ in range(2):
        command = [sys.executable, "-m", "farm_executor", "serve", f"unix:{path}", "--key-file", str(key_file)]
        server = subprocess.Popen(
            [*command, "--workers", "1"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([TESTS, *filter(None, sys.path)])},
        )
        with server:
            try:
                assert server.stdout.readline() == f"serving on unix:{path}, 1 worker for each client\n"
                with FarmExecutor(f"unix:{path}", key=KEY) as farm:
                    assert farm.submit(abs, -3).result(DEADLINE) == 3
                _, err = run("serve", f"unix:{path}", "--key-file", key_file, code=2)
                assert f"cannot listen on unix:{path}" in err
            finally:
                server.terminate()
            assert server.wait(DEADLINE) == 0
        assert not path.exists()


def test_verbose_logs_who_comes_and_goes_on_stderr_and_nothing_else_does(key_file):
    with Serving(workers=1) as server:  # with -v
        with FarmExecutor(server.address, key=KEY) as farm:
            farm.submit(abs, 1).result(DEADLINE)
        for event in ("serving", "session opened", "worker started", "session ended", "worker ended"):
            server.wait_for_line(event)


def test_very_verbose_logs_each_frame_both_ways(serving):
    out, err = run("ping", serving.address, "-vv", "--key-file", serving.key_file)
    assert out == f"{serving.address} answers\n"
    assert [line.split()[4:6] for line in err.splitlines()] == [[">", "HELLO"], ["<", "HELLO"]]
    serving = Serving("-v", workers=1)  # with another -v
    with serving as server, FarmExecutor(server.address, key=KEY, heartbeat=0.1) as farm:
        farm.submit(abs, 1).result(DEADLINE)
        server.wait_for_line("DEBUG farm_executor.wire: < PING .*client=pid")
        server.wait_for_line("DEBUG farm_executor.wire: > PONG .*client=pid")


def test_tasks_find_the_modules_of_the_folder_and_of_path_and_the_server_does_not(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, name in ((here, "beside_the_server"), (there, "elsewhere")):
        folder.mkdir()
        (folder / f"{name}.py").write_text("def where():\n    return __file__\n")
    (here / "mmap.py").write_text("raise RuntimeError('the server looks here')\n")
    monkeypatch.chdir(here)
    as_the_command = "import sys; sys.path.remove('')"  # which `python -c` has put there
    serving = Serving("--path", "../there", before=as_the_command, workers=1)
    with serving as server, FarmExecutor(server.address, key=KEY) as farm:
        for folder, name in ((here, "beside_the_server"), (there, "elsewhere")):
            found = farm.submit(tasks.call_in_module, name, "where").result(DEADLINE)
            assert found == str(folder / f"{name}.py")


# -- the reader of the output -------------------------------------------------------------------------------


def test_a_reader_that_has_gone_is_no_traceback(serving):
    command = f"{sys.executable} -m farm_executor status {serving.address} --key-file {serving.key_file} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr


# -- servers over ssh ---------------------------------------------------------------------------------------


@pytest.fixture
def launch(sshd, tmp_path):
    """Runs ``farm-executor launch``; gives the process and the addresses that it has printed."""
    running = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "farm_executor", "launch", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, SSH_VARIABLE: sshd.ssh, "TMPDIR": str(tmp_path)},
        )
        running.append(process)
        lines = [process.stdout.readline().split() for word in arguments if word.startswith("ssh:")]
        return process, [line[1] for line in lines if line]

    yield start
    for process in running:
        with process:
            process.kill()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_launch_starts_servers_over_ssh_and_ends_them(launch, tmp_path, signum):
    process, addresses = launch("ssh://hostA", "ssh://hostB?workers=1", "--workers", "2")
    with FarmExecutor(addresses) as farm:
        farm.connect(DEADLINE)
        assert [server.slots for server in farm.statistics().servers] == [2, 1]
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        os.killpg(process.pid, signum)
        assert process.wait(DEADLINE) == 0
        farm.shutdown(cancel_futures=True)
    assert "Traceback" not in process.stderr.read()
    assert list(tmp_path.iterdir()) == []


def test_launch_says_why_a_server_cannot_be_started(launch, tmp_path):
    process, addresses = launch("ssh://hostA?python=/nowhere/python")
    assert process.wait(DEADLINE) == 1
    assert not addresses
    assert "there is no /nowhere/python" in process.stderr.read().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_launch_ends_all_when_one_ends(launch, tmp_path):
    process, _ = launch("ssh://hostA", "ssh://hostB", "--workers", "1")
    victim = min(children(process.pid))
    os.kill(victim, signal.SIGKILL)
    assert process.wait(DEADLINE) == 1
    assert re.search(r"a server has ended: ssh://host[AB]\?workers=1: ssh ended with -9", process.stderr.read())
    assert list(tmp_path.iterdir()) == []
