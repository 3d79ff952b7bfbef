"""`FarmExecutor.check` and ``farm-executor doctor``: this program's packages beside those of servers."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from server.peers import free_address
from server.serving import Serving
from shipping.elsewhere import Elsewhere, Program
from shipping.test_packages import install

from farm_executor import AuthenticationError, FarmCheck, FarmExecutor
from farm_executor.core.shipment import Package
from farm_executor.launch.ssh import SSH_VARIABLE

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def serving(tmp_path: Path):
    install(tmp_path, "numpy", "0.5", "unused")
    with Serving("--path", str(tmp_path)) as server:
        yield server


def test_the_packages_of_an_embedded_farm_are_the_programs():
    with FarmExecutor(max_workers=2) as farm:
        found = farm.check()
    (there,) = found.servers.values()
    assert there == found.here
    assert found.here["numpy"] == np.__version__
    assert found.here["Python"] == platform.python_version()
    assert not found.differences


def test_what_differs_is_found_marked_and_mended(serving):
    with FarmExecutor(serving.address, key_file=serving.key_file) as farm:
        found = farm.with_options(priority="high").check(timeout=60)
    assert found.differences == {serving.address: {"numpy": "0.5"}}
    lines = str(found).splitlines()
    assert lines[0].split() == ["here", serving.address]
    assert lines[1].split() == ["Python", platform.python_version(), platform.python_version()]
    assert lines[2].split() == ["numpy", np.__version__, "0.5", "*"]
    assert f"{serving.address}: python -m pip install numpy=={np.__version__}" in lines
    assert "pytest" in found.here


def test_a_server_that_does_not_answer_is_named(serving):
    other = free_address()
    with FarmExecutor([other, serving.address], key_file=serving.key_file) as farm:
        found = farm.check(timeout=3)
        farm.remove_server(other)
    assert list(found.servers) == [serving.address]
    assert list(found.unanswered) == [other]
    assert f"{other} has not answered: " in str(found)


def test_a_busy_worker_does_not_keep_the_others_from_answering(serving):
    with FarmExecutor(serving.address, key_file=serving.key_file, max_workers=2) as farm:
        busy = farm.submit(time.sleep, 3600)
        while not busy.running():
            pass
        found = farm.check(timeout=3)
        farm.kill(busy)
    assert list(found.servers) == [serving.address]
    assert not found.unanswered


def test_python_differs_by_its_minor_version():
    here = {"Python": "3.13.1", "a": "1"}
    assert FarmCheck(here, {"s": {"Python": "3.13.9", "a": "?"}}).differences == {}
    other = FarmCheck(here, {"s": {"Python": "3.14.1", "a": ""}})
    assert other.differences == {"s": {"Python": "3.14.1", "a": ""}}
    assert "s: a server that runs Python 3.13.1" in str(other)
    assert "a       1       - *" in str(other)


def test_after_the_end_and_with_a_wrong_key(serving):
    farm = FarmExecutor()
    farm.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        farm.check()
    with (
        FarmExecutor(serving.address, key=b"another key, of sixteen bytes") as farm,
        pytest.raises(AuthenticationError),
    ):
        farm.check()
    with pytest.raises(TypeError, match="timeout"):
        FarmExecutor().check(timeout="1")


def _doctor(*arguments: str):
    command = [sys.executable, "-m", "farm_executor", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_doctor_prints_the_table_and_its_exit_code_tells(tmp_path, serving):
    different = _doctor(serving.address, "--key-file", str(serving.key_file))
    assert different.returncode == 1, different.stderr
    assert "pip install numpy==" in different.stdout
    with Serving() as alike:
        same = _doctor(alike.address, "--key-file", str(alike.key_file), "--json")
        assert same.returncode == 0, same.stdout + same.stderr
        answer = json.loads(same.stdout)
        assert answer["here"] == answer["servers"][alike.address]
        assert (answer["differences"], answer["unanswered"]) == ({}, {})


def test_doctor_over_ssh(sshd, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "farm_executor", "doctor", "ssh://somewhere?workers=1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, SSH_VARIABLE: sshd.ssh},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_doctor_with_a_wrong_key(serving, tmp_path):
    from farm_executor.wire.security import write_key

    write_key(tmp_path / "another", b"another key, of sixteen bytes")
    refused = _doctor(serving.address, "--key-file", str(tmp_path / "another"))
    assert refused.returncode == 2
    assert "key" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_name_of_a_package_is_found_by_its_files(tmp_path, monkeypatch):
    """A module's name need not be its package's."""
    from farm_executor.client.farm.packages import package_of

    site = tmp_path / "site-packages"
    install(site, "some-things", "3.1", "oddly_named")
    install(site, "other", "1.0", "oddly")
    monkeypatch.syspath_prepend(str(site))
    assert package_of("oddly_named") == Package("some-things", "3.1")
    assert package_of("nowhere_at_all") is None


def test_modules_and_the_check_over_tls(tmp_path):
    pytest.importorskip("cryptography")
    from farm_executor.wire.keygen import make_key_file_content

    (tmp_path / "there").mkdir()
    install(tmp_path / "there", "numpy", "0.5", "numpy")
    folder = tmp_path / "program"
    folder.mkdir()
    with Elsewhere(folder, "--path", str(tmp_path / "there"), key=make_key_file_content()) as server:
        program = Program(folder, server)
        program.write({"helpers.py": "import numpy\ndef f(): return numpy.f()"})
        printed = program.script("import helpers; print(farm.submit(helpers.f).result()); print(farm.check())")
    assert ", TLS" in server.greeting
    assert printed.splitlines()[0] == "0.5"
    assert "python -m pip install numpy==" in printed


def test_private_modules_such_as_finders_of_editable_installs_do_not_count(tmp_path, monkeypatch):
    import importlib

    from farm_executor.client.farm.packages import imported_packages

    site = tmp_path / "site-packages"
    install(site, "mine", "1.0", "__editable___mine_finder")
    install(site, "public", "1.0", "public_module")
    monkeypatch.syspath_prepend(str(site))
    for name in ("__editable___mine_finder", "public_module"):
        monkeypatch.setitem(sys.modules, name, importlib.import_module(name))
    names = {package.name for package in imported_packages().values()}
    assert "public" in names
    assert "mine" not in names
