"""Tasks that look at themselves."""

import os
import threading
import time

from contract.gate import DEADLINE
from contract.tasks import pass_gate

from farm_executor import current_task


def look():
    task = current_task()
    return task.id, task.attempt, task.category, task.cancelled


def time_left():
    deadline = current_task().deadline
    return None if deadline is None else deadline - time.monotonic()


def look_in_a_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(look()))
    thread.start()
    thread.join()
    return found[0] == look()


def look_in_a_fork():
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writing, repr(look()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return os.read(reading, 100).decode()


def die_once(path):
    first = not os.path.exists(path)
    open(path, "w").close()
    if first:
        os._exit(3)
    return look()


def wait_until_cancelled(address):
    pass_gate(address)
    until = time.monotonic() + DEADLINE
    while not current_task().cancelled:
        if time.monotonic() > until:
            return "never told"
        time.sleep(0.001)
    return "told"


def look_then_pass(address):
    before = look()
    pass_gate(address)
    return before == look()


seen = []


def note():
    seen.append(look())


def noted():
    return seen
