"""The promises under faults, as figures: what was promised, what was measured, whether it was met.

``nox -s faults`` runs all of it; with ``-- --short`` as long as one waits for it at a desk. Times depend on the
machine and its load, so no test asserts them: here is where they are looked at.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from faults import crowds, cuts, losses
from faults.promises import Verdict
from faults.soak import Report, soak
from server.processes import resident_bytes
from server.serving import KEY, Serving

MB = 1 << 20
GROWTH = 8 * MB  # of memory in a soak that still counts as flat: notes of the soak, and what allocators keep


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    figure: str
    target: str
    measured: str
    met: bool


def _numbers(verdict: Verdict) -> str:
    counts = {kind: len(getattr(verdict, kind)) for kind in ("lost", "wrong", "hung", "unrun", "twice")}
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def _leftovers(verdict: Verdict) -> str:
    return f"{len(verdict.given_up)} given up with max_attempts=1, {len(verdict.again)} run again"


def _soak(short: bool, seed: str) -> Iterator[Figure]:
    """Of everything that can fail."""
    count, seconds = (6_000, 40.0) if short else (100_000, 600.0)
    report = soak(count, seconds, seed)
    yield _what_came_of(
        report, "random faults", "0 lost, 0 wrong, 0 hung; 0 run twice with max_attempts=1", workers_live=False
    )
    yield Figure("soak: descriptors, threads, processes, memory", "flat", _growth(report), _is_flat(report))


def _networks(short: bool, seed: str) -> Iterator[Figure]:
    """A soak in which only the ways to workers fail."""
    count, seconds = (3_000, 20.0) if short else (30_000, 180.0)
    report = soak(count, seconds, seed, workers_live=True)
    target = "0 lost, 0 wrong, 0 hung; 0 run twice, whatever max_attempts"
    yield _what_came_of(report, "random faults of networks alone", target, workers_live=True)


def _what_came_of(report: Report, what: str, target: str, *, workers_live: bool) -> Figure:
    broken = report.verdict.broken(workers_lived=workers_live)
    _tell(broken, report.faults, report.alarms)
    return Figure(
        f"{sum(report.faults.values())} {what} in a soak of {report.seconds:.0f} s, {report.tasks} tasks",
        target,
        f"{_numbers(report.verdict)}; {_leftovers(report.verdict)}",
        not broken and report.verdict.settled == report.tasks and not report.alarms,
    )


def _growth(report: Report) -> str:
    early, late = report.early, report.late
    return (
        f"client: descriptors {early.descriptors} to {late.descriptors}, "
        f"threads {early.threads} to {late.threads}, "
        f"memory {early.bytes / MB:.0f} to {late.bytes / MB:.0f} MB; "
        f"servers: descriptors {early.server_descriptors} to {late.server_descriptors}, "
        f"memory {early.server_bytes / MB:.0f} to {late.server_bytes / MB:.0f} MB; "
        f"left behind: {', '.join(report.left_behind) or 'nothing'}"
    )


def _is_flat(report: Report) -> bool:
    early, late = report.early, report.late
    return (
        late.descriptors <= early.descriptors + 1
        and late.threads <= early.threads
        and late.bytes <= early.bytes + GROWTH
        and late.server_descriptors <= early.server_descriptors + 1
        and late.server_bytes <= early.server_bytes + GROWTH
        and not report.left_behind
    )


def _cuts(short: bool, seed: str) -> Iterator[Figure]:
    verdicts, reached, broken = Verdict(), 0, {}

    def note(played: cuts.Played) -> None:
        nonlocal reached
        reached += played.reached
        for kind in asdict(verdicts):
            setattr(verdicts, kind, getattr(verdicts, kind) + getattr(played.verdict, kind))
        if bad := played.verdict.broken(workers_lived=True):
            broken[played.case] = bad

    with Serving(before="import faults.tasks") as serving:
        proxy, _ = cuts.play_uncut(serving.address, once=False)
        cases = cuts.all_cuts(proxy)[:: 41 if short else 1]
        cuts.play_each(serving.address, cases, note)
    _tell(broken)
    yield Figure(
        f"a connection cut at {'some offsets' if short else 'every byte offset'} of a scripted exchange "
        f"({len(cases)} runs, {reached} of them cut)",
        "0 lost, 0 hung, 0 run twice while the worker lives",
        f"{_numbers(verdicts)}; {_leftovers(verdicts)}",
        not broken,
    )


def _strangers(short: bool, seed: str) -> Iterator[Figure]:
    half_open, passing = (400, 2_000) if short else (1_000, 10_000)
    with Serving(before="import faults.tasks") as serving:
        before = resident_bytes(serving.pid)
        with crowds.strangers(crowds.HALF_OPEN, serving.address, half_open) as process:
            times = crowds.seconds_while(process, serving.address, KEY)
            times += [crowds.first_result_seconds(serving.address, KEY) for _ in range(20)]
        with crowds.strangers(crowds.PASSING, serving.address, passing) as process:
            times += crowds.seconds_while(process, serving.address, KEY)
        grown = resident_bytes(serving.pid) - before
    yield Figure(
        f"{half_open} half-open connections and {passing} connects of strangers",
        "a real client still served within a second",
        f"{len(times)} clients, from nothing to a result: median {sorted(times)[len(times) // 2]:.3f} s, "
        f"longest {max(times):.3f} s; the server's memory grew by {grown / MB:.1f} MB",
        max(times) <= 1.0 and grown < 16 * MB,
    )


def _neighbours(short: bool, seed: str) -> Iterator[Figure]:
    clients, calls = (6, 100) if short else (16, 500)
    with Serving(before="import faults.tasks") as serving:
        found = crowds.neighbours(serving.address, KEY, clients, calls)
    _tell({"wrong": found.wrong} if found.wrong else {})
    yield Figure(
        f"{clients} clients at once on one server, one of them hostile to its own workers",
        "others unaffected",
        f"{found.results} of {(clients - 1) * calls} results right, {found.losses} workers lost by others, "
        f"{found.deaths} by the hostile one",
        not found.wrong and not found.losses and found.deaths > 0,
    )


def _killed_worker(short: bool, seed: str) -> Iterator[Figure]:
    rounds = 1 if short else 7
    found = losses.killed_worker(rounds)
    yield Figure(
        "a worker killed mid-run of 100 × 50 ms",
        "every result, ≤ 1.1 × the time without",
        f"{2 * rounds - found.wrong} of {2 * rounds} runs right, {found.ratio:.3f} × (medians of {rounds})",
        not found.wrong and found.ratio <= 1.1,
    )


def _outages(short: bool, seed: str) -> Iterator[Figure]:
    seconds = 2.0 if short else 5.0
    ways: list[tuple[str, Callable[[float, float], losses.Outage]]] = [("packets swallowed", losses.proxy_outage)]
    if reason := losses.why_no_namespaces():
        print(f"not measured: a pulled cable, because {reason}", flush=True)
    else:
        ways.append(("cable pulled", losses.cable_outage))
    for (what, outage), heartbeat in itertools.product(ways, (5.0, 1.0, 0.3)):
        found = outage(seconds, heartbeat)
        broken = found.verdict.broken(workers_lived=True)
        _tell(broken)
        yield Figure(
            f"network gone for {seconds:.0f} s under load ({what}, heartbeat {heartbeat:g} s)",
            "resumed, no re-execution, ≤ 1 s after it is back",
            f"first result after {found.first_seconds:.2f} s, {_numbers(found.verdict)}, "
            f"{_leftovers(found.verdict)}, workers {'kept' if found.workers_kept else 'replaced'}",
            not broken and found.workers_kept and found.first_seconds <= 1.0,
        )


def _held_interpreter(short: bool, seed: str) -> Iterator[Figure]:
    seconds = 5 if short else 30
    found = losses.held_interpreter(seconds)
    yield Figure(
        f"task that holds the GIL for {seconds} s in C",
        "heartbeats unbroken, kill works",
        f"its worker {'lived on' if found.kept else 'was lost'}, {found.others} others ran meanwhile; "
        f"another one killed in {found.killed_seconds:.3f} s, replaced after {found.back_seconds:.3f} s",
        found.kept and found.others > 0 and not found.lost,
    )


EXPERIMENTS: dict[str, Callable[[bool, str], Iterator[Figure]]] = {
    "soak": _soak,
    "networks": _networks,
    "cuts": _cuts,
    "strangers": _strangers,
    "neighbours": _neighbours,
    "killed-worker": _killed_worker,
    "outages": _outages,
    "held-interpreter": _held_interpreter,
}


def _tell(*details: object) -> None:
    for detail in filter(None, details):
        print(f"    {detail!s:.4000}", flush=True)


def main() -> int:
    """Do what the command line says; 1 if a target was not met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="some two minutes instead of some twenty")
    parser.add_argument("--only", action="append", choices=EXPERIMENTS, help="only this one; may be repeated")
    parser.add_argument("--seed", default="1", help="of the soak's tasks and faults (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    logging.getLogger("farm_executor").addHandler(logging.NullHandler())  # it has much to say about all this
    done: list[Figure] = []
    for name in options.only or EXPERIMENTS:
        began = time.monotonic()
        for figure in EXPERIMENTS[name](options.short, options.seed):
            done.append(figure)
            print(f"{'met    ' if figure.met else 'NOT MET'}  {figure.figure}", flush=True)
            print(f"           target    {figure.target}\n           measured  {figure.measured}", flush=True)
        print(f"    {name}: {time.monotonic() - began:.0f} s", flush=True)
    counts = Counter(figure.met for figure in done)
    print(f"\n{counts[True]} of {len(done)} targets met; hostile bytes are `nox -s fuzz`'s")
    if options.json:
        machine = {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()}
        data = {"machine": machine, "short": options.short, "seed": options.seed}
        options.json.write_text(json.dumps({**data, "figures": [asdict(one) for one in done]}, indent=2))
    return 0 if all(figure.met for figure in done) else 1


if __name__ == "__main__":
    sys.exit(main())
