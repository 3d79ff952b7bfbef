"""A dashboard without a browser: who is let in, what is recorded, and that it ends."""

import asyncio
import gc
import http.client
import json
import os
import re
import subprocess
import sys
import time
import weakref
from urllib.parse import urlsplit

import pytest
from contract.gate import Gate
from contract.tasks import pass_gate
from hypothesis import given
from hypothesis import strategies as st
from server.processes import DEADLINE, wait_until
from server.serving import KEY, Serving

from farm_executor import AddressError, FarmExecutor, TaskTimeoutError, WorkerLostError, dashboard
from farm_executor.client.front import backing_of
from farm_executor.observe.series import Cursor, Series, digit, seconds

pytest.importorskip("starlette", reason="starlette is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")


class Asked:
    """One answer."""

    def __init__(self, url, path="/", method="GET", **headers):
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=DEADLINE)
        connection.putrequest(method, path, skip_host="host" in headers)
        for name, value in headers.items():
            for each in value if isinstance(value, list) else [value]:
                connection.putheader(name.replace("_", "-"), each)
        connection.endheaders()
        response = connection.getresponse()
        self.status, self.headers = response.status, dict(response.getheaders())
        self.body = response.read()
        connection.close()


def token_of(url):
    return url.partition("token=")[2]


def document_of(farm, cursor=Cursor()):
    return backing_of(farm).observer.document(cursor)[0]


def table_of(document, title):
    return next(table[2] for table in document["tables"] if table[0] == title)


@pytest.fixture(scope="module")
def page():
    with FarmExecutor(2, name="gridsearch") as farm:
        farm.dashboard()
        yield farm, farm.dashboard()


# -- who is let in ------------------------------------------------------------------------------------


def test_the_address_lets_a_browser_in_and_its_token_out_of_the_address(page):
    url = page[1]
    first = Asked(url, f"/?token={token_of(url)}")
    assert (first.status, first.headers["location"]) == (303, "./")
    cookie = first.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))

    second = Asked(url, "/", cookie=cookie.partition(";")[0])
    assert second.status == 200
    assert b"farm_executor" in second.body


def test_a_program_shows_its_token_as_a_bearer(page):
    url = page[1]
    answer = Asked(url, "/farm.json", authorization=f"Bearer {token_of(url)}")

    assert answer.status == 200
    assert json.loads(answer.body)["title"] == "gridsearch"


REFUSED = {
    "no token": (401, "/", {}),
    "no token for the stream": (401, "/events", {}),
    "no token for metrics": (401, "/metrics", {}),
    "a wrong token": (401, "/farm.json", {"authorization": "Bearer x"}),
    "a token that is not ASCII": (401, "/farm.json", {"authorization": "Bearer \xe9"}),
    "an empty token": (401, "/?token=", {}),
    "a token beside the page": (401, "/farm.json?token=TOKEN", {}),
    "another name": (421, "/farm.json", {"host": "evil.example:8787", "authorization": "Bearer TOKEN"}),
    "another name that ends alike": (421, "/", {"host": "127.0.0.1.evil.example"}),
    "no name": (421, "/farm.json", {"host": "", "authorization": "Bearer TOKEN"}),
    "two names": (400, "/farm.json", {"host": ["127.0.0.1", "evil.example"], "authorization": "Bearer TOKEN"}),
    "another site": (
        403,
        "/farm.json",
        {"authorization": "Bearer TOKEN", "sec_fetch_site": "cross-site", "sec_fetch_mode": "cors"},
    ),
    "a site beside it": (403, "/", {"authorization": "Bearer TOKEN", "sec_fetch_site": "same-site"}),
    "a path upwards": (404, "/static/../serving.py", {"authorization": "Bearer TOKEN"}),
    "a path upwards, encoded": (404, "/static/%2e%2e%2fserving.py", {"authorization": "Bearer TOKEN"}),
    "a framework's own page": (404, "/docs", {"authorization": "Bearer TOKEN"}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nobody_else_is_let_in(page, case):
    status, path, headers = REFUSED[case]
    token = token_of(page[1])
    given = {
        name: [each.replace("TOKEN", token) for each in (value if isinstance(value, list) else [value])]
        for name, value in headers.items()
    }
    # h11 refuses two hosts before the page sees them.
    answer = Asked(page[1], path.replace("TOKEN", token), **given)

    assert answer.status == status
    if status not in (400,):
        assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert token.encode() not in answer.body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_can_be_changed(page, method):
    answer = Asked(page[1], "/farm.json", method, authorization=f"Bearer {token_of(page[1])}")

    assert answer.status == 405


def test_every_answer_has_the_policy(page):
    headers = {"authorization": f"Bearer {token_of(page[1])}"}
    for path in ("/", "/static/farm.js", "/static/farm.css", "/static/icon.svg", "/farm.json", "/metrics", "/no"):
        answer = Asked(page[1], path, **headers)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_what_prometheus_scrapes_is_there_too(page):
    pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")
    answer = Asked(page[1], "/metrics", authorization=f"Bearer {token_of(page[1])}")

    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b'farm_client_tasks{farm="gridsearch",state="queued"} 0.0' in answer.body


def test_the_page_names_nothing_of_another_host():
    from importlib.resources import files

    folder = files("farm_executor.observe") / "static"
    for name in ("index.html", "farm.js", "farm.css", "icon.svg"):
        text = (folder / name).read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]|innerHTML|insertAdjacent|outerHTML|document\.write|eval\(", text), (
            name
        )
        assert " style=" not in text
        assert not re.search(r"\bon[a-z]+=\"", text)


@pytest.mark.parametrize(
    ("listen", "error"),
    [
        ("0.0.0.0:0", AddressError),
        ("192.0.2.7:8787", AddressError),
        ("unix:/tmp/page", AddressError),
        ("ssh://hostA", AddressError),
        ("127.0.0.1:99999", AddressError),
        ("", AddressError),
        (8787, TypeError),
        (None, TypeError),
    ],
)
def test_where_it_cannot_be_served_is_refused(listen, error, no_leaks):
    with FarmExecutor(1) as farm:
        with pytest.raises(error):
            farm.dashboard(listen)
        assert backing_of(farm).observer is None


def test_a_port_in_use_is_an_error(page):
    with FarmExecutor(1) as farm, pytest.raises(OSError):
        farm.dashboard(f"127.0.0.1:{urlsplit(page[1]).port}")


def test_after_shutdown_there_is_none():
    farm = FarmExecutor(1)
    farm.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        farm.dashboard()


@pytest.mark.parametrize("module", ["starlette", "uvicorn"])
def test_without_its_packages_the_error_names_the_extra(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with FarmExecutor(1) as farm, pytest.raises(ModuleNotFoundError, match=r"farm_executor\[dashboard\]"):
        farm.dashboard()


# -- what is recorded ---------------------------------------------------------------------------------


def fails(seed):
    print("folding", seed)
    raise ValueError("<script>alert(1)</script>")


def fails_at_seven(seed):
    if seed == 7:
        raise ValueError("seven")


def dies():
    os._exit(3)


def test_calls_are_counted_one_by_one_however_they_travel(no_leaks):
    with FarmExecutor(2) as farm:
        farm.dashboard()
        list(farm.map(abs, range(30_000)))
        assert farm.submit(len, "ab").result(DEADLINE) == 2
        document = document_of(farm)

    functions = {row[0]: row for row in table_of(document, "Functions")}
    assert functions["abs"][1] == 30_000
    assert functions["len"][1] == 1
    assert sum(piece[4] for piece in document["pieces"]["new"]) == 30_001
    assert all(piece[1] <= piece[2] for piece in document["pieces"]["new"])
    assert document["rows"] == sorted(document["rows"], key=document["rows"].index)


def test_a_failure_has_its_remote_traceback_and_the_end_of_its_output():
    with FarmExecutor(1, output=lambda line: None) as farm:
        farm.dashboard()
        farm.submit(fails, 3).exception(DEADLINE)
        (failure,) = document_of(farm)["failures"]["new"]

        assert (failure["function"], failure["end"], failure["type"]) == ("fails", "failed", "ValueError")
        assert failure["message"] == "<script>alert(1)</script>"
        assert "in fails" in failure["traceback"]
        assert "folding 3" in failure["output"]
        document = document_of(farm)
        assert [row[4] for row in table_of(document, "Functions")] == [{"bad": 1}]
        # The result is there before its piece.
        wait_until(lambda: [piece[6] for piece in document_of(farm)["pieces"]["new"]] == [1], "a piece that failed")


def test_an_item_of_a_block_that_fails_is_a_failure():
    with FarmExecutor(1) as farm:
        farm.dashboard()
        with pytest.raises(ValueError, match="seven"):
            list(farm.map(fails_at_seven, [0] * 2000 + [7] + [0] * 10))
        (failure,) = document_of(farm)["failures"]["new"]

    assert failure["message"] == "seven"
    assert failure["function"] == "fails_at_seven"


def test_a_flood_of_failures_costs_few_tracebacks():
    with FarmExecutor(2) as farm:
        farm.dashboard()
        for future in [farm.submit(fails, seed) for seed in range(300)]:
            future.exception(DEADLINE)
        document = document_of(farm)

    assert 20 <= len(document["failures"]["new"]) <= 100
    assert table_of(document, "Functions")[0][4] == {"bad": 300}


def test_what_is_lost_and_killed_is_a_failure():
    with FarmExecutor(1) as farm:
        farm.dashboard()
        assert isinstance(farm.with_options(max_attempts=1).submit(dies).exception(DEADLINE), WorkerLostError)
        late = farm.with_options(timeout=0.1).submit(time.sleep, 60)
        assert isinstance(late.exception(DEADLINE), TaskTimeoutError)
        ends = [failure["end"] for failure in document_of(farm)["failures"]["new"]]

    assert ends == ["lost", "killed"]


def test_a_task_that_runs_shows_while_it_does():
    # The gate within, so that it opens before the farm waits for its tasks, whatever fails here.
    with FarmExecutor(1) as farm, Gate() as gate:
        farm.dashboard()
        future = farm.submit(pass_gate, gate.address, "over")
        wait_until(lambda: document_of(farm)["running"], "the page")
        document = document_of(farm)
        ((row, since, number),) = document["running"]
        assert (document["names"][number], row) == ("pass_gate", 0)
        assert 0 <= since <= document["now"]
        assert document["tiles"][0][0] == "1 / 1"
        gate.open()
        assert future.result(DEADLINE) == "over"
        assert document_of(farm)["running"] == []


def test_maps_show_how_far_they_are_without_progress():
    with FarmExecutor(1) as farm, Gate() as gate:
        farm.dashboard()
        results = farm.map(pass_gate, [gate.address])
        (one,) = document_of(farm)["maps"]
        assert (one["label"], one["done"]) == ("pass_gate", 0)
        gate.open()
        assert list(results) == [None]
        told = []
        list(farm.map(abs, range(10), progress=lambda done, total: told.append((done, total))))
        wait_until(lambda: all(one["over"] for one in document_of(farm)["maps"]), "the page")
        maps = document_of(farm)["maps"]

    assert [(one["label"], one["done"], one["total"]) for one in maps] == [("abs", 10, 10), ("pass_gate", 1, 1)]
    assert told[-1] == (10, 10)


def test_a_callable_that_fails_does_not_end_what_the_page_shows(caplog):
    def wrong(done, total):
        raise OSError("no")

    with FarmExecutor(1) as farm:
        farm.dashboard()
        assert list(farm.map(abs, range(5), progress=wrong)) == [0, 1, 2, 3, 4]
        wait_until(lambda: document_of(farm)["maps"][0]["over"], "the page")
        assert document_of(farm)["maps"][0]["done"] == 5
    assert sum("progress cannot be shown" in record.message for record in caplog.records) == 1


def test_the_second_document_has_only_what_is_new():
    with FarmExecutor(1) as farm:
        farm.dashboard()
        recorder = backing_of(farm).observer
        for seed in range(60):
            farm.submit(fails, seed).exception(DEADLINE)
        first, cursor = recorder.document(Cursor())
        assert first["failures"]["first"] == 0
        second, _ = recorder.document(cursor)

    assert second["failures"]["new"] == []
    assert len(second["pieces"]["new"]) < len(first["pieces"]["new"])
    assert second["pieces"]["first"] + len(second["pieces"]["new"]) == len(first["pieces"]["new"])


def test_it_is_not_started_by_its_page():
    with FarmExecutor(1) as farm:
        farm.dashboard()
        document = document_of(farm)
        assert document["state"] == "not started"
        assert farm.statistics().state == "new"


def test_a_page_does_not_keep_an_executor(no_leaks):
    farm = FarmExecutor(1)
    url = farm.dashboard()
    gone = weakref.ref(backing_of(farm))
    del farm
    gc.collect()

    assert gone() is None
    with pytest.raises(OSError):
        Asked(url)


def test_it_ends_with_the_executor_also_while_a_browser_listens(no_leaks):
    with FarmExecutor(1) as farm:
        url = farm.dashboard()
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=DEADLINE)
        connection.request("GET", "/events", headers={"authorization": f"Bearer {token_of(url)}"})
        stream = connection.getresponse()
        assert stream.getheader("content-type").startswith("text/event-stream")
        assert stream.readline().startswith(b'data: {"started"')
    assert b"" in iter(stream.readline, None)
    connection.close()


PROGRAM = """\
from farm_executor import FarmExecutor
with FarmExecutor(1) as farm:
    print(farm.submit(len, "a").result())
"""


def run(where):
    environment = {**os.environ, "FARM_EXECUTOR_DASHBOARD": where}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def test_a_dashboard_is_wanted_by_the_environment():
    environment = {**os.environ, "FARM_EXECUTOR_DASHBOARD": "127.0.0.1:0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout == "1\n"
    assert re.fullmatch(r"farm_executor: dashboard at http://127\.0\.0\.1:\d+/\?token=[\w-]{32}\n", done.stderr)


def test_an_environment_that_wants_what_cannot_be_costs_a_warning():
    environment = {**os.environ, "FARM_EXECUTOR_DASHBOARD": "0.0.0.0:0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout == "1\n"
    assert "no dashboard listen=0.0.0.0:0" in done.stderr


# -- mounted -------------------------------------------------------------------------------------------


def call(app, path, root="", host="localhost", **headers):
    """Ask an application as a server would."""
    said = []
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "root_path": root,
        "query_string": b"",
        "headers": [(b"host", host.encode()), *((k.encode(), v.encode()) for k, v in headers.items())],
        "server": ("localhost", 80),
        "http_version": "1.1",
        "scheme": "http",
    }

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        said.append(message)

    asyncio.run(app(scope, receive, send))
    return said[0]["status"], b"".join(message.get("body", b"") for message in said[1:])


def test_it_is_mounted_into_another_application():
    from starlette.applications import Starlette
    from starlette.routing import Mount

    with FarmExecutor(1, name="mounted") as farm:
        farm.submit(abs, -1).result(DEADLINE)
        app = Starlette(routes=[Mount("/farm", dashboard.application(farm, hosts=["farm.example.org"]))])

        assert call(app, "/farm/", host="farm.example.org:443")[0] == 200
        assert call(app, "/farm/", host="localhost")[0] == 421
        status, body = call(app, "/farm/farm.json", host="farm.example.org")
        assert (status, json.loads(body)["title"]) == (200, "mounted")


def test_a_mounted_page_may_have_a_token():
    with FarmExecutor(1) as farm:
        app = dashboard.application(farm, token="0123456789abcdef")

        assert call(app, "/")[0] == 401
        assert call(app, "/", authorization="Bearer 0123456789abcdef")[0] == 200


@pytest.mark.parametrize(
    ("farm", "options", "error"),
    [
        (None, {}, TypeError),
        ("farm", {"token": "short"}, ValueError),
        ("farm", {"token": b"0123456789abcdef"}, TypeError),
        ("farm", {"hosts": "farm.example.org"}, TypeError),
        ("farm", {"hosts": [1]}, TypeError),
    ],
)
def test_what_cannot_be_mounted_is_refused(farm, options, error):
    with pytest.raises(error):
        dashboard.application(farm and FarmExecutor(1), **options)


# -- servers alone -------------------------------------------------------------------------------------


def test_the_command_shows_servers_and_that_one_has_gone(tmp_path):
    key_file = tmp_path / "key"
    key_file.write_bytes(KEY)
    key_file.chmod(0o600)
    with Serving() as serving:
        command = [sys.executable, "-m", "farm_executor", "dashboard", serving.address, "--listen", "127.0.0.1:0"]
        process = subprocess.Popen([*command, "--key-file", str(key_file)], stdout=subprocess.PIPE, text=True)
        try:
            url = process.stdout.readline().strip()

            def tiles():
                answer = Asked(url, "/farm.json", authorization=f"Bearer {token_of(url)}")
                return [tile[0] for tile in json.loads(answer.body)["tiles"]]

            wait_until(lambda: tiles()[0] == "1 / 1", "the page")
            with FarmExecutor(serving.address, key=KEY, name="<b>ada</b>") as farm:
                farm.submit(abs, -1).result(DEADLINE)
                wait_until(lambda: tiles()[1] == "0 / 2" or tiles()[1] == "1 / 2", "the page")
                wait_until(lambda: tiles()[4] == 1, "the page")
            serving.terminate()
            serving.wait()
            wait_until(lambda: tiles()[0] == "0 / 1", "the page")
        finally:
            process.terminate()
            process.wait(DEADLINE)
            process.stdout.close()


# -- series --------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 30), max_size=30), st.integers(1, 20))
def test_a_series_tells_what_is_new_and_what_is_left(steps, most):
    series, told, count = Series(most), 0, 0
    for step in steps:
        for _ in range(step):
            series.append(count)
            count += 1
        new, told_now = series.since(told)
        assert told_now == count
        assert new == list(range(max(told, count - most), count))
        told = told_now


@given(st.floats(0, 1e9))
def test_times_are_short(value):
    assert len(seconds(value)) <= 12


@given(st.floats(-10, 10))
def test_a_level_is_one_digit(fraction):
    assert len(digit(fraction)) == 1
