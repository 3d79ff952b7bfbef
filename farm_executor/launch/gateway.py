"""A child process of a program's that alone imports dask, and places servers beside the workers of a cluster.

It reads its configuration, a line of JSON, from standard input, and ends with it. What it says are lines of JSON on
standard output. It is a process of its own so that no thread, signal handler or exit function of the engine's gets
into the user's program.

This module owns what is said to the engine. It must not know how the servers are reached: they dial the program.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from typing import Any

LOOK_SECONDS = 1.0  # between looks at which workers the cluster has
ANSWER_SECONDS = 10.0  # for the scheduler

# This runs in the engine's worker, where farm_executor may be missing: so it is sent as it is written here. It
# holds one of the worker's threads until the server ends.
HOLD = """\
def hold(command, errand, mark):
    import base64, json, subprocess, sys
    process = subprocess.Popen([sys.executable, "-u", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(base64.b64decode(errand))
    process.stdin.flush()
    said = {}
    with process:
        for line in process.stdout:
            if line.startswith(mark.encode()):
                said.update(json.loads(line[len(mark):]))
    return said if "ready" in said or "error" in said else {"error": "it ended with " + str(process.returncode)}
"""


def say(**word: Any) -> None:
    """Tell the program something."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(word).encode() + b"\n")


def main() -> None:
    """Place servers until standard input ends."""
    config = json.loads(sys.stdin.buffer.readline())
    try:
        import distributed
    except ImportError as error:
        say(missing=str(error.name))
        return
    ended = threading.Event()
    threading.Thread(target=_await_end, args=(ended,), daemon=True).start()
    try:
        client = distributed.Client(config["scheduler"], timeout=ANSWER_SECONDS, set_as_default=False)
    except Exception as error:
        say(unreachable=f"{type(error).__name__}: {error}")
        return
    placing = Placing(client, config, distributed.utils.get_ip(config["host"]))
    try:
        while not ended.is_set():
            placing.look()
            ended.wait(LOOK_SECONDS)
    except Exception as error:
        say(unreachable=f"{type(error).__name__}: {error}")
    with contextlib.suppress(Exception):
        client.close(ANSWER_SECONDS)


def _await_end(ended: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    ended.set()
    threading.Event().wait(2 * ANSWER_SECONDS)  # whatever the engine still does, this process does not stay
    os._exit(0)


class Placing:
    """One server beside each worker of the cluster, as many as are wanted.

    Args:
        client: The engine's client.
        config: What the program wants.
        here: This machine's address, as the cluster sees it.
    """

    def __init__(self, client: Any, config: dict[str, Any], here: str) -> None:
        names: dict[str, Any] = {"__name__": "__main__"}  # so that it travels by value
        exec(HOLD, names)
        self._hold = names["hold"]
        self._client = client
        self._config = config
        self._here = here
        self._placed: dict[str, tuple[Any, int]] = {}  # by the worker's address: its future, the server's workers

    def look(self) -> None:
        """Place servers where there are none yet, and again where they have ended."""
        threads: dict[str, int] = self._client.nthreads()
        for worker, (future, _) in list(self._placed.items()):
            if worker not in threads:
                future.cancel()
                del self._placed[worker]
            elif future.done():
                del self._placed[worker]
                word = {"error": str(future.exception())} if future.status == "error" else future.result()
                say(ended=worker, **{name: word[name] for name in ("error", "missing") if name in word})
        for worker, count in threads.items():
            have = sum(workers for _, workers in self._placed.values())
            wanted = self._config["workers"] - have if self._config["workers"] else sys.maxsize
            if worker not in self._placed and wanted > 0:
                self._place(worker, min(self._config["per"] or count, wanted))
        say(threads=sum(threads.values()), servers=len(self._placed))

    def _place(self, worker: str, slots: int) -> None:
        import base64

        from farm_executor.launch.errand import COMMAND, errand

        name = worker.partition("://")[2]
        lines = errand(**self._config["job"], host=self._here, slots=slots, name=name)
        future = self._client.submit(
            self._hold,
            COMMAND,
            base64.b64encode(lines).decode(),
            self._config["job"]["mark"],
            workers=[worker],
            pure=False,
            retries=0,
        )
        self._placed[worker] = future, slots


if __name__ == "__main__":
    main()
