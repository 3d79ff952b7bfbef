"""What lfarm's tasks write and log comes out of the program, as a farm's does."""

import logging

from farm_executor import lfarm

KEY = b"the key of the lfarm suite's servers"


def say_it(text):
    print(text)


def log_it(text):
    logging.getLogger("of.lfarm").info(text)


def test_tasks_of_channels_and_parts_are_heard(addresses, no_leaks):
    lines = []
    with (
        lfarm.make_kernel(addresses, timeout=30, key=KEY, output=lines.append) as kernel,
        lfarm.use_kernel(kernel),
    ):
        channel = lfarm.make_channel()
        lfarm.submit_task(channel, say_it, "by a channel")
        lfarm.receive_result(channel)
        lfarm.pmap(say_it, ["one", "two", "three"])
    assert sorted(line.text for line in lines) == ["by a channel", "one", "three", "two"]
    assert {line.stream for line in lines} == {"stdout"}
    assert {line.server for line in lines} <= set(addresses)


def test_on_the_programs_own_output_it_has_its_worker_in_front(addresses, no_leaks, capsys):
    with lfarm.make_kernel(addresses[:1], timeout=30, key=KEY) as kernel, lfarm.use_kernel(kernel):
        lfarm.pmap(say_it, ["here"])
    assert capsys.readouterr().out == f"({addresses[0]}/0) here\n"


def test_the_server_keeps_it_if_told_to(addresses, no_leaks, capsys):
    with (
        lfarm.make_kernel(addresses[:1], timeout=30, key=KEY, output="server") as kernel,
        lfarm.use_kernel(kernel),
    ):
        lfarm.pmap(say_it, ["there"])
    assert "there" not in capsys.readouterr().out


def test_what_they_log_is_the_programs_to_handle(addresses, no_leaks, caplog):
    with (
        caplog.at_level(logging.INFO, "of.lfarm"),
        lfarm.make_kernel(addresses[:1], timeout=30, key=KEY) as kernel,
        lfarm.use_kernel(kernel),
    ):
        lfarm.pmap(log_it, ["logged"])
    assert [record.getMessage() for record in caplog.records if record.name == "of.lfarm"] == ["logged"]
