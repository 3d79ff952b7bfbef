"""Files and sockets that somebody else could have planted."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from farm_executor import AuthenticationError, FarmExecutor
from farm_executor.wire import trusted
from farm_executor.wire.address import parse_address
from farm_executor.wire.dialling import connect
from farm_executor.wire.security import Key, client_key, read_key
from farm_executor.wire.tls import own_certificate
from farm_executor.wire.trusted import check_socket, read_trusted

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="file owners")
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives files to other users")
SECRET = b"a secret of the tests, of some length"
STRANGER = 65534


@pytest.fixture
def folder():
    """With a short name, and open to other users, as the tests' own folders are not."""
    name = tempfile.mkdtemp(prefix="trusted-")
    os.chmod(name, 0o755)
    yield Path(name)
    shutil.rmtree(name)


@pytest.fixture
def key(folder):
    path = folder / "key"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    return path


@root
def test_another_user_s_key_beside_a_socket_is_not_used(folder, key):
    planted = key.rename(folder / "socket.key")
    os.chown(planted, STRANGER, STRANGER)
    with pytest.raises(AuthenticationError, match=f"belongs to another user .uid {STRANGER}.*name one of your own"):
        client_key(None, None, parse_address(f"unix:{folder}/socket"))


@root
def test_another_user_s_link_to_a_file_of_ours_is_not_followed(folder, key):
    link = folder / "link"
    link.symlink_to(key)
    assert read_key(link) == Key(SECRET)
    os.chown(link, STRANGER, STRANGER, follow_symlinks=False)
    with pytest.raises(AuthenticationError, match=f"the link {link} belongs to another user"):
        read_key(link)
    second = folder / "second"
    second.symlink_to("link")
    with pytest.raises(AuthenticationError, match=f"the link {link} belongs to another user"):
        read_key(second)


def test_links_of_our_own_are_followed_and_not_for_ever(folder, key):
    (folder / "..data").symlink_to(".")
    (folder / "secret").symlink_to("..data/key")
    assert read_key(folder / "secret") == Key(SECRET)
    (folder / "circle").symlink_to("circle")
    with pytest.raises(AuthenticationError, match="cannot read the key file .*circle: "):
        read_key(folder / "circle")


def test_what_is_no_regular_file_is_refused_without_a_wait(folder):
    os.mkfifo(folder / "pipe", 0o600)
    for path in (folder / "pipe", folder, "/dev/zero"):
        with pytest.raises(AuthenticationError, match=f"cannot read the key file {path}: it is not a regular file"):
            read_key(path)


def test_a_file_that_is_too_large_is_refused(folder):
    (folder / "key").write_bytes(bytes(65 * 1024))
    (folder / "key").chmod(0o600)
    with pytest.raises(AuthenticationError, match="more than 64 KiB"):
        read_key(folder / "key")


@root
def test_a_file_of_root_s_may_be_read_by_its_group_but_not_by_all(folder, key):
    code = "import sys; from farm_executor.wire.security import read_key; print(len(read_key(sys.argv[1]).secret))"
    # The interpreter may be one that only root can read: it imports first.
    code = f"import os, farm_executor.wire.security; os.setgroups([2000]); os.setgid(1000); os.setuid(1000)\n{code}"

    def as_somebody_else(mode, group=2000, owner=0):
        os.chown(key, owner, group)
        key.chmod(mode)
        done = subprocess.run([sys.executable, "-c", code, str(key)], capture_output=True, text=True, check=False)
        return done.stdout.strip() or done.stderr.splitlines()[-1]

    assert as_somebody_else(0o440) == str(len(SECRET))
    assert as_somebody_else(0o640) == str(len(SECRET))
    for mode in (0o444, 0o644, 0o660):
        assert "others may read the key file" in as_somebody_else(mode)
    assert "others may read the key file" in as_somebody_else(0o440, owner=1000)
    assert "belongs to another user" in as_somebody_else(0o444, owner=STRANGER)


@root
@pytest.mark.parametrize("planted", range(3))
def test_every_file_of_a_certificate_is_looked_at(folder, planted):
    paths = [folder / name for name in ("certificate", "private key", "authority")]
    for path in paths:
        path.write_text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
    assert str(paths[0])
    os.chown(paths[planted], STRANGER, STRANGER)
    with pytest.raises(AuthenticationError) as caught:
        if planted == 2:  # a certificate that can be loaded comes before it
            from farm_executor.wire.tls import _read

            _read(paths[2], "certificates")
        else:
            own_certificate(*paths)
    assert f"{paths[planted]} belongs to another user" in str(caught.value)


def test_a_certificate_that_others_may_write_is_refused(folder):
    path = folder / "certificate"
    path.write_text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
    path.chmod(0o664)
    with pytest.raises(AuthenticationError, match=f"others may write to the certificate {path}: .*chmod go-w"):
        own_certificate(path, None, None)


def test_what_was_looked_at_is_what_is_read(folder, key, monkeypatch):
    """Exchanging the file after the look is of no use."""
    look = trusted._check

    def exchange(*looked):
        look(*looked)
        key.unlink()
        key.write_bytes(b"somebody else's secret")

    monkeypatch.setattr(trusted, "_check", exchange)
    assert read_trusted(key, "the key file", secret=True) == SECRET


@root
def test_a_socket_that_another_user_has_made_is_not_spoken_to(folder, key):
    path = str(folder / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        check_socket(path)
        os.chown(path, STRANGER, STRANGER)
        with pytest.raises(AuthenticationError, match=f"the socket {path} belongs to another user"):
            connect(parse_address(f"unix:{path}"), Key(SECRET), {}, 5.0)
        link = folder / "link"
        link.symlink_to(path)
        with pytest.raises(AuthenticationError, match="belongs to another user"):
            check_socket(str(link))
        with (
            FarmExecutor(f"unix:{path}", key_file=key) as farm,
            pytest.raises(AuthenticationError, match="belongs to another user"),
        ):
            farm.submit(abs, -1).result(30)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_where_there_is_no_socket_that_is_said():
    with pytest.raises(FileNotFoundError):
        check_socket("/nonexistent/socket")
    check_socket("\0abstract")
