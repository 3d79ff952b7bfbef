"""Servers over ssh, with a real OpenSSH server on loopback: what works, what is said if not, what is left."""

import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from pathlib import Path

import pytest
from client import saying
from launch import tasks
from server.peers import free_address
from server.processes import DEADLINE, children, command_line, environment, exists, wait_until

from farm_executor import AuthenticationError, BrokenFarmError, FarmExecutor, VersionMismatchError, start_server
from farm_executor.client.farm import hearing, voice
from farm_executor.launch import ssh as launcher
from farm_executor.launch.ssh import SSH_VARIABLE, SshServer, start_servers
from farm_executor.wire.address import Ssh, parse_addresses

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("no_leaks"),
]


def address(name="hostA", *, python=sys.executable, **options):
    options = {"python": python, **options}
    return f"ssh://{name}?" + "&".join(f"{key}={value}" for key, value in options.items())


def one(text):
    """The address, read."""
    (read,) = parse_addresses(text)
    return read


@pytest.fixture
def way(sshd, monkeypatch):
    """The way to the ssh server: what the environment variable names."""
    monkeypatch.setenv(SSH_VARIABLE, sshd.ssh)
    return sshd


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A directory for temporary files that nobody else uses."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def of_sessions(sshd):
    """The pids of what runs in sessions of the ssh server."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit() and _has(int(name), sshd.mark)}


def _has(pid, mark):
    try:
        return mark.encode() in environment(pid)
    except OSError:
        return False


def far_directory(pid):
    """The server's directory over there, of which this ssh has been told."""
    match = re.search(rb":(/tmp/farm-[0-9a-f]{32})/socket", command_line(pid))
    assert match, command_line(pid)
    return Path(match[1].decode())


def ssh_of(pid):
    """The ssh that a process of ours runs."""
    (found,) = (child for child in children(pid) if far_directory_or_none(child))
    return found


def far_directory_or_none(pid):
    with contextlib.suppress(AssertionError, OSError):
        return far_directory(pid)


# -- what works ---------------------------------------------------------------------------------------------


def test_a_farm_over_ssh_computes_and_leaves_nothing(way, elsewhere):
    with FarmExecutor([address(workers=2)]) as farm:
        assert farm.submit(pow, 2, 10).result(DEADLINE) == 1024
        assert list(farm.map(abs, range(-100, 0), timeout=DEADLINE)) == list(range(100, 0, -1))
        far = far_directory(ssh_of(os.getpid()))
        assert stat.S_IMODE(far.stat().st_mode) == 0o700
        assert stat.S_IMODE((far / "socket").stat().st_mode) == 0o600
        (near,) = elsewhere.iterdir()
        assert stat.S_IMODE(near.stat().st_mode) == 0o700
        assert stat.S_IMODE((near / "socket").stat().st_mode) == 0o600

    assert not far.exists()
    assert list(elsewhere.iterdir()) == []
    wait_until(lambda: not of_sessions(way), "nothing runs there")


def test_large_arguments_and_results_pass_through_the_tunnel(way):
    data = os.urandom(8 << 20)
    with FarmExecutor([address(workers=1)]) as farm:
        assert farm.submit(bytes, data).result(DEADLINE) == data


def test_workers_says_how_many_and_max_workers_is_divided_as_for_any_servers(way):
    with FarmExecutor([address("hostA", workers=3), address("hostB", workers=3)], max_workers=4) as farm:
        farm.connect(DEADLINE)
        assert [server.slots for server in farm.statistics().servers] == [2, 2]
    with FarmExecutor([address("hostA", workers=3), address("hostB", workers=1)]) as farm:
        farm.connect(DEADLINE)
        assert [server.slots for server in farm.statistics().servers] == [3, 1]
        assert [server.address for server in farm.statistics().servers] == [
            f"ssh://hostA?workers=3&python={sys.executable}",
            f"ssh://hostB?workers=1&python={sys.executable}",
        ]


def test_its_workers_have_the_variables_that_the_address_has(way):
    with FarmExecutor([address(workers=2, env="FARM_TEST=x{slot}")]) as farm:
        assert sorted(farm.broadcast(tasks.variable, "FARM_TEST", timeout=DEADLINE)) == ["x0", "x1"]


def test_without_workers_it_has_one_per_cpu(way):
    with FarmExecutor([address()]) as farm:
        farm.connect(DEADLINE)
        assert farm.statistics().servers[0].slots == len(os.sched_getaffinity(0))


def test_a_server_that_max_workers_leaves_out_is_not_started(way):
    with FarmExecutor([address("hostA"), address("hostB")], max_workers=1) as farm:
        farm.connect(DEADLINE)
        assert len(farm.statistics().servers) == 1


def test_plain_addresses_may_be_among_them_with_a_key_of_their_own(way):
    key = b"the key of the plain server alone"
    with (
        start_server("127.0.0.1", 0, background=True, workers=1, key=key) as server,
        FarmExecutor([server.address, address(workers=1)], key=key) as farm,
    ):
        marks = farm.broadcast(tasks.variable, "FARM_TEST_MARK", timeout=DEADLINE)
    assert marks == [None, way.mark]


def test_a_server_over_ssh_may_be_added_and_removed(way, elsewhere):
    with FarmExecutor(1) as farm:
        farm.submit(abs, -1).result(DEADLINE)
        for _ in range(2):
            farm.add_server(address(workers=1))
            marks = farm.broadcast(tasks.variable, "FARM_TEST_MARK", timeout=DEADLINE)
            assert marks == [None, way.mark]
            ssh = ssh_of(os.getpid())
            farm.remove_server(address(workers=1), timeout=DEADLINE)
            assert not exists(ssh)
            assert farm.submit(tasks.variable, "FARM_TEST_MARK").result(DEADLINE) is None
        farm.add_server(address(workers=1))
        farm.connect(DEADLINE)
    assert list(elsewhere.iterdir()) == []
    wait_until(lambda: not of_sessions(way), "nothing runs there")


def test_python_chooses_the_interpreter(way, tmp_path):
    other = tmp_path / "a python with 100% of its name"
    other.symlink_to(sys.executable)
    with FarmExecutor([address(python=str(other).replace("%", "%25"))]) as farm:
        assert farm.submit(tasks.executable).result(DEADLINE) == str(other)


def test_a_tilde_is_the_home_directory():
    assert launcher._python(Ssh("host", python="~/venv/bin/python")) == "./venv/bin/python"
    assert launcher._python(Ssh("host", python="~venv")) == "~venv"
    assert launcher._python(Ssh("host")) == "python3"


def test_what_tasks_say(way, caplog, monkeypatch):
    monkeypatch.setattr(hearing, "PATIENCE", DEADLINE)  # a busy machine may take longer to show it
    monkeypatch.setattr(voice, "STUCK_SECONDS", DEADLINE)
    heard = []
    with FarmExecutor([address(workers=1)], output=heard.append, context=saying.CONTEXT) as farm:
        saying.check(farm, heard, caplog)


def test_what_tasks_print_is_seen_on_standard_error_if_it_stays_on_the_server(way, capfd):
    with FarmExecutor([address(workers=1)], output="server") as farm:
        farm.submit(tasks.say, "hello from afar").result(DEADLINE)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "hello from afar\n")


def test_start_up_files_that_print_do_no_harm(way, tmp_path):
    chatty = tmp_path / "chatty"
    chatty.write_text(f"#!/bin/sh\necho welcome; printf 'no end of line'; exec {sys.executable} \"$@\"\n")
    chatty.chmod(0o755)
    quiet_after = tmp_path / "quiet"
    quiet_after.write_text(f'#!/bin/sh\necho; head -c 200000 /dev/zero; echo; exec {sys.executable} "$@"\n')
    quiet_after.chmod(0o755)
    with FarmExecutor([address(python=quiet_after)]) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1


def test_the_home_directory_hides_no_module(way):
    with FarmExecutor([address(workers=1)]) as farm:
        assert "" not in farm.submit(eval, "__import__('sys').path").result(DEADLINE)


def test_a_module_in_the_home_directory_is_not_taken_for_one_of_pythons(way, tmp_path):
    """The command begins there; so does the Python that stands for the one over there."""
    (tmp_path / "json.py").write_text("raise RuntimeError('not the module of that name')")
    at_home = tmp_path / "python"
    at_home.write_text(f'#!/bin/sh\ncd {tmp_path}\nexec {sys.executable} "$@"\n')
    at_home.chmod(0o755)

    with FarmExecutor([address(workers=1, python=at_home)]) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1


def test_a_temporary_directory_too_deep_for_a_socket_is_not_used(way, tmp_path, monkeypatch):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))

    with FarmExecutor([address(workers=1)]) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
    assert os.listdir(deep) == []


def test_without_a_place_for_the_tunnel_the_farm_breaks_at_once(way, monkeypatch):
    def refuse(*arguments, **options):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)

    with FarmExecutor([address(workers=1)]) as farm, pytest.raises(BrokenFarmError, match="No usable temporary"):
        farm.submit(abs, -1).result(DEADLINE)


def test_no_secret_is_on_a_command_line_or_in_an_environment(way, elsewhere):
    with FarmExecutor([address(workers=1)]) as farm:
        farm.submit(abs, -1).result(DEADLINE)
        (key_file,) = elsewhere.glob("*/*.key")
        key = key_file.read_bytes().strip()
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    pid = int(name)
                    for text in (command_line(pid), environment(pid)):
                        assert key not in text
                        assert key.hex().encode() not in text


def listening_on_tcp():
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError), open(table) as file:
            found |= {(row.split()[1], row.split()[9]) for row in list(file)[1:] if row.split()[3] == "0A"}
    return found


def inodes(pid):
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{number}").removeprefix("socket:[").removesuffix("]")


def test_nothing_listens_on_tcp(way):
    with FarmExecutor([address(workers=1)]) as farm:
        farm.submit(abs, -1).result(DEADLINE)
        listening = {inode for _, inode in listening_on_tcp()}
        for pid in {ssh_of(os.getpid()), *of_sessions(way)}:
            assert not listening & set(inodes(pid))


def test_a_forwarding_of_the_user_s_own_that_fails_does_no_harm(way, monkeypatch):
    with start_server("127.0.0.1", 0, background=True, workers=1) as taken:
        port = taken.address.rpartition(":")[2]
        monkeypatch.setenv(
            SSH_VARIABLE,
            way.configure(LocalForward=f"127.0.0.1:{port} 127.0.0.1:1", ExitOnForwardFailure="yes"),
        )
        with FarmExecutor([address()]) as farm:
            assert farm.submit(abs, -1).result(DEADLINE) == 1


def test_a_shared_connection_and_a_command_of_the_user_s_are_not_used(way, monkeypatch, tmp_path):
    control = tmp_path / "control"
    monkeypatch.setenv(
        SSH_VARIABLE,
        way.configure(ControlMaster="auto", ControlPath=control, ControlPersist="60", RemoteCommand="true"),
    )
    with FarmExecutor([address()]) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        assert not control.exists()


# -- what is said when it does not work ---------------------------------------------------------------------


def failure(text, **options):
    """What the first task raises."""
    with FarmExecutor([text], **options) as farm:
        try:
            return farm.submit(abs, -1).exception(DEADLINE / 2)
        finally:
            farm.shutdown(cancel_futures=True)


def test_without_a_key_that_lets_one_in(way, monkeypatch):
    monkeypatch.setenv(SSH_VARIABLE, way.configure(IdentityFile=way.folder / "stranger"))
    error = failure("ssh://hostA")
    assert isinstance(error, AuthenticationError)
    assert "cannot start ssh://hostA: " in str(error)
    assert "`ssh hostA true`" in str(error)
    assert "Permission denied (publickey)" in str(error)


@pytest.mark.parametrize("known", ["", "another"])
def test_a_host_whose_key_is_not_known(way, monkeypatch, known):
    known_hosts = way.folder / f"known-{uuid.uuid4()}"
    key = (way.folder / "stranger.pub").read_text()
    known_hosts.write_text(f"[127.0.0.1]:{way.port} {key}" if known else "")
    monkeypatch.setenv(SSH_VARIABLE, way.configure(UserKnownHostsFile=known_hosts))
    error = failure("ssh://hostA")
    assert isinstance(error, AuthenticationError)
    assert "connect once by hand: `ssh hostA true`" in str(error)
    assert "Host key verification failed" in str(error)


def test_a_configuration_that_ssh_cannot_read(way, monkeypatch):
    monkeypatch.setenv(SSH_VARIABLE, way.configure(NoSuchOption="yes"))
    error = failure("ssh://hostA")
    assert isinstance(error, BrokenFarmError)
    assert "configuration" in str(error)


def test_a_python_that_is_not_there(way):
    error = failure(address(python="/nowhere/python"))
    assert isinstance(error, BrokenFarmError)
    assert "there is no /nowhere/python" in str(error)
    assert "?python=" in str(error)


def test_a_python_that_is_none(way):
    error = failure(address(python="false"))
    assert isinstance(error, BrokenFarmError)
    assert "false ended with exit code 1" in str(error)


@pytest.fixture
def bare(tmp_path):
    """A Python without the package."""
    path = tmp_path / "bare"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    path.chmod(0o755)
    return path


def test_a_python_without_the_package(way, bare):
    error = failure(address(python=bare))
    assert isinstance(error, BrokenFarmError)
    assert f"farm_executor {launcher.__version__} is not installed for {bare}" in str(error)
    assert "No module named 'farm_executor'" in str(error)


def other_python():
    """An interpreter of another minor version, if there is one."""
    roots = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/3.*/bin/python"))
    mine = f"3.{sys.version_info.minor}."
    for path in roots:
        version = path.parent.parent.name
        if re.match(r"3\.1\d\.", version) and not version.startswith(mine):
            return path
    return None


@pytest.mark.skipif(other_python() is None, reason="there is no other Python")
def test_a_python_of_another_version(way):
    error = failure(address(python=other_python()))
    assert isinstance(error, VersionMismatchError)
    assert "python" in error.mismatches
    assert str(error).startswith("server ssh://hostA?python=")


def test_no_ssh_here(way, monkeypatch):
    monkeypatch.setenv(SSH_VARIABLE, "/nowhere/ssh -v")
    error = failure("ssh://hostA")
    assert isinstance(error, BrokenFarmError)
    assert "cannot run /nowhere/ssh" in str(error)
    assert SSH_VARIABLE in str(error)


def test_a_command_for_ssh_that_cannot_be_read(way, monkeypatch):
    monkeypatch.setenv(SSH_VARIABLE, "ssh 'unclosed")
    assert SSH_VARIABLE in str(failure("ssh://hostA"))


def test_a_server_that_forbids_tunnels(monkeypatch):
    import sshd

    if sshd.WHY_NOT:
        pytest.skip(sshd.WHY_NOT)
    server = sshd.Sshd(AllowStreamLocalForwarding="no")
    try:
        monkeypatch.setenv(SSH_VARIABLE, server.ssh)
        error = failure(address())
        assert isinstance(error, BrokenFarmError)
        assert "AllowStreamLocalForwarding" in str(error)
        wait_until(lambda: not of_sessions(server), "nothing runs there")
    finally:
        server.end()


def test_a_port_at_which_nobody_listens_is_dialled_again_and_named(way, monkeypatch):
    port = free_address().rpartition(":")[2]
    monkeypatch.setenv(SSH_VARIABLE, way.configure(Port=port))
    with FarmExecutor(["ssh://hostA"]) as farm:
        with pytest.raises(TimeoutError, match=r"ssh://hostA|a server not yet started") as caught:
            farm.connect(1.0)
        assert "Connection refused" in str(caught.value)
        assert not farm._broken


def test_a_server_that_comes_later_is_found(way, monkeypatch, tmp_path):
    gate = tmp_path / "gate"
    slow = tmp_path / "ssh"
    slow.write_text(f'#!/bin/sh\ntest -e {gate} || exit 255\nexec {way.ssh} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv(SSH_VARIABLE, str(slow))
    with FarmExecutor([address()]) as farm:
        future = farm.submit(abs, -1)
        wait_until(lambda: "ended with 255" in farm.statistics().servers[0].last_error, "it was refused")
        gate.touch()
        assert future.result(DEADLINE) == 1


@pytest.fixture
def silent(sshd, way):
    """An ssh server that lets connections wait."""
    sshd.stop()
    yield sshd
    sshd.process.send_signal(signal.SIGCONT)


def test_a_server_that_says_nothing_is_given_up_in_time(silent, monkeypatch, elsewhere):
    monkeypatch.setattr(launcher, "START_SECONDS", 0.3)
    server = SshServer(one(address()))
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        server.locate()
    assert list(elsewhere.iterdir()) == []
    server.end()


def test_ssh_itself_gives_up_in_time(silent, monkeypatch):
    monkeypatch.setitem(launcher._OPTIONS, "ConnectTimeout", "1")
    server = SshServer(one(address()))
    with pytest.raises(ConnectionError, match="timed out"):
        server.locate()
    server.end()


def test_an_end_cuts_a_start_short(silent, elsewhere):
    with FarmExecutor([address()]) as farm:
        farm.submit(abs, -1)
        wait_until(lambda: any(map(far_directory_or_none, children(os.getpid()))), "ssh runs")
        farm.shutdown(wait=False, cancel_futures=True)
    assert list(elsewhere.iterdir()) == []


# -- what is left -------------------------------------------------------------------------------------------


def test_an_ssh_that_was_killed_is_started_anew_and_tasks_go_on(way, elsewhere, tmp_path):
    with FarmExecutor([address(workers=2)]) as farm:
        before = farm.submit(tasks.parent).result(DEADLINE)
        gate = tmp_path / "gate"
        waiting = farm.submit(tasks.wait_for, gate)
        wait_until(lambda: farm.statistics().running, "it runs")
        first = ssh_of(os.getpid())
        far = far_directory(first)
        os.kill(first, signal.SIGKILL)
        after = farm.submit(tasks.parent).result(DEADLINE)
        gate.touch()
        assert waiting.result(DEADLINE)
        assert after != before
        wait_until(lambda: not exists(before), "the first server has ended")
        wait_until(lambda: not far.exists(), "its directory is gone")


def test_a_server_that_was_killed_is_started_anew(way):
    with FarmExecutor([address(workers=1)]) as farm:
        before = farm.submit(tasks.parent).result(DEADLINE)
        far = far_directory(ssh_of(os.getpid()))
        os.kill(before, signal.SIGKILL)
        assert wait_until(lambda: farm.submit(tasks.parent).result(DEADLINE) != before, "it is another")
    (far / "socket").unlink()
    far.rmdir()  # nobody was left to do it


def test_what_fails_after_it_was_up_is_dialled_again(way, monkeypatch):
    with FarmExecutor([address(workers=1)]) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        monkeypatch.setenv(SSH_VARIABLE, way.configure(IdentityFile=way.folder / "stranger"))
        os.kill(ssh_of(os.getpid()), signal.SIGKILL)
        future = farm.submit(abs, -2)
        wait_until(lambda: "Permission denied" in farm.statistics().servers[0].last_error, "it was not let in")
        monkeypatch.setenv(SSH_VARIABLE, way.ssh)
        assert future.result(DEADLINE) == 2


def test_a_process_that_a_task_left_behind_does_not_hold_up_the_end(way):
    with FarmExecutor([address(workers=1)]) as farm:
        left = farm.submit(tasks.leave_a_process_behind).result(DEADLINE)
        ssh = ssh_of(os.getpid())
        began = time.monotonic()
    try:
        assert not exists(ssh)
        assert time.monotonic() - began < 10, "less than it is given to end by itself"
    finally:
        os.kill(left, signal.SIGKILL)


PROGRAM = """
    import os, signal, sys
    from farm_executor import FarmExecutor
    from launch import tasks

    signal.signal(signal.SIGINT, signal.default_int_handler)
    farm = FarmExecutor(sys.argv[1])
    farm.submit(abs, -1).result()
"""


@pytest.fixture
def program(way, tmp_path):
    """Runs a program of a user's, which goes on as it is told."""
    running = []

    def start(rest):
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(PROGRAM) + textwrap.dedent(rest))
        temporary = tmp_path / "tmp"
        temporary.mkdir()
        process = subprocess.Popen(
            [sys.executable, str(path), address(workers=2)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={
                **os.environ,
                "TMPDIR": str(temporary),
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )
        running.append(process)
        return process, temporary

    yield start
    for process in running:
        with process:
            process.kill()


def test_when_the_client_is_killed_all_is_gone(way, program):
    process, _ = program("print('ready', flush=True); farm.submit(tasks.wait_for, '/nowhere').result()")
    assert process.stdout.readline() == "ready\n"
    ssh = ssh_of(process.pid)
    far = far_directory(ssh)
    assert of_sessions(way)
    process.kill()
    process.wait()
    wait_until(lambda: not exists(ssh), "ssh has ended")
    wait_until(lambda: not of_sessions(way), "the server and its workers have ended")
    wait_until(lambda: not far.exists(), "the directory there is gone")


def test_a_server_whose_client_is_silent_ends_though_ssh_lives(way, program):
    process, _ = program("""
        farm.shutdown()
        farm = FarmExecutor(sys.argv[1], heartbeat=0.1)
        print(farm.submit(tasks.parent).result(), flush=True)
        sys.stdin.readline()
        print(farm.submit(tasks.parent).result(), flush=True)
    """)
    before = int(process.stdout.readline())
    ssh = ssh_of(process.pid)
    os.kill(ssh, signal.SIGSTOP)  # and with it the tunnel
    os.kill(process.pid, signal.SIGSTOP)
    wait_until(lambda: not exists(before), "the server has ended")
    assert exists(ssh)
    wait_until(lambda: not of_sessions(way), "its workers have, too")
    os.kill(process.pid, signal.SIGCONT)
    process.stdin.write("\n")
    process.stdin.flush()
    assert int(process.stdout.readline()) != before
    assert process.wait(DEADLINE) == 0


def test_a_program_that_ends_without_a_word_leaves_nothing(way, program):
    process, temporary = program("farm.submit(abs, -1)")
    assert process.wait(DEADLINE) == 0
    assert list(temporary.iterdir()) == []
    wait_until(lambda: not of_sessions(way), "nothing runs there")


def test_ctrl_c_in_the_terminal_does_not_reach_ssh(way, program):
    process, temporary = program("""
        try:
            print('ready', flush=True)
            signal.pause()
        except KeyboardInterrupt:
            print(farm.submit(tasks.parent).result(), flush=True)
            farm.shutdown()
    """)
    assert process.stdout.readline() == "ready\n"
    ssh = ssh_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    assert int(process.stdout.readline())
    assert process.wait(DEADLINE) == 0
    assert not exists(ssh)
    assert list(temporary.iterdir()) == []


def test_a_forked_child_leaves_the_parent_s_server_alone_and_has_its_own(way, program):
    process, _ = program("""
        before = farm.submit(tasks.parent).result()
        child = os.fork()
        if not child:
            other = farm.submit(tasks.parent).result()
            farm.shutdown()
            os._exit(0 if other != before else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        print(farm.submit(tasks.parent).result() == before, flush=True)
        child = os.fork()
        if not child:
            sys.stdout.close()
            signal.pause()  # it holds nothing that keeps the parent's server alive
        farm.shutdown()
        print("ended", flush=True)
        os.kill(child, signal.SIGKILL)
    """)
    out, _ = process.communicate(timeout=DEADLINE)
    assert out.split() == ["0", "True", "ended"]


# -- servers for several clients ----------------------------------------------------------------------------


def test_several_are_started_at_once_and_serve_any_client_of_the_user(way, elsewhere):
    servers = start_servers(parse_addresses([address("hostA", workers=1), address("hostB", workers=1)]))
    try:
        assert all(re.fullmatch(r"unix:/\S+/socket", server.address) for server in servers)
        for _ in range(2):
            with FarmExecutor([server.address for server in servers]) as farm:
                pids = set(farm.broadcast(tasks.parent, timeout=DEADLINE))
        assert len(pids) == 2
    finally:
        for server in servers:
            server.end()
    assert list(elsewhere.iterdir()) == []
    assert [server.address for server in servers] == ["", ""]


def test_if_one_cannot_be_started_the_others_are_ended(way, elsewhere):
    addresses = parse_addresses([address("hostA"), address("hostB", python="/nowhere/python")])
    with pytest.raises(BrokenFarmError, match="hostB"):
        start_servers(addresses)
    assert list(elsewhere.iterdir()) == []
    wait_until(lambda: not of_sessions(way), "nothing runs there")


def test_one_that_has_been_ended_is_not_started_again(way):
    server = SshServer(one(address()))
    with server:
        server.locate()
    with pytest.raises(BrokenFarmError, match="has been ended"):
        server.locate()


def test_an_end_in_another_thread_ends_the_start(silent):
    server = SshServer(one(address()))
    raised = []

    def start():
        try:
            server.locate()
        except BrokenFarmError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    wait_until(lambda: server._held, "ssh runs")
    server.end()
    thread.join(DEADLINE)
    assert "has been ended" in str(raised[0])
