"""What the tests of the launchers have done by workers."""

import os
import sys
import time


def variable(name):
    return os.environ.get(name)


def origin(name):
    return sys.modules[name].__spec__.origin


def executable():
    return sys.executable


def parent():
    return os.getppid()


def say(text):
    print(text, flush=True)


def leave_a_process_behind():
    """One that keeps the server's standard error open; its pid."""
    pid = os.fork()
    if not pid:
        os.setsid()
        time.sleep(300)
        os._exit(0)
    return pid


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    return os.getpid()
