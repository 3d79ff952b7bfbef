"""What an interactive session shows of an executor and of futures."""

import re
import threading
from functools import partial
from html.parser import HTMLParser

import pytest
from server.processes import DEADLINE

from farm_executor import FarmExecutor, FarmStatistics, ServerStatistics, WorkerStatistics, current_task, lfarm
from farm_executor.client.notebook import MAX_SERVERS, MAX_WORKERS, table
from farm_executor.core.text import name_of
from farm_executor.data.blocks import run_block
from farm_executor.lfarm.cognate import _map_part
from farm_executor.lfarm.tasks import call_pickled, sendable


class Seen(HTMLParser):
    """The tags and the text of a piece of HTML; every tag must be closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def numbers_of(server, workers, **counts):
    made = tuple(WorkerStatistics(slot, 100 + slot, 2, 1.5, slot % 2) for slot in range(workers))
    return FarmStatistics(state="open", servers=(ServerStatistics(server, True, made, ""),), **counts)


def test_a_table_has_a_row_for_each_server_and_a_cell_for_each_worker():
    seen = Seen(table("FarmExecutor", numbers_of("hostA:11111", 4, running=2, failed=1), "http://127.0.0.1:8787/"))

    assert seen.tags.count("tr") == 2
    assert seen.tags.count("span") == 4
    assert "hostA:11111" in seen.text
    assert "2 of 4 busy" in seen.text
    assert "2 running, 1 failed" in seen.text
    assert "8" in seen.text
    assert "dashboard" in seen.text


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "&lt;b&gt;"])
def test_what_others_have_written_stays_text(evil):
    away = ServerStatistics(evil, False, (), evil)
    seen = Seen(table(evil, FarmStatistics(state=evil, servers=(away,)), evil))

    assert not {"script", "img"} & set(seen.tags)
    assert seen.text.count(evil) == 4


def test_a_table_of_a_large_farm_is_cut():
    many = tuple(numbers_of(f"host{n}:1", 200).servers[0] for n in range(300))
    text = table("FarmExecutor", FarmStatistics(state="open", servers=many))

    assert f"and {300 - MAX_SERVERS} more servers" in Seen(text).text
    assert text.count("<span") == MAX_SERVERS * MAX_WORKERS


def test_a_notebook_shows_a_farm_without_starting_it(farm):
    assert "new" in Seen(farm._repr_html_()).text
    assert farm.statistics().state == "new"

    assert farm.submit(abs, -1).result(DEADLINE) == 1
    assert "1 succeeded" in Seen(farm._repr_html_()).text

    farm.shutdown()
    assert "shut down" in Seen(farm._repr_html_()).text


def _report_and_wait(path):
    current_task().report(40, 100, "folding <b>")
    with open(path) as file:
        return file.read()


def test_a_future_tells_its_function_its_worker_and_how_far_it_is(tmp_path):
    import os

    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    reported = threading.Event()
    with FarmExecutor(1) as farm:
        running = farm.submit(_report_and_wait, fifo)
        running.add_progress_callback(lambda future: reported.set())
        waiting = farm.submit(partial(abs, -1))
        assert reported.wait(DEADLINE)

        (server,) = farm.statistics().servers
        shown = repr(running)
        assert "state=running _report_and_wait on worker pid " in shown
        assert str(server.workers[0].pid) in shown
        assert shown.endswith(" 40 of 100, folding <b>>")
        assert re.search(r"state=(pending|running) abs", repr(waiting))

        with open(fifo, "w") as file:
            file.write("over")
        assert running.result(DEADLINE) == "over"
        assert "state=finished returned str" in repr(running)
        assert "worker" not in repr(running)


def _named():
    def inner():
        pass

    return inner


class Callable:
    def __call__(self):
        pass


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (abs, "abs"),
        (partial(partial(abs), -1), "abs"),
        (partial(run_block, abs), "abs"),
        (partial(run_block, partial(_named, 1)), "_named"),
        (_named(), "inner"),
        (sendable(lfarm.deftask(_named)), "_named"),
        (sendable("package.module:function"), "package.module:function"),
        (partial(call_pickled, sendable("module:function")), "module:function"),
        (partial(_map_part, abs), "abs"),
        (lambda: None, "<lambda>"),
        ("".join, "str.join"),
        (Callable(), "Callable"),
        (type("a\x1b]0;b", (), {}), "a?]0;b"),
    ],
)
def test_a_function_is_called_by_its_name(fn, name):
    assert name_of(fn) == name
