"""What every test gets: a key file of its own, no leaks, and stacks when something hangs."""

import gc
import os
import signal
import sys
import threading
import time
from multiprocessing import resource_tracker

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# How long an example takes says more of the machine, and of what else it does, than of the test.
untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Every run of the same code has the same examples, so that it passes or fails by what was changed. Others, and many
# more of them, are for `nox -s properties`.
settings.register_profile("same", untimed, max_examples=50, derandomize=True)
settings.register_profile("many", untimed, max_examples=2000)
settings.load_profile("same")


def pytest_addoption(parser):
    parser.addoption(
        "--not-led",
        action="store_true",
        help="with caller_leads=False, unless a test says otherwise",
    )
    parser.addoption(
        "--minimums",
        action="store_true",
        help="the lowest versions that the project declares are installed: fail if they are not",
    )
    parser.addoption(
        "--rows",
        help="of the contract's executors only these, by their names, with commas in between",
    )


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which is ignored under nohup
    if config.getoption("--not-led"):
        from farm_executor import FarmExecutor

        FarmExecutor.__init__.__kwdefaults__["caller_leads"] = False


@given(st.none())
def _first_example(_):
    """Have Hypothesis find the random numbers that it manages, for which it asks who refers to them.

    Of what is frozen, the garbage collector tells no referrers.
    """


def pytest_collection_finish(session):
    """What is loaded by now stays, so that looking for leaks need not look through it, test by test."""
    _first_example()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_key_file(tmp_path_factory):
    """Tests never read or make the user's own key."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))
    os.environ.pop("FARM_EXECUTOR_KEY_FILE", None)


def _threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("farm-")}


def _children():
    """The pids of this process's children, zombies included."""
    path = f"/proc/self/task/{threading.get_native_id()}/children"
    if not os.path.exists(path):
        return set()
    pids = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                pids.update(map(int, file.read().split()))
        except FileNotFoundError:  # the thread has ended meanwhile
            pass
    return pids


def _descriptors():
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0


@pytest.fixture
def no_leaks():
    """After the test no thread of ours, no child process and no descriptor more than before it.

    The engine's last deeds may be under way when a test ends, so the end is awaited, with a deadline.
    """
    if os.name == "posix":  # a process keeps the one that its farms share; the standard library's tests end it
        resource_tracker.ensure_running()
    gc.collect()
    # What has outlived other tests is none of this one's: to look through it once more took half of a run's time.
    gc.freeze()
    threads, children, descriptors = _threads(), _children(), _descriptors()
    yield
    deadline = time.monotonic() + 10
    while True:
        gc.collect()
        left = (_threads() - threads, _children() - children, max(_descriptors() - descriptors, 0))
        if not any(left):
            return
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: threads {left[0]}, processes {left[1]}, descriptors {left[2]}")
        time.sleep(0.02)


@pytest.fixture(scope="session")
def sshd():
    """A real ssh server; see `sshd.Sshd`."""
    import sshd

    if sshd.WHY_NOT:
        pytest.skip(sshd.WHY_NOT)
    server = sshd.Sshd()
    yield server
    server.end()
