"""Key files for TLS: what is in them, and the command that makes them."""

import os
import shutil
import ssl
import stat
import subprocess
import sys

import pytest

from farm_executor import cli
from farm_executor.errors import AuthenticationError
from farm_executor.wire.keygen import make_key_file_content
from farm_executor.wire.security import default_key_file, read_key, server_keys, write_key

posix = pytest.mark.skipif(sys.platform == "win32", reason="file modes")


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@posix
def test_keygen_makes_one_file_for_the_user_alone(tmp_path, capsys):
    path = tmp_path / "new folder" / "lab.key"
    before = os.umask(0)
    try:
        assert cli.main(["keygen", str(path)]) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["lab.key"]
    said = capsys.readouterr().out
    assert said == f"made {path}: copy it, mode 600, to every server and client of the farm\n"
    key = read_key(path)
    assert len(key.secret) == 32
    assert key.tls is not None


def test_without_a_name_it_is_the_users_own_file():
    assert cli.main(["keygen"]) == 0
    assert read_key(default_key_file()).tls is not None


def test_a_file_that_exists_is_not_written_over(tmp_path, capsys):
    (tmp_path / "key").write_text("precious")
    assert cli.main(["keygen", str(tmp_path / "key")]) == 2
    assert "is not written over: name another, or move it away" in capsys.readouterr().err
    assert (tmp_path / "key").read_text() == "precious"


def test_the_user_s_own_key_is_made_with_a_certificate_so_that_tcp_is_encrypted_by_default():
    (key,) = server_keys()
    assert key.tls is not None
    assert key == read_key(default_key_file())


def test_without_cryptography_the_user_s_own_key_is_a_plain_secret(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    (key,) = server_keys()
    assert key.tls is None
    assert len(key.secret) == 64
    assert server_keys() == [key]


def test_the_user_s_own_key_that_was_made_by_itself_gets_a_certificate_and_keeps_its_secret(capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cryptography", None)
        (plain,) = server_keys()
    assert plain.tls is None
    assert cli.main(["keygen"]) == 0
    assert "upgraded" in capsys.readouterr().out
    key = read_key(default_key_file())
    assert key.secret == plain.secret
    assert key.tls is not None
    assert os.listdir(default_key_file().parent) == ["key"]


def test_keygen_leaves_an_automatic_key_that_has_a_certificate_and_succeeds(capsys):
    server_keys()
    before = default_key_file().read_bytes()
    assert cli.main(["keygen"]) == 0
    assert "has a certificate already: copy it" in capsys.readouterr().out
    assert default_key_file().read_bytes() == before


def test_a_key_of_the_user_s_making_is_not_written_over():
    default_key_file().parent.mkdir(parents=True)
    write_key(default_key_file(), b"correct horse battery staple")
    assert cli.main(["keygen"]) == 2
    assert read_key(default_key_file()).secret == b"correct horse battery staple"


def test_without_cryptography_the_error_names_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert cli.main(["keygen", str(tmp_path / "key")]) == 2
    assert "python -m pip install cryptography" in capsys.readouterr().err
    assert not (tmp_path / "key").exists()


def test_a_key_file_that_is_used_needs_no_cryptography(tmp_path):
    cli.main(["keygen", str(tmp_path / "key")])
    code = (
        "import sys; sys.modules['cryptography'] = None; from farm_executor.wire.security import read_key; "
        f"print(read_key({str(tmp_path / 'key')!r}).tls is not None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_no_two_files_are_alike_and_none_shows_in_a_repr(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(make_key_file_content())
        (tmp_path / name).chmod(0o600)
    one, other = read_key(tmp_path / "a"), read_key(tmp_path / "b")
    assert one.secret != other.secret
    assert repr(one) == "<Key with certificate>"


def test_python_and_openssl_read_certificate_and_private_key_as_they_stand(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(make_key_file_content())
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl")
    about = ["openssl", "x509", "-in", str(path), "-noout", "-text"]
    text = subprocess.run(about, capture_output=True, text=True, check=True).stdout
    assert "Not After : Dec 31 23:59:59 9999 GMT" in text
    assert "CA:FALSE" in text
    assert "prime256v1" in text
    subprocess.run(["openssl", "pkey", "-in", str(path), "-noout"], check=True)


def test_a_certificate_cannot_vouch_for_another(tmp_path):
    """Who has the file could be anybody in the farm anyway; but no chain leads from it to a second certificate."""
    path = tmp_path / "key"
    path.write_bytes(make_key_file_content())
    path.chmod(0o600)
    certificate = ssl.PEM_cert_to_DER_cert(path.read_text().partition("-----BEGIN PRIVATE")[0].strip())
    (trusted,) = read_key(path).tls.client.get_ca_certs(binary_form=True) or [certificate]
    assert trusted == certificate


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda text: text.partition("-----BEGIN FARM")[0], "holds no block FARM EXECUTOR SECRET"),
        (lambda text: text.replace("SECRET-----\n", "SECRET-----\n*", 1), "its secret is not base64"),
        (lambda text: text.replace("-----BEGIN CERTIFICATE", "-----BEGIN PAPER"), "there is no certificate"),
        (lambda text: text.replace("BEGIN PRIVATE KEY", "BEGIN KEY"), "no certificate with its private key"),
        (lambda text: text.replace("MI", "AA"), "no certificate with its private key|malformed certificate"),
    ],
    ids=["no secret", "secret", "no certificate", "no private key", "certificate"],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(tmp_path, damage, why):
    path = tmp_path / "key"
    path.write_text(damage(make_key_file_content().decode()))
    path.chmod(0o600)
    with pytest.raises(AuthenticationError, match=why) as caught:
        read_key(path)
    assert str(path) in str(caught.value) or "malformed" in str(caught.value)


def test_a_secret_too_short_is_refused(tmp_path):
    path = tmp_path / "key"
    text = make_key_file_content().decode()
    head = text.partition("-----BEGIN FARM")[0]
    path.write_text(head + "-----BEGIN FARM EXECUTOR SECRET-----\nYWJj\n-----END FARM EXECUTOR SECRET-----\n")
    path.chmod(0o600)
    with pytest.raises(AuthenticationError, match="holds 3 bytes; a key has at least 16"):
        read_key(path)


@posix
def test_one_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(make_key_file_content())
    path.chmod(0o644)
    with pytest.raises(AuthenticationError, match=f"chmod 600 {path}"):
        read_key(path)
