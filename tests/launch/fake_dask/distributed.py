"""In distributed's place: a cluster whose workers are threads of the process that asks it.

The file that ``FAKE_DASK`` names says, in JSON, what there is: ``lacking`` for a package that is not installed,
``unreachable`` for a scheduler that does not answer, ``threads`` of each worker by its address, and what a task
``says`` in place of running.
"""

import json
import os
import threading
from concurrent.futures import Future as _Future


def _cluster():
    with open(os.environ["FAKE_DASK"]) as file:
        return json.load(file)


if lacking := _cluster().get("lacking"):
    raise ImportError(f"No module named {lacking!r}", name=lacking)


class Future(_Future):
    @property
    def status(self):
        return "error" if self.done() and self.exception() else "finished"


class Client:
    def __init__(self, address, timeout, set_as_default):
        if words := _cluster().get("unreachable"):
            raise OSError(words)

    def nthreads(self):
        return _cluster()["threads"]

    def submit(self, function, *args, pure, retries, workers=None, resources=None):
        if resources:
            with open(os.environ["FAKE_DASK"] + ".asked", "a") as file:
                file.write(json.dumps(resources) + "\n")
        future = Future()

        def run():
            try:
                future.set_result(_cluster().get("says") or function(*args))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def close(self, timeout):
        pass
