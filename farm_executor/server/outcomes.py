"""The outcomes of tasks as a worker keeps and sends them.

This module owns their form. It must not know when they are sent, nor whether they are sent again.
"""

from __future__ import annotations

from typing import Any

from farm_executor.core.batches import encode_result, encode_results, encode_results_together, fit_together
from farm_executor.core.frames import Buffer
from farm_executor.data import payload
from farm_executor.server.keeping import kept

__all__ = ["Outcome", "copied", "encode_outcomes"]

Outcome = tuple[Any, bool | None, float]
"""A payload, whether it is a failure, and the seconds the task took; or a plain value, None, and the seconds."""


def encode_outcomes(seq: int, outcomes: list[Outcome]) -> list[Buffer]:
    """Encode the outcomes of the tasks numbered from ``seq`` on."""
    if len(outcomes) == 1:  # of a call whose result is awaited, which must not wait for the general code
        ((data, error, seconds),) = outcomes
        data = payload.dumps(data) if error is None else data
        return encode_result(seq, data, int(seconds * 1e6), error=bool(error))
    values, errors, times = zip(*outcomes, strict=True)
    busy_us = int(sum(times) * 1e6)
    if errors.count(None) == len(errors):
        pickle = payload.dumps_together(list(values))
        if fit_together(len(outcomes), pickle):
            return encode_results_together(seq, len(outcomes), pickle, busy_us)
    pickled = [(payload.dumps(data), False) if error is None else (data, error) for data, error, _ in outcomes]
    return encode_results(seq, pickled, busy_us)


def copied(outcome: Outcome) -> Outcome:
    """Return the same outcome, in memory that no task can write to."""
    data, error, seconds = outcome
    # A plain value, or a payload without buffers, has no memory that a task could write to.
    return outcome if error is None or len(data) == 1 else (kept(data), error, seconds)
