"""What executors do on a bad day: ``python tests/bench/features.py`` tries it with all that are installed.

Each question is put to each of them in a process of its own, which is ended after a minute: some never answer.
docs/compare.md has the answers; ``--check`` compares them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib.util
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "compare.md"
PATIENCE = 20.0  # seconds until an answer that does not come counts as none
Submit = Callable[..., Any]  # fn and its arguments in, something with result(timeout) out


# -- tasks: of this module, so that all can import them ----------------------------------------------------------


def slow(number: int) -> int:
    time.sleep(0.1)
    return number


def die() -> None:
    os._exit(1)


def fail() -> None:
    raise ValueError("no")


def named(**arguments: int) -> dict[str, int]:
    return arguments


# -- the executors ----------------------------------------------------------------------------------------------


class Result:
    """What mp.Pool and mpire return, with a future's method."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def result(self, timeout: float | None = None) -> Any:
        return self._result.get(timeout)


@contextmanager
def farm() -> Iterator[tuple[Submit, Any]]:
    from farm_executor import FarmExecutor

    with FarmExecutor(2) as executor:
        yield executor.submit, executor


@contextmanager
def ppe() -> Iterator[tuple[Submit, Any]]:
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        yield executor.submit, executor


@contextmanager
def pool() -> Iterator[tuple[Submit, Any]]:
    with multiprocessing.get_context("spawn").Pool(2) as executor:
        yield lambda fn, /, *args, **kwargs: Result(executor.apply_async(fn, args, kwargs)), executor


@contextmanager
def loky() -> Iterator[tuple[Submit, Any]]:
    import loky

    with loky.ProcessPoolExecutor(2) as executor:
        yield executor.submit, executor


@contextmanager
def mpire() -> Iterator[tuple[Submit, Any]]:
    import mpire

    with mpire.WorkerPool(2) as executor:
        yield lambda fn, /, *args, **kwargs: Result(executor.apply_async(fn, args, kwargs)), executor


@contextmanager
def pebble() -> Iterator[tuple[Submit, Any]]:
    import pebble

    with pebble.ProcessPool(2, context=multiprocessing.get_context("spawn")) as executor:
        yield lambda fn, /, *args, **kwargs: executor.schedule(fn, args=args, kwargs=kwargs), executor


@contextmanager
def dask() -> Iterator[tuple[Submit, Any]]:
    import distributed

    with distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        yield client.submit, client


@contextmanager
def ray() -> Iterator[tuple[Submit, Any]]:
    import ray

    class Reference:
        def __init__(self, reference: Any) -> None:
            self.reference = reference

        def result(self, timeout: float | None = None) -> Any:
            return ray.get(self.reference, timeout=timeout)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield lambda fn, /, *args, **kwargs: Reference(ray.remote(fn).remote(*args, **kwargs)), ray
    finally:
        ray.shutdown()


@contextmanager
def executorlib() -> Iterator[tuple[Submit, Any]]:
    from executorlib import SingleNodeExecutor

    with SingleNodeExecutor(max_workers=2) as executor:
        yield executor.submit, executor


PEERS: dict[str, tuple[str, Any]] = {
    "farm_executor": ("farm_executor", farm),
    "ProcessPoolExecutor": ("multiprocessing", ppe),
    "mp.Pool": ("multiprocessing", pool),
    "loky": ("loky", loky),
    "mpire": ("mpire", mpire),
    "pebble": ("pebble", pebble),
    "Dask": ("distributed", dask),
    "Ray": ("ray", ray),
    "executorlib": ("executorlib", executorlib),
}


# -- the questions -----------------------------------------------------------------------------------------------


def takes_a_lambda(submit: Submit, executor: Any) -> str:
    return "yes" if submit(lambda: 42).result(PATIENCE) == 42 else "no"


def is_an_executor(submit: Submit, executor: Any) -> str:
    return "yes" if isinstance(executor, concurrent.futures.Executor) else "no"


def leaves_arguments_alone(submit: Submit, executor: Any) -> str:
    names = ("timeout", "key", "priority", "retries", "resource_dict", "fn")
    return "yes" if submit(named, **dict.fromkeys(names, 1)).result(PATIENCE) == dict.fromkeys(names, 1) else "no"


def survives_a_death(submit: Submit, executor: Any) -> str:
    """Whether a worker's death is an error of its task, and of nothing else."""
    submit(slow, 0).result(PATIENCE)
    others = [submit(slow, number) for number in range(6)]
    victim = submit(die)
    others += [submit(slow, number) for number in range(6, 12)]
    if [other.result(PATIENCE) for other in others] != list(range(12)):
        return "no"
    try:
        victim.result(PATIENCE)
    except Exception as error:
        return "no" if "timeout" in type(error).__name__.lower() else "yes"
    return "no"


def goes_on_after_a_death(submit: Submit, executor: Any) -> str:
    try:
        submit(die).result(PATIENCE)
    except Exception as error:
        print(type(error).__name__, file=sys.stderr)
    return "yes" if submit(slow, 7).result(PATIENCE) == 7 else "no"


def shows_remote_frames(submit: Submit, executor: Any) -> str:
    """Whether the traceback of a task's exception has the frames of the worker, or text alone, or neither."""
    try:
        submit(fail).result(PATIENCE)
    except ValueError as error:
        if any(frame.name == "fail" for frame in traceback.extract_tb(error.__traceback__)):
            return "frames"
        return "text" if ", in fail" in "".join(traceback.format_exception(error)) else "no"
    return "no"


QUESTIONS: dict[str, Callable[[Submit, Any], str]] = {
    "a standard `Executor`": is_an_executor,
    "takes lambdas": takes_a_lambda,
    "all arguments are the function's": leaves_arguments_alone,
    "a death fails one task": survives_a_death,
    "goes on after a death": goes_on_after_a_death,
    "the worker's traceback": shows_remote_frames,
}


def asked_here(peer: str, question: str) -> None:
    """Ask in this process, print the answer, and end without waiting for what hangs."""
    with PEERS[peer][1]() as (submit, executor):
        try:
            answer = QUESTIONS[question](submit, executor)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            answer = "no"
        print(f"answer: {answer}", flush=True)
        os._exit(0)


def ask(peer: str, question: str) -> str:
    """Ask in a process of its own."""
    command = [sys.executable, __file__, "--peer", peer, "--question", question]
    # Not by a pipe: processes that outlive the asked one would hold it open.
    with tempfile.TemporaryFile("w+") as said:
        asked = subprocess.Popen(command, stdout=said, stderr=subprocess.DEVNULL, start_new_session=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            asked.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(asked.pid, signal.SIGKILL)  # with all that it has started
        asked.wait()
        said.seek(0)
        found = re.search(r"^answer: (.*)$", said.read(), re.M)
    return found[1] if found else "no"


def on_the_page() -> dict[tuple[str, str], str]:
    """The answers in the tables of the documentation."""
    answers = {}
    for table in re.findall(r"((?:^\|.*\|\n)+)", PAGE.read_text("utf-8"), re.M):
        head, _, *rows = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines())
        for row in rows:
            answers |= {(row[0], question): cell for question, cell in zip(head[1:], row[1:], strict=True)}
    return answers


def main() -> int:
    """Ask all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=PEERS, help="this one alone")
    parser.add_argument("--question", choices=QUESTIONS, help="this one alone, in this very process")
    parser.add_argument("--check", action="store_true", help="compare with docs/compare.md")
    options = parser.parse_args()
    if options.question:
        asked_here(options.peer, options.question)
    page, wrong = on_the_page() if options.check else {}, 0
    for peer in [options.peer] if options.peer else PEERS:
        if importlib.util.find_spec(PEERS[peer][0]) is None:
            print(f"{peer}: not installed")
            continue
        for question in QUESTIONS:
            answer = ask(peer, question)
            shown = page.get((peer, question), answer)
            wrong += shown != answer
            print(f"{peer:22}{question:42}{answer}" + (f", and not {shown}" if shown != answer else ""), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
