"""Keys: where they are found, in what order; how they are made; and that they are never seen."""

import errno
import logging
import os
import socket
import stat
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from server import tasks
from server.processes import DEADLINE, children, command_line, environment
from server.serving import KEY, Serving
from strategies import name_of

from farm_executor import AuthenticationError, FarmExecutor, ping, start_server, status
from farm_executor.wire.address import parse_address
from farm_executor.wire.security import (
    KEY_FILE_VARIABLE,
    Key,
    KeyFinder,
    client_key,
    default_key_file,
    new_key,
    read_key,
    server_keys,
    set_ambient_key,
    write_key,
)

NEAR, FAR = parse_address("127.0.0.1:1"), parse_address("192.0.2.1:1")
posix = pytest.mark.skipif(sys.platform == "win32", reason="file modes")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def secret_of(letter: str) -> bytes:
    return (letter + "0123456789abcde").encode() * 2


def key_of(letter: str) -> Key:
    return Key(secret_of(letter))


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(KEY_FILE_VARIABLE, raising=False)


def key_file(path: Path, letter: str) -> Path:
    write_key(path, secret_of(letter))
    return path


# -- files --------------------------------------------------------------------------------------------------


@posix
def test_a_key_is_written_for_the_user_alone_whatever_the_umask_and_read_back(tmp_path):
    before = os.umask(0)
    try:
        write_key(tmp_path / "key", secret_of("k"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert read_key(tmp_path / "key") == key_of("k")


def test_a_key_file_that_exists_is_not_written_over(tmp_path):
    key_file(tmp_path / "key", "a")
    with pytest.raises(FileExistsError):
        key_file(tmp_path / "key", "b")
    assert read_key(tmp_path / "key") == key_of("a")


def test_white_space_around_the_key_does_not_count(tmp_path):
    write_key(tmp_path / "key", b"\r\n \t" + secret_of("k") + b"\r\n\n")
    assert read_key(tmp_path / "key") == key_of("k")


@posix
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o666, 0o610, 0o601, 0o777])
def test_a_key_file_that_others_may_use_is_refused_with_what_to_do(tmp_path, mode):
    path = key_file(tmp_path / "key", "k")
    path.chmod(mode)
    with pytest.raises(AuthenticationError, match=f"chmod 600 {path}"):
        read_key(path)


@pytest.mark.parametrize("content", [b"", b"\n", b"short", b"x" * 15, b" " * 100])
def test_a_key_file_without_a_key_is_refused(tmp_path, content):
    write_key(tmp_path / "key", content)
    with pytest.raises(AuthenticationError, match="a key has at least 16"):
        read_key(tmp_path / "key")


@pytest.mark.parametrize("name", ["missing", "folder"])
def test_a_key_file_that_cannot_be_read_is_refused_by_its_name(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(AuthenticationError, match=f"cannot read the key file {tmp_path / name}: "):
        read_key(tmp_path / name)


def test_keys_are_long_printable_and_never_the_same():
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(bytes.fromhex(key.decode())) == 32 for key in keys)


# -- where a key is found -----------------------------------------------------------------------------------


@pytest.fixture
def ambient():
    """As in a worker whose server has this key."""
    set_ambient_key(key_of("w"))
    yield
    set_ambient_key(None)  # type: ignore[arg-type]


def test_a_client_looks_for_its_key_in_the_order_documented(tmp_path, monkeypatch, ambient):
    named, beside, own = tmp_path / "named", tmp_path / "socket.key", default_key_file()
    address = parse_address(f"unix:{tmp_path / 'socket'}")
    own.parent.mkdir(parents=True)
    key_file(own, "o")
    assert client_key(None, None, address) == key_of("w")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(key_file(tmp_path / "variable", "v")))
    assert client_key(None, None, address) == key_of("v")
    key_file(beside, "b")
    assert client_key(None, None, address) == key_of("b")
    assert client_key(None, key_file(named, "n"), address) == key_of("n")
    assert client_key(secret_of("k"), named, address) == key_of("k")


def test_outside_of_workers_the_user_s_own_file_comes_last(tmp_path, monkeypatch):
    own = default_key_file()
    own.parent.mkdir(parents=True)
    key_file(own, "o")
    for address in (NEAR, FAR):
        assert client_key(None, None, address) == key_of("o")
    assert server_keys() == [key_of("o")]


def test_a_server_looks_for_its_key_in_the_order_documented(tmp_path, monkeypatch):
    (made,) = server_keys()
    assert made == read_key(default_key_file())
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(key_file(tmp_path / "variable", "v")))
    assert server_keys() == [key_of("v")]
    assert server_keys(None, key_file(tmp_path / "named", "n")) == [key_of("n")]
    assert server_keys(secret_of("k"), tmp_path / "named") == [key_of("k")]


def test_a_file_that_was_named_must_be_there_and_nothing_else_is_tried(tmp_path, monkeypatch):
    with pytest.raises(AuthenticationError, match="cannot read"):
        server_keys(None, tmp_path / "missing")
    with pytest.raises(AuthenticationError, match="cannot read"):
        client_key(None, tmp_path / "missing", NEAR)
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(AuthenticationError, match="cannot read"):
        server_keys()
    with pytest.raises(AuthenticationError, match="cannot read"):
        client_key(None, None, NEAR)


@pytest.mark.parametrize("key", [b"", b"x" * 15, "x" * 32, 5, ["x"] * 32, memoryview(b"x" * 32)], ids=name_of)
def test_what_is_no_key_is_refused_without_being_shown(key):
    for find in (lambda: server_keys(key), lambda: client_key(key, None, NEAR)):
        with pytest.raises(AuthenticationError, match="bytes object of at least 16 bytes") as caught:
            find()
        assert "xxx" not in str(caught.value)


def test_for_a_server_far_away_no_key_is_made_but_told_where_to_put_it():
    with pytest.raises(AuthenticationError) as caught:
        client_key(None, None, FAR)
    text = str(caught.value)
    assert all(word in text for word in (str(FAR), str(default_key_file()), "--key-file", KEY_FILE_VARIABLE))
    assert not default_key_file().exists()


def test_a_farm_that_finds_no_key_says_so_at_its_first_task():
    with FarmExecutor("192.0.2.1:1") as farm:
        with pytest.raises(AuthenticationError, match="no key for server 192.0.2.1:1"):
            farm.submit(abs, 1).result(DEADLINE)
        with pytest.raises(AuthenticationError, match="no key for server 192.0.2.1:1"):
            farm.submit(abs, 1)


def test_a_farm_whose_key_is_no_key_says_so_at_once():
    with pytest.raises(ValueError, match="at least 16 bytes"):
        FarmExecutor("127.0.0.1:1", key=b"short")


# -- the user's own file ------------------------------------------------------------------------------------


@posix
def test_the_user_s_own_file_is_made_on_first_use_for_the_user_alone(tmp_path):
    before = os.umask(0)
    try:
        (key,) = server_keys()
    finally:
        os.umask(before)
    path = default_key_file()
    assert path == tmp_path / "config" / "farm_executor" / "key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["key"]
    assert path.stat().st_nlink == 1
    assert client_key(None, None, NEAR) == key == server_keys()[0]


def test_without_a_place_for_configuration_it_is_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_key_file() == tmp_path / ".config" / "farm_executor" / "key"


def test_threads_that_make_it_at_once_get_the_same_key():
    for _ in range(5):
        default_key_file().unlink(missing_ok=True)
        start = threading.Barrier(16)
        found: list[Key] = []

        def make(start: threading.Barrier = start, found: list[Key] = found) -> None:
            start.wait()
            found.extend(server_keys())

        threads = [threading.Thread(target=make) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert len(found) == 16
        assert set(found) == {read_key(default_key_file())}
        assert os.listdir(default_key_file().parent) == ["key"]


def test_processes_that_make_it_at_once_get_the_same_key():
    code = """
        import sys
        from farm_executor.wire.security import server_keys
        print(flush=True)
        sys.stdin.readline()
        print(server_keys()[0].secret.hex())
        """
    command = [sys.executable, "-c", "\n".join(line.strip() for line in code.splitlines())]
    with ExitStack() as stack:
        makers = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            )
            for _ in range(6)
        ]
        for maker in makers:
            maker.stdout.readline()
        for maker in makers:
            maker.stdin.write("\n")
            maker.stdin.flush()
        keys = {bytes.fromhex(maker.communicate(timeout=DEADLINE)[0]) for maker in makers}
    assert keys == {read_key(default_key_file()).secret}
    assert os.listdir(default_key_file().parent) == ["key"]


@posix
def test_the_user_s_own_file_is_refused_too_when_others_may_read_it():
    server_keys()
    default_key_file().chmod(0o644)
    with pytest.raises(AuthenticationError, match="chmod 600"):
        server_keys()
    with FarmExecutor("127.0.0.1:1") as farm, pytest.raises(AuthenticationError, match="chmod 600"):
        farm.submit(abs, 1).result(DEADLINE)


def test_a_place_where_it_cannot_be_made_is_an_error_at_once_that_says_what_else_to_do(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(AuthenticationError, match=f"cannot make the key file .*{KEY_FILE_VARIABLE}"):
        server_keys()
    with FarmExecutor("127.0.0.1:1") as farm, pytest.raises(AuthenticationError, match="cannot make the key file"):
        farm.submit(abs, 1).result(DEADLINE)


def test_client_and_server_of_one_user_find_each_other_by_themselves(no_leaks):
    with start_server("127.0.0.1", 0, background=True, workers=1) as server, FarmExecutor(server.address) as farm:
        assert farm.submit(abs, -3).result(DEADLINE) == 3


def test_the_environment_names_the_key_file_of_client_and_server(tmp_path, monkeypatch, no_leaks):
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(key_file(tmp_path / "variable", "v")))
    with start_server("127.0.0.1", 0, background=True, workers=1) as server:
        host, _, port = server.address.rpartition(":")
        monkeypatch.delenv(KEY_FILE_VARIABLE)
        with pytest.raises(AuthenticationError):
            ping(host, int(port))
        monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "variable"))
        assert ping(host, int(port))
        with FarmExecutor(server.address) as farm:
            assert farm.submit(abs, -3).result(DEADLINE) == 3


# -- it is never seen ---------------------------------------------------------------------------------------


def shown_forms(key: bytes) -> list[str]:
    import base64

    return [key.decode(), key.hex(), base64.b64encode(key).decode().rstrip("="), repr(list(key))[1:-1]]


@linux
@pytest.mark.parametrize("kind", ["embedded", "background", "command line"])
def test_the_key_is_in_no_command_line_environment_log_or_repr(kind, caplog, tmp_path, no_leaks):
    caplog.set_level(logging.DEBUG)
    key = KEY
    seen: list[str] = []
    with ExitStack() as stack:
        if kind == "embedded":
            farm = stack.enter_context(FarmExecutor(1))
        elif kind == "background":
            server = stack.enter_context(start_server("127.0.0.1", 0, background=True, workers=1, key=key))
            farm = stack.enter_context(FarmExecutor(server.address, key=key))
            seen += [repr(server), str(vars(server))]
        else:
            serving = stack.enter_context(Serving("-v", workers=1))
            farm = stack.enter_context(FarmExecutor(serving.address, key=key))
        worker = farm.submit(tasks.pid).result(DEADLINE)
        if kind == "embedded":
            (address,) = farm.statistics().servers
            key = read_key(address.address.removeprefix("unix:") + ".key").secret
        else:
            host, _, port = farm.statistics().servers[0].address.rpartition(":")
            seen.append(str(status(host, int(port), key=key)))
            wrong = FarmExecutor(f"{host}:{port}", key=b"another key entirely")
            with wrong, pytest.raises(AuthenticationError) as caught:
                wrong.submit(abs, 1).result(DEADLINE)
            seen += [str(caught.value), repr(caught.value), repr(wrong)]
        seen.append(repr(farm._engine._options))
        with pytest.raises(Exception, match="7") as died:
            farm.with_options(max_attempts=1).submit(tasks.die, "exit").result(DEADLINE)
        seen += [repr(farm), str(farm.statistics()), str(died.value)]
        servers = {pid for pid in children(os.getpid()) if worker in children(pid)} or children(os.getpid())
        for pid in {*servers, *(child for server_pid in servers for child in children(server_pid))}:
            seen += [command_line(pid).decode(), environment(pid).decode()]
        seen.append(str(farm.submit(tasks.own_environment).result(DEADLINE)))
        if kind == "command line":
            seen.append(serving.log)
    seen.append(caplog.text)
    assert len(seen) > 5
    everything = "\n".join(seen)
    assert not [form for form in shown_forms(key) if form in everything]


def test_the_key_does_not_travel_with_an_executor_that_is_pickled(tmp_path):
    import pickle

    write_key(tmp_path / "key", KEY)
    assert KEY not in pickle.dumps(FarmExecutor("127.0.0.1:1", key=KEY))
    assert KEY not in pickle.dumps(FarmExecutor("127.0.0.1:1", key_file=tmp_path / "key"))


# -- files that move ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_a_relative_key_file_stays_the_one_that_was_given(tmp_path, monkeypatch, how):
    key_file(tmp_path / "lab.key", "k")
    monkeypatch.chdir(tmp_path)
    if how == "variable":
        monkeypatch.setenv(KEY_FILE_VARIABLE, "lab.key")
        finder = KeyFinder(None, None)
    else:
        finder = KeyFinder(None, FarmExecutor("127.0.0.1:1", key_file="lab.key")._backing.settings.key_file)
    monkeypatch.chdir("/")
    assert finder(NEAR) == key_of("k")


def test_a_key_that_was_read_serves_while_its_file_cannot_be_and_a_new_one_is_taken(tmp_path):
    path = key_file(tmp_path / "key", "k")
    finder = KeyFinder(None, path)
    assert finder(NEAR) == key_of("k")
    path.unlink()
    assert finder(NEAR) == key_of("k")
    path.write_bytes(b"half")
    assert finder(NEAR) == key_of("k")
    path.unlink()
    key_file(path, "n")
    assert finder(NEAR) == key_of("n")
    path.unlink()
    with pytest.raises(AuthenticationError, match="cannot read the key file"):
        KeyFinder(None, path)(NEAR)


def test_no_second_key_is_made_while_the_user_s_own_is_away():
    finder = KeyFinder(None, None)
    made = finder(NEAR)
    default_key_file().rename(default_key_file().with_suffix(".away"))
    assert finder(NEAR) == made
    assert not default_key_file().exists()


@posix
def test_too_many_open_files_are_not_a_wrong_key(tmp_path, monkeypatch):
    path = key_file(tmp_path / "key", "k")
    finder = KeyFinder(None, path)

    def refuse(*arguments, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(OSError, match="Too many open files") as caught:
            finder(NEAR)
        assert not isinstance(caught.value, AuthenticationError)
    assert finder(NEAR) == key_of("k")


def test_in_a_worker_its_server_s_key_serves_for_a_file_that_is_not_there(tmp_path, ambient):
    import pickle

    path = key_file(tmp_path / "key", "k")
    data = pickle.dumps(FarmExecutor("127.0.0.1:1", key_file=path))
    there = pickle.loads(data)
    assert KeyFinder(None, there._backing.settings.key_file)(NEAR) == key_of("k")
    path.unlink()
    there = pickle.loads(data)
    assert KeyFinder(None, there._backing.settings.key_file)(NEAR) == key_of("w")


@linux
def test_a_server_that_is_refused_leaves_no_key_behind(capsys):
    from farm_executor import cli

    assert cli.main(["serve", "0.0.0.0:0"]) == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", f"127.0.0.1:{port}"]) == 2
        with pytest.raises(OSError, match="cannot listen"):
            start_server("127.0.0.1", port, background=True)
    with pytest.raises(ValueError, match="refusing to listen"):
        start_server("0.0.0.0", 0, background=True)
    assert not default_key_file().exists()


@linux
def test_a_wrong_key_s_error_names_the_file_that_was_offered_and_what_to_do(tmp_path):
    wrong = key_file(tmp_path / "wrong", "x")
    with Serving() as server:
        with pytest.raises(AuthenticationError, match=f"than that of the key file {wrong}. Copy the key file from"):
            status(server.host, server.port, key_file=wrong)
        with pytest.raises(AuthenticationError, match="than the one given as key="):
            status(server.host, server.port, key=secret_of("x"))


@pytest.mark.parametrize("key", [b"k" * 32, b"abcde" * 10, bytes(64)], ids=name_of)
def test_a_key_that_is_easy_to_guess_is_refused_with_the_reason(tmp_path, key):
    with pytest.raises(ValueError, match="key must not be so easy to guess: it is made of"):
        FarmExecutor("127.0.0.1:1", key=key)
    write_key(tmp_path / "weak", key)
    for find in (lambda: server_keys(key), lambda: client_key(None, tmp_path / "weak", NEAR)):
        with pytest.raises(AuthenticationError, match="different bytes only; let the computer make it"):
            find()


def test_a_key_is_not_seen_by_who_prints_variables():
    """As reporters of exceptions do, those of every frame."""
    secret = b"a key that nobody should see"
    with FarmExecutor("127.0.0.1:1", key=secret) as farm:
        assert farm._backing.settings.key.secret == secret
        shown = (
            repr(vars(farm))
            + repr(vars(farm._backing))
            + repr(client_key(secret, None, NEAR).secret)
            + str(farm._backing.settings.key.secret)
            + f"{farm._backing.settings.key.secret}"
        )
    assert "nobody should see" not in shown
    assert "<a secret>" in shown
    assert repr(new_key()) == "<a secret>"
