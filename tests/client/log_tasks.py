"""Tasks that log."""

import logging
import os
import signal
import time

from contract.gate import DEADLINE
from contract.tasks import pass_gate

from farm_executor import current_task


def log(level, *args, name="tasks.of.tests", **kwargs):
    logging.getLogger(name).log(level, *args, **kwargs)


def log_many(count, name="tasks.of.tests"):
    for number in range(count):
        logging.getLogger(name).warning("%d", number)


def log_failure():
    try:
        raise ValueError("of the task")
    except ValueError:
        logging.getLogger("tasks.of.tests").exception("it %s", "failed", extra={"where": {"a": 1}, "number": 5})


def log_badly():
    logging.getLogger("tasks.of.tests").warning("%d apples", "many")


class Unshowable:
    def __repr__(self):
        raise RuntimeError("no repr")

    __str__ = __repr__


def log_unshowable():
    logging.getLogger("tasks.of.tests").warning(Unshowable(), extra={"thing": Unshowable(), "huge": 1 << 100})


def log_from_a_factory():
    factory = logging.getLogRecordFactory()

    def odd(*args, **kwargs):
        record = factory(*args, **kwargs)
        record.created, record.levelname, record.thread = "then", 5, 1 << 80
        return record

    logging.setLogRecordFactory(odd)
    try:
        logging.getLogger("tasks.of.tests").warning("odd")
    finally:
        logging.setLogRecordFactory(factory)


def log_then_pass(address):
    logging.getLogger("tasks.of.tests").warning("at the gate")
    return pass_gate(address)


def set_up_handlers():
    logging.basicConfig(format="kept %(message)s")


def level_of(name):
    return logging.getLogger(name).level, logging.root.manager.disable


def wait_for_level(name, level):
    until = time.monotonic() + DEADLINE
    while logging.getLogger(name).level != level:
        if time.monotonic() > until:
            return "never told"
        time.sleep(0.005)
    return "told"


def set_level(name, level):
    logging.getLogger(name).setLevel(level)


def log_in_a_fork():
    pid = os.fork()
    if not pid:
        logging.getLogger("tasks.of.tests").warning("from a child")
        os._exit(0)
    os.waitpid(pid, 0)


def log_and_die():
    logging.getLogger("tasks.of.tests").warning("last words")
    os._exit(3)


def log_in_a_farm_of_its_own():
    from farm_executor import FarmExecutor

    with FarmExecutor(1) as farm:
        farm.submit(log, logging.WARNING, "from within").result(DEADLINE)


def log_in_a_signal_handler(count):
    """Log, print and report in a handler that interrupts whatever the worker does, its own logging included."""
    came = []

    def handle(number, frame):
        came.append(number)
        logging.getLogger("tasks.of.tests").warning("in the handler")
        current_task().report(len(came))

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        until = time.monotonic() + DEADLINE
        while len(came) < count and time.monotonic() < until:
            logging.getLogger("tasks.of.tests").warning("in the task")
            current_task().report(len(came))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return len(came)


def log_when_passed(address, count, path):
    pass_gate(address)
    log_many(count)
    open(path, "w").close()
