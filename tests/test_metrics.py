"""What Prometheus scrapes of servers and of a program's farms."""

import gc
import re
import shutil
import subprocess
import sys
import threading

import pytest
from server.processes import DEADLINE
from server.serving import KEY, Serving
from test_top import document

from farm_executor import FarmExecutor, cli, metrics
from farm_executor.observe.exposition import CAUSES, OF_FARMS, OF_SERVERS, ServerCollector, exposition
from farm_executor.observe.model import Server

prometheus = pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")


def known(status, name="hostA:11111"):
    server = Server(name)
    server.take(status, 1.0)
    return server


def values(text):
    """Every sample, by its name and labels."""
    from prometheus_client.parser import text_string_to_metric_families

    families = list(text_string_to_metric_families(text.decode()))
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def gate(path):
    with open(path) as file:
        return file.read()


def test_servers_tell_what_they_have_counted():
    down = Server("hostB:11111")
    down.lose("refused")
    status = document(tasks=70, busy=12.5)
    found = values(exposition(ServerCollector(lambda: [known(status), down, Server("hostC:1")])))

    mine = ("server", "hostA:11111")
    assert found["farm_server_up", mine] == 1
    assert [found["farm_server_up", ("server", name)] for name in ("hostB:11111", "hostC:1")] == [0, 0]
    assert found["farm_server_tasks_begun_total", mine] == status.totals.tasks_begun
    assert found["farm_server_busy_seconds_total", mine] == 12.5
    assert found["farm_server_workers", mine, ("state", "busy")] == 5
    assert found["farm_server_workers", mine, ("state", "starting")] == 0
    assert found["farm_server_worker_memory_bytes", mine] == 10 * 120 * 1024 * 1024
    assert found["farm_server_start_time_seconds", mine] == status.now - status.seconds
    assert {key[1][1] for key in found if key[0] == "farm_server_workers_ended_total"} == set(CAUSES)
    assert not [key for key in found if key[0] != "farm_server_up" and mine not in key]


def test_no_label_has_a_value_for_each_process_function_or_client():
    labels = {label for family in (*OF_SERVERS, *OF_FARMS) for label in family.labels}

    assert labels == {"version", "python", "host", "state", "cause", "outcome"}


def test_what_a_peer_says_cannot_forge_a_sample():
    evil = 'x"} 1\nfarm_server_up{server="forged"} 1\n#\\'
    found = values(exposition(ServerCollector(lambda: [known(document(host=evil), evil)])))

    assert ("farm_server_up", ("server", "forged")) not in found
    assert found["farm_server_up", ("server", evil)] == 1


def test_a_farm_tells_what_has_become_of_its_calls(farm_of_two):
    farm, collector = farm_of_two
    before = values(exposition(collector))
    mine = ("farm", "gridsearch")
    assert before["farm_client_tasks_submitted_total", mine] == 0

    list(farm.map(abs, range(500)))
    farm.submit(abs, None).exception(DEADLINE)
    found = values(exposition(collector))

    assert found["farm_client_tasks_submitted_total", mine] == 501
    assert found["farm_client_tasks_settled_total", mine, ("outcome", "succeeded")] == 500
    assert found["farm_client_tasks_settled_total", mine, ("outcome", "failed")] == 1
    assert found["farm_client_tasks", mine, ("state", "queued")] == 0
    assert found["farm_client_workers", mine] == 2
    assert found["farm_client_servers", mine, ("state", "up")] == 1


@pytest.fixture
def farm_of_two():
    with FarmExecutor(2, name="gridsearch") as farm:
        yield farm, metrics.collector(farm)


def test_a_registry_of_the_programs_takes_a_collector(farm_of_two):
    registry = prometheus.CollectorRegistry()
    registry.register(farm_of_two[1])

    assert registry.get_sample_value("farm_client_tasks_submitted_total", {"farm": "gridsearch"}) == 0


def test_a_collector_does_not_keep_a_farm():
    farm = FarmExecutor(1, name="gone")
    collector = metrics.collector(farm, FarmExecutor(1, name="there"))
    del farm
    gc.collect()

    assert b"gone" not in exposition(collector)


def test_it_is_scraped_while_tasks_run(tmp_path):
    import os

    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    with FarmExecutor(1, name="busy") as farm:
        waits = farm.submit(gate, fifo)
        scraped = []
        thread = threading.Thread(target=lambda: scraped.append(exposition(metrics.collector(farm))))
        thread.start()
        thread.join(DEADLINE)
        with open(fifo, "w") as file:
            file.write("over")
        assert waits.result(DEADLINE) == "over"

    (text,) = scraped
    assert sum(value for key, value in values(text).items() if key[0] == "farm_client_tasks") == 1


@pytest.mark.parametrize(
    ("farms", "error"),
    [
        ((), ValueError),
        ((None,), TypeError),
        (("hostA:11111",), TypeError),
        ((FarmExecutor(1, name="same"), FarmExecutor(1, name="same")), ValueError),
    ],
)
def test_what_is_no_farm_is_refused(farms, error):
    with pytest.raises(error):
        metrics.collector(*farms)


def test_without_prometheus_client_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    with pytest.raises(ModuleNotFoundError, match=r"farm_executor\[metrics\]"):
        metrics.collector(FarmExecutor(1))


def test_the_command_prints_what_servers_say(capsys, tmp_path, monkeypatch):
    key_file = tmp_path / "key"
    key_file.write_bytes(KEY)
    key_file.chmod(0o600)
    with Serving() as serving:
        assert cli.main(["status", "--metrics", "--key-file", str(key_file), str(serving.address)]) == 0
        found = values(capsys.readouterr().out.encode())
        assert found["farm_server_up", ("server", str(serving.address))] == 1

    assert cli.main(["status", "--metrics", "--key-file", str(key_file), str(serving.address)]) == 1
    assert values(capsys.readouterr().out.encode())["farm_server_up", ("server", str(serving.address))] == 0

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert cli.main(["status", "--metrics", "--key-file", str(key_file), str(serving.address)]) == 2
    assert "farm_executor[metrics]" in capsys.readouterr().err


def test_openmetrics_parses_it_too(farm_of_two):
    from prometheus_client.openmetrics.exposition import generate_latest
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    registry = prometheus.CollectorRegistry()
    registry.register(farm_of_two[1])
    registry.register(ServerCollector(lambda: [known(document())]))

    assert len(list(text_string_to_metric_families(generate_latest(registry).decode()))) > 15


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool, of Debian's package prometheus, is not here"
)
def test_promtool_finds_nothing_to_say(farm_of_two):
    text = exposition(farm_of_two[1], ServerCollector(lambda: [known(document())]))
    said = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert (said.returncode, said.stdout, said.stderr) == (0, b"", b"")

    wrong = b"# HELP farm_latency_ms Wrong.\n# TYPE farm_latency_ms gauge\nfarm_latency_ms 1\n"
    assert subprocess.run(["promtool", "check", "metrics"], input=wrong, capture_output=True).returncode == 3


def test_the_dashboard_for_grafana_names_only_what_there_is():
    import json
    from pathlib import Path

    board = json.loads(Path(__file__).parents[1].joinpath("docs/examples/grafana.json").read_text("utf-8"))
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    named = set(re.findall(r"\bfarm_\w+", " ".join(expressions)))
    there = {family.name + ("_total" if family.kind == "counter" else "") for family in (*OF_SERVERS, *OF_FARMS)}

    assert expressions
    assert named <= there | {"farm_server_up"}
