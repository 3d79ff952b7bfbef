"""What tasks say, and what that costs: output bound to futures, floods, cuts, streams, and calls that say nothing.

Run it as ``python tests/bench/said.py``; ``--quick`` takes a tenth of the work. With ``--before PATH``, another
checkout of the project, round trips and floods of both are measured in turns, each client a process of its own.
"""

import argparse
import io
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

ARRAY = 8 * 1024 * 1024


def say(number: int) -> int:
    print(f"task {number}")
    return number


def say_lines(count: int, pause: float = 0.0) -> int:
    for number in range(count):
        print(f"line {number}", flush=True)
        if pause:
            time.sleep(pause)
    return count


def flood(size: int) -> int:
    rest = "x" * 90
    for number in range(size // 100):
        print(f"{number:9}{rest}")
    return size


def count(n: int) -> Any:
    yield from range(n)


def arrays(n: int) -> Any:
    import numpy as np

    for number in range(n):
        yield np.full(ARRAY, number % 256, np.uint8)


def array(number: int) -> Any:
    import numpy as np

    return np.full(ARRAY, number % 256, np.uint8)


def row(title: str, figure: str) -> None:
    print(f"{title:<58} {figure}", file=sys.__stdout__, flush=True)


def bound_output(address: str, tasks: int) -> None:
    from farm_executor import FarmExecutor

    wrong = missing = 0
    with FarmExecutor(address, output=lambda line: None) as farm:
        for _ in range(0, tasks, 1000):
            for future in [farm.submit(say, number) for number in range(1000)]:
                own = f"task {future.result()}\n"
                missing += future.output == ""
                wrong += future.output not in ("", own)
    row(f"printing tasks with output not their own, with none, of {tasks}", f"{wrong} {missing}")


def overtaken(address: str, tasks: int) -> None:
    """Count results that come before what their task has written has been shown."""
    from farm_executor import FarmExecutor

    shown: set[str] = set()
    late = 0
    with FarmExecutor(address, output=lambda line: shown.add(line.text)) as farm:
        for number in range(tasks):
            late += f"task {farm.submit(say, number).result()}" not in shown
    row(f"results that overtook their output, of {tasks}", str(late))


def much_output(address: str, size: int) -> None:
    from farm_executor import FarmExecutor

    came, lines, astray, quiet = 0, 0, 0, 0.0

    def take(line: Any) -> None:
        nonlocal came, lines, astray
        came += len(line.text) + 1
        astray += not line.text.startswith(f"{lines:9}x")
        lines += 1

    with FarmExecutor(address, output=take) as farm:
        began = time.perf_counter()
        future = farm.submit(flood, size)
        future.result()
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        farm.submit(abs, 1).result()
        quiet = time.perf_counter() - began
    figures = f"{came} {astray} {seconds:.1f} {quiet:.4f}"
    row(f"{size / 1e6:.0f} MB of prints: bytes, lines out of order, seconds, next call", figures)


UNREAD = """
import statistics, sys, time
from farm_executor import FarmExecutor
def flood():
    for _ in range(20_000):
        print("x" * 99)
with FarmExecutor(sys.argv[1]) as farm:
    farm.submit(abs, 1).result()
    print("floods", file=sys.stderr, flush=True)
    began = time.perf_counter()
    for future in [farm.submit(flood) for _ in range(4)]:
        future.result()
    took = time.perf_counter() - began
    trips = []
    for _ in range(200):
        began = time.perf_counter()
        farm.submit(abs, 1).result()
        trips.append(time.perf_counter() - began)
    print(took, statistics.median(trips), max(trips), file=sys.stderr, flush=True)
    sys.stdin.read()
"""


def unread_output(address: str) -> None:
    """Have a client print that nobody reads, beside another."""
    from farm_executor import FarmExecutor

    with FarmExecutor(address) as farm:
        alone = round_trips(farm, 200)
        client = subprocess.Popen(
            [sys.executable, "-c", UNREAD, address],
            env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert client.stderr is not None
            client.stderr.readline()
            beside = round_trips(farm, 200)
            took, median, longest = map(float, client.stderr.readline().split())
        finally:
            client.kill()
            client.communicate()
    row("of a client whose output nobody reads: 4 tasks of 2 MB, seconds", f"{took:.1f}")
    row("its calls after that, median and longest, ms", f"{median * 1e3:.2f} {longest * 1e3:.2f}")
    text = f"{statistics.median(beside) * 1e3:.2f} {max(beside) * 1e3:.2f}"
    row("another's calls meanwhile, the same", f"{text} (alone {statistics.median(alone) * 1e3:.2f})")


def round_trips(farm: Any, times: int) -> list[float]:
    trips = []
    for _ in range(times):
        began = time.perf_counter()
        farm.submit(abs, 1).result()
        trips.append(time.perf_counter() - began)
    return trips


def lines_over_cuts(address: str, lines: int) -> None:
    from faults.proxy import Proxy

    from farm_executor import FarmExecutor

    seen: list[str] = []
    with (
        Proxy(address) as proxy,
        FarmExecutor(proxy.address, heartbeat=0.2, output=lambda line: seen.append(line.text)) as farm,
    ):
        future = farm.submit(say_lines, lines, 0.001)
        for _ in range(3):
            time.sleep(lines * 0.00025)
            proxy.cut()
        right = future.result() == lines
    said = sum(text.endswith("bytes lost]") for text in seen)
    came = sum(text.startswith("line ") for text in seen)
    row(f"{lines} lines over three cuts: came, gaps said, result right", f"{came} {said} {right}")


def streams(address: str, items: int, blocks: int) -> None:
    from farm_executor import FarmExecutor

    with FarmExecutor(address, max_workers=1) as farm:
        farm.submit(array, 1).result()
        best = 0.0
        for _ in range(3):
            began = time.perf_counter()
            came = sum(1 for _ in farm.stream(count, items))
            best = max(best, came / (time.perf_counter() - began))
        row("stream of ints, items a second, best of 3", f"{best:,.0f}")
        streamed, mapped = [], []
        for _ in range(8):
            began = time.perf_counter()
            came = sum(1 for _ in farm.stream(arrays, blocks))
            middle = time.perf_counter()
            came -= sum(1 for _ in farm.map(array, range(blocks), buffersize=4))
            streamed.append(middle - began)
            mapped.append(time.perf_counter() - middle)
            assert not came
        median = statistics.median(theirs / mine for mine, theirs in zip(streamed, mapped, strict=True))
        figures = f"{median:.2f}, of the bests {min(mapped) / min(streamed):.2f}"
        row("stream of 8 MiB arrays, rate relative to map's, median of 8", figures)


# -- calls that say nothing, in turns -----------------------------------------------------------------------------

CLIENT = """
import sys, time, statistics
from farm_executor import FarmExecutor, start_server
served, options = sys.argv[1] == "served", eval(sys.argv[2])
server = start_server("127.0.0.1", 0, background=True, workers=1) if served else None
farm = FarmExecutor(server.address if served else None, max_workers=1, **options)
farm.submit(abs, 1).result()
for line in sys.stdin:
    trips = []
    cpu = time.process_time()
    for _ in range(300):
        began = time.perf_counter()
        farm.submit(abs, 1).result()
        trips.append(time.perf_counter() - began)
    trip_cpu = time.process_time() - cpu
    began, cpu = time.perf_counter(), time.process_time()
    for future in [farm.submit(abs, n) for n in range(20000)]:
        future.result()
    flood, flood_cpu = time.perf_counter() - began, time.process_time() - cpu
    print(statistics.median(trips), flood, trip_cpu, flood_cpu, file=sys.stderr, flush=True)
farm.shutdown()
if server is not None:
    server.end()
"""


def in_turns(before: Path, where: str, rounds: int) -> None:
    unused = {"output": "server", "logs": "server"}
    forward = {"output": "forward"}
    kinds = {
        "before": (before, {"output": "server"}),
        "unused": (TESTS.parent, unused),
        "before, forwarding": (before, forward),
        "forwarding": (TESTS.parent, forward),
    }
    clients = {}
    for name, (path, options) in kinds.items():
        clients[name] = subprocess.Popen(
            [sys.executable, "-c", CLIENT, where, repr(options)],
            env={**os.environ, "PYTHONPATH": str(path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    figures: dict[str, list[tuple[float, ...]]] = {name: [] for name in kinds}
    for _ in range(rounds + 1):
        for name in random.sample(list(kinds), len(kinds)):
            process = clients[name]
            assert process.stdin is not None
            assert process.stderr is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            figures[name].append(tuple(map(float, process.stderr.readline().split())))
    for process in clients.values():
        process.communicate()
    for name, base in (("unused", "before"), ("forwarding", "before"), ("before, forwarding", "before")):
        for place, what in enumerate(("round trip", "flood", "round trip's CPU", "flood's CPU")):
            pairs = zip(figures[name][1:], figures[base][1:], strict=True)
            ratios = [mine[place] / theirs[place] for mine, theirs in pairs]
            low, _, high = statistics.quantiles(ratios, n=4)
            text = f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"
            row(f"{where}, {what}, {name} / {base}, paired median (quartiles)", text)


def main() -> None:
    """Measure, and print a line for each figure as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--before", type=Path, help="a checkout to compare calls that say nothing with")
    parser.add_argument("--rounds", type=int, default=25, help="of that comparison")
    parser.add_argument("--only", default="", help="run what has this in its name")
    choice = parser.parse_args()
    share = 10 if choice.quick else 1
    from farm_executor import start_server

    deeds: list[tuple[str, Callable[[str], None]]] = [
        ("bound", lambda address: bound_output(address, 72_000 // share)),
        ("overtaken", lambda address: overtaken(address, 2_000 // share)),
        ("much", lambda address: much_output(address, 100_000_000 // share)),
        ("unread", unread_output),
        ("cuts", lambda address: lines_over_cuts(address, 3_000)),
        ("streams", lambda address: streams(address, 1_000_000 // share, 200 // share)),
    ]
    with start_server("127.0.0.1", 0, background=True, workers=2) as server:
        for name, deed in deeds:
            if choice.only in name:
                with redirect_stdout(io.StringIO()):
                    deed(server.address)
    if choice.before is not None:
        for where in ("embedded", "served"):
            in_turns(choice.before, where, choice.rounds)


if __name__ == "__main__":
    main()
