"""Servers that Slurm grants, with a script in srun's place: it does as srun does, on this machine."""

import contextlib
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import threading

import pytest
from launch.tasks import origin
from launch.test_ssh import other_python
from launch.test_ways import bare, dials
from server import tasks
from server.processes import DEADLINE, alive, children, command_line, wait_until

from farm_executor import AddressError, AuthenticationError, BrokenFarmError, FarmExecutor, VersionMismatchError
from farm_executor.client.farm import discovery
from farm_executor.launch import back, errand, slurm
from farm_executor.launch import cluster as cluster_module
from farm_executor.launch.slurm import SRUN_VARIABLE
from farm_executor.wire import keygen

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("no_leaks"),
]


def servers_of(pid):
    """The servers in the jobs that this process has: a script that has become a server."""
    return [child for child in children(pid) if b"sys.stdin.buffer" in command_line(child)]


# -- what works ---------------------------------------------------------------------------------------------


def test_a_farm_on_two_nodes_computes_and_leaves_nothing(srun):
    asked = srun()
    with FarmExecutor(
        "slurm://gpu?nodes=2&per=2&gpus=2&memory=1G&time=30&account=lab&env=FARM_TEST=x{slot}"
    ) as farm:
        assert farm.submit(pow, 2, 10).result(DEADLINE) == 1024
        wait_until(lambda: sum(one.up for one in farm.statistics().servers) == 2, "both have come")
        seen = farm.broadcast(os.getenv, "FARM_TEST", timeout=DEADLINE)
        assert sorted(seen) == ["x0", "x0", "x1", "x1"]
        assert sorted(farm.broadcast(os.getenv, "CUDA_VISIBLE_DEVICES")) == ["4,5", "4,5", "6,7", "6,7"]
        assert {one.address for one in farm.statistics().servers} == {"slurm://gpu/n1:17"}
        secret = farm._backing.supply._sources[0][1]._meets_at[0]
        for pid in servers_of(os.getpid()):
            assert not any(
                line.encode() in command_line(pid) for line in secret.splitlines() if "-----" not in line
            )
    one, two = asked()
    assert one == two
    assert one.startswith(
        "--nodes=1 --ntasks=1 --cpus-per-task=2 --job-name=farm_executor --unbuffered --signal=TERM@60 "
        f"--partition=gpu --time=30 --account=lab --mem=2048M --gres=gpu:4 {sys.executable} -u -c "
    )


def test_a_signal_to_every_process_of_a_job_lets_its_task_end_and_another_is_asked_for(srun, tmp_path, caplog):
    asked = srun()
    with caplog.at_level(logging.INFO), FarmExecutor("slurm://", max_attempts=1) as farm:
        worker = farm.submit(tasks.pid).result(DEADLINE)
        (server,) = servers_of(os.getpid())
        os.mkfifo(tmp_path / "gate")
        future = farm.submit(read_line, str(tmp_path / "gate"))
        with open(tmp_path / "gate", "w") as gate:  # opens once the task reads
            os.kill(worker, signal.SIGTERM)
            os.kill(server, signal.SIGTERM)
            wait_until(lambda: "job about to end of=slurm:// job=17" in caplog.text, "the server drains")
            assert not future.done()
            gate.write("done\n")
        assert future.result(DEADLINE) == "done\n"
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        assert farm.statistics().resubmitted == 0
    assert len(asked()) == 2


def read_line(path):
    with open(path) as file:
        return file.readline()


def test_a_job_that_dies_is_asked_for_again_and_its_task_is_tried_again(srun, tmp_path):
    srun()
    with FarmExecutor("slurm://", resume_timeout=0) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        (server,) = servers_of(os.getpid())
        future = farm.submit(tasks.die_the_first_time, str(tmp_path / "once"), "kill")
        os.kill(server, signal.SIGKILL)
        future.result(DEADLINE)


def test_a_job_that_is_lost_while_srun_waits_for_it_is_given_up(srun, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "LOST_SECONDS", 0.2)
    for name in ("RETRY_SECONDS", "RESOLVE_SECONDS"):
        monkeypatch.setattr(discovery, name, 0.1)
    asked = srun(
        f"""if mkdir {tmp_path}/first; then
            export SLURM_JOB_ID=17 SLURMD_NODENAME=n1 SLURM_LAUNCH_NODE_IPADDR=127.0.0.1
            while [[ $1 == --* ]]; do shift; done
            "$@"
            exec sleep 600
        fi"""
    )
    with FarmExecutor("slurm://", resume_timeout=0) as farm:
        server = farm.submit(os.getppid).result(DEADLINE)
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: len(asked()) == 2, "another is asked for")
        assert farm.submit(abs, -1).result(DEADLINE) == 1


@pytest.mark.parametrize("via", ["direct", "back"])
def test_each_way_leads_there(srun, via):
    srun()
    with FarmExecutor(f"slurm://?via={via}", max_attempts=1) as farm:
        assert farm.submit(pow, 2, 10).result(DEADLINE) == 1024
        place = farm._backing.supply._sources[0][1]._place
        assert dials(farm.submit(os.getppid).result(DEADLINE), place.port) == (via == "back")


def test_a_node_that_cannot_be_dialled_dials_the_program(srun, monkeypatch):
    monkeypatch.setattr(slurm, "probe", lambda host, port, told: told("no route"))
    srun()
    with FarmExecutor("slurm://") as farm:
        server = farm.submit(os.getppid).result(DEADLINE)
        assert dials(server, farm._backing.supply._sources[0][1]._place.port)


def test_a_node_that_nothing_leads_to_is_told_of_with_its_reasons_and_dialled_again(srun, monkeypatch, caplog):
    closed = []  # how often it has been found closed

    def probe(host, port, told):
        closed.append(port)
        told("no route" if len(closed) < 3 else "")

    monkeypatch.setattr(slurm, "probe", probe)
    for name, seconds in (("FIRST_REPORT", 0.0), ("RETRY_SECONDS", 0.1), ("REPORT_EVERY", 0.01)):
        monkeypatch.setattr(discovery, name, seconds)
    srun()
    with caplog.at_level(logging.WARNING), FarmExecutor("slurm://?via=direct") as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
    assert re.search(r"cannot be reached so far: direct: 127\.0\.0\.1:\d+: no route", caplog.text)


def test_a_process_that_a_task_starts_can_be_terminated(srun):
    srun()
    with FarmExecutor("slurm://") as farm:
        assert farm.submit(terminate_a_child).result(DEADLINE) == -signal.SIGTERM


def terminate_a_child():
    import subprocess

    with subprocess.Popen(["sleep", "600"]) as process:
        process.terminate()
        return process.wait(DEADLINE)


def test_farm_executor_is_sent_along_where_it_lacks(srun, tmp_path):
    asked = srun()
    with FarmExecutor(f"slurm://?python={bare(tmp_path)}") as farm:
        assert farm.submit(origin, "farm_executor.data.payload").result(DEADLINE) == (
            "<sent farm_executor.data.payload>"
        )
    assert len(asked()) == 1


def test_a_key_of_the_executors_is_not_used_for_it(srun):
    srun()
    with FarmExecutor("slurm://", key=os.urandom(32)) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1


def test_an_executor_that_is_pickled_asks_for_jobs_of_its_own(srun):
    asked = srun()
    with FarmExecutor("slurm://") as farm, pickle.loads(pickle.dumps(farm)) as other:
        assert farm.submit(abs, -1).result(DEADLINE) == other.submit(abs, -1).result(DEADLINE) == 1
    assert len(asked()) == 2


def test_a_killed_program_leaves_nothing(srun):
    srun()
    code = [
        "import time",
        "from farm_executor import FarmExecutor",
        "from farm_executor.launch import errand",
        "errand.LISTEN = '127.0.0.1'",
        "farm = FarmExecutor('slurm://')",
        "print(farm.submit(abs, -1).result(60), flush=True)",
        "farm.submit(time.sleep, 600)",
        "time.sleep(600)",
    ]
    with subprocess.Popen([sys.executable, "-c", "\n".join(code)], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "1\n"
        placed = servers_of(program.pid)
        assert placed
        program.kill()
        wait_until(lambda: not any(map(alive, placed)), "the server is gone")


# -- what does not ------------------------------------------------------------------------------------------


def test_what_slurm_does_not_take_breaks_the_farm_with_its_words_and_is_not_tried_again(srun):
    asked = srun("echo 'srun: error: invalid partition specified: nope' >&2; exit 1")
    words = "srun: error: invalid partition specified: nope"
    with FarmExecutor("slurm://nope?nodes=2") as farm, pytest.raises(BrokenFarmError, match=words):
        farm.submit(abs, -1).result(DEADLINE)
    assert len(asked()) == 2


def test_what_slurm_wants_to_know_first_breaks_the_farm_with_its_words(srun):
    asked = srun("echo 'srun: error: Unable to allocate resources: Invalid account' >&2; exit 1")
    with FarmExecutor("slurm://?account=no") as farm, pytest.raises(BrokenFarmError, match="Invalid account"):
        farm.submit(abs, -1).result(DEADLINE)
    assert len(asked()) == 1


@pytest.mark.skipif(other_python() is None, reason="there is no other Python")
def test_another_minor_version_of_python_without_farm_executor_is_named_with_this_one(srun):
    srun("unset PYTHONPATH")
    with FarmExecutor(f"slurm://?python={other_python()}") as farm, pytest.raises(VersionMismatchError) as caught:
        farm.submit(abs, -1).result(DEADLINE)
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    there = ".".join(other_python().parent.parent.name.split(".")[:2])
    assert caught.value.mismatches["python"] == (here, there)


def test_one_that_is_refused_after_another_has_served_is_asked_for_again(srun, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "REFUSED_SECONDS", 0.01)
    asked = srun(f"[[ $(wc -l < {tmp_path}/asked) == [23] ]] && exit 1")
    with FarmExecutor("slurm://", resume_timeout=0) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        (server,) = servers_of(os.getpid())
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: len(asked()) == 4, "another has been asked for until there was one")
        assert farm.submit(abs, -2).result(DEADLINE) == 2


def test_an_srun_that_cannot_be_run_any_more_is_tried_again_later(srun, monkeypatch, caplog):
    monkeypatch.setattr(slurm, "REFUSED_SECONDS", 0.01)
    srun()
    with caplog.at_level(logging.WARNING), FarmExecutor("slurm://", resume_timeout=0) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        monkeypatch.setenv(SRUN_VARIABLE, "/no/such/srun")
        (server,) = servers_of(os.getpid())
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: "job not asked for of=slurm://" in caplog.text, "it is told")
        monkeypatch.delenv(SRUN_VARIABLE)
        assert farm.submit(abs, -2).result(DEADLINE) == 2


def test_one_that_fails_does_not_break_a_farm_that_has_others(srun):
    from farm_executor import start_server

    srun("exit 1")
    with (
        start_server("127.0.0.1", 0, background=True, workers=1) as server,
        FarmExecutor(["slurm://", server.address]) as farm,
    ):
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        farm.connect(DEADLINE)


def test_without_srun_it_says_where_to_run(monkeypatch):
    monkeypatch.setattr(errand, "LISTEN", "127.0.0.1")
    monkeypatch.setenv(SRUN_VARIABLE, "/no/such/srun")
    with FarmExecutor("slurm://") as farm, pytest.raises(BrokenFarmError, match="such as on a login node"):
        farm.submit(abs, -1).result(DEADLINE)
    monkeypatch.setenv(SRUN_VARIABLE, "'")
    with FarmExecutor("slurm://") as farm, pytest.raises(BrokenFarmError, match=SRUN_VARIABLE):
        farm.submit(abs, -1).result(DEADLINE)


def test_without_the_package_for_keys_it_names_the_extra(srun, monkeypatch):
    asked = srun()
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with FarmExecutor("slurm://") as farm, pytest.raises(BrokenFarmError, match=r"farm_executor\[tls\]"):
        farm.submit(abs, -1).result(DEADLINE)
    assert asked() == []


def test_a_job_is_taken_back_if_no_key_can_be_made_for_it(srun, monkeypatch):
    def lacking():
        raise AuthenticationError("no")

    srun("exec sleep 600")
    monkeypatch.setattr(keygen, "make_key_file_content", lacking)
    with FarmExecutor("slurm://") as farm, pytest.raises(BrokenFarmError, match="no key can be made"):
        farm.submit(abs, -1).result(DEADLINE)


def test_a_job_is_asked_for_again_once_there_is_a_port(srun, monkeypatch):
    monkeypatch.setattr(discovery, "RETRY_SECONDS", 0.1)
    listens = back.listen_everywhere
    failures = []

    def fail_once(where):
        if failures:
            return listens(where)
        failures.append(where)
        raise OSError("no port is free")

    monkeypatch.setattr(back, "listen_everywhere", fail_once)
    srun()
    with FarmExecutor("slurm://") as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
    assert failures


def test_a_job_that_waits_is_told_of_with_slurms_reason_and_is_taken_back(srun, caplog, monkeypatch):
    monkeypatch.setattr(discovery, "FIRST_REPORT", 0.0)
    monkeypatch.setattr(discovery, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(discovery, "REPORT_EVERY", 0.01)
    srun("exec sleep 600", squeue="echo '17|Resources'")
    with caplog.at_level(logging.WARNING), FarmExecutor("slurm://") as farm:
        future = farm.submit(abs, -1)
        told = "1 waiting in Slurm's queue (job 17: Resources)"
        wait_until(lambda: told in caplog.text, "the reason is told")
        assert future.cancel()


def test_a_wait_ends_with_its_deadline(srun):
    srun("exec sleep 600")
    with FarmExecutor("slurm://", connect_timeout=0.2) as farm, pytest.raises(TimeoutError, match="slurm://"):
        farm.submit(abs, -1).result(DEADLINE)


def test_some_nodes_have_come_and_others_wait(srun, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(cluster_module, "FIRST_REPORT", 0.0)
    srun(f"mkdir {tmp_path}/first 2>/dev/null || exec sleep 600")
    with caplog.at_level(logging.WARNING), FarmExecutor("slurm://?nodes=2") as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        wait_until(
            lambda: "waiting for more servers of=slurm://?nodes=2 have=1 reason=1 waiting" in caplog.text,
            "it is told",
        )


def test_what_the_job_says_is_explained():
    lacks = errand.explained("slurm://", "python3", {"error": "ModuleNotFoundError: x", "missing": "farm_executor"})
    assert "python3 there lacks farm_executor" in str(lacks)
    assert (
        str(errand.explained("slurm://gpu", "", {"error": "disk\nfull"})) == "cannot start slurm://gpu: disk full"
    )


def test_a_job_that_cannot_start_its_server_breaks_the_farm(srun):
    srun("export PYTHONPATH=/no/such TMPDIR=/no/such; set -- python3 -c 'import sys; sys.exit(3)'")
    with FarmExecutor("slurm://") as farm, pytest.raises(BrokenFarmError, match="srun ended with exit code 3"):
        farm.submit(abs, -1).result(DEADLINE)


@pytest.mark.parametrize("method", ["add_server", "remove_server"])
def test_it_is_given_to_the_constructor_alone(method):
    with FarmExecutor("127.0.0.1:1") as farm, pytest.raises(AddressError, match="servers that come and go"):
        getattr(farm, method)("slurm://")


def test_a_forked_child_leaves_the_jobs_to_its_parent(srun):
    srun()
    with FarmExecutor("slurm://") as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        if not (pid := os.fork()):
            with contextlib.suppress(BaseException):
                threading.Event().wait(0)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert farm.submit(abs, -2).result(DEADLINE) == 2
