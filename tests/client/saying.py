"""All kinds of what tasks say, in one go: for each of the ways by which a program and its servers are connected."""

import logging

from client import async_tasks, context_tasks, current_tasks, log_tasks, output_tasks, progress_tasks, stream_tasks
from contract.gate import DEADLINE

CONTEXT = [context_tasks.user]
"""What the farm has to have as its ``context``."""


def check(farm, lines, caplog):
    """Check that all of it comes from tasks of a farm or view, whose ``output`` appends to these lines."""
    before = len(lines)
    future = farm.submit(output_tasks.say, "hello")
    future.result(DEADLINE)
    assert (future.output, [line.text for line in lines[before:]]) == ("hello\n", ["hello"])
    farm.submit(output_tasks.say_many, 2000, 100).result(DEADLINE)
    assert [line.text.rstrip(".") for line in lines[before + 1 :]] == [f"line {number} " for number in range(2000)]
    with caplog.at_level(logging.INFO, "tasks.of.tests"):
        farm.submit(log_tasks.log, logging.INFO, "logged").result(DEADLINE)
    assert "logged" in caplog.messages
    future = farm.submit(progress_tasks.report, 1, 2, "half")
    future.result(DEADLINE)
    assert future.progress == (1, 2, "half")
    assert list(farm.stream(stream_tasks.count, 2000)) == list(range(2000))
    with farm.stream(stream_tasks.count, 10**9) as stream:
        assert next(stream) == 0
    assert stream.future.result(DEADLINE) is None
    assert farm.submit(async_tasks.add, 1).result(DEADLINE) == 2
    token = context_tasks.user.set("me")
    assert farm.submit(context_tasks.look_async).result(DEADLINE)[0] == "me"
    context_tasks.user.reset(token)
    assert farm.with_options(category="c").submit(current_tasks.look).result(DEADLINE)[1:] == (1, "c", False)
