"""Spans of those who submit and of workers, joined across the wire."""

import json
import math
import os
import sys
import threading

import pytest
from server.processes import DEADLINE, wait_until

from farm_executor import (
    BroadcastError,
    FarmExecutor,
    TaskExecutionError,
    WorkerLostError,
    lfarm,
    start_server,
    telemetry,
)
from farm_executor.core import headers

pytest.importorskip("opentelemetry.sdk.trace", reason="OpenTelemetry's SDK is not installed")

from opentelemetry import trace  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402


@pytest.fixture(scope="module")
def exporter():
    """What is recorded here; a program sets its provider once."""
    provider = TracerProvider()
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def here(exporter):
    exporter.clear()
    return exporter


def start_sdk(folder):
    """Record in a worker, to a file in place of a collector."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class ToFile(SpanExporter):
        def export(self, spans):
            with open(os.path.join(folder, f"{os.getpid()}.jsonl"), "a") as file:
                for span in spans:
                    told = {
                        "name": span.name,
                        "trace": span.context.trace_id,
                        "parent": span.parent.span_id if span.parent else None,
                        "kind": span.kind.name,
                        "status": span.status.status_code.name,
                        "attributes": dict(span.attributes),
                        "events": [event.name for event in span.events],
                        "links": [link.context.span_id for link in span.links],
                    }
                    file.write(json.dumps(told) + "\n")
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(ToFile(), schedule_delay_millis=60_000, max_queue_size=100_000))
    trace.set_tracer_provider(provider)


def recorded(folder, items):
    """What workers have recorded, which is complete when they have ended: a client does not wait for a server's."""

    def read():
        # A worker may be in the middle of a line.
        written = [path.read_text().rpartition("\n")[0] for path in folder.iterdir()]
        spans = [json.loads(line) for text in written for line in text.splitlines()]
        return spans if sum(span["attributes"].get(headers.SPAN_ITEMS, 1) for span in spans) >= items else None

    spans = wait_until(read, f"{items} calls in spans")
    assert sum(span["attributes"].get(headers.SPAN_ITEMS, 1) for span in spans) == items
    return spans


def mine(exporter):
    return {span.context.span_id: span for span in exporter.get_finished_spans()}


def fails():
    raise ValueError("<no>")


@lfarm.deftask
def double(number):
    return 2 * number


def positive(number):
    return number > 0


def fails_at(seed):
    if seed == 1500:
        raise ValueError("no")
    return seed


def dies_once(path):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "again"
    from opentelemetry import trace

    trace.get_tracer_provider().force_flush()
    os._exit(3)


@pytest.fixture(params=["embedded", "served"])
def farm_of(request, tmp_path):
    """Makes a farm whose workers record to a folder."""
    folder = tmp_path / "spans"
    folder.mkdir()

    if request.param == "embedded":
        yield folder, lambda: FarmExecutor(2, initializer=start_sdk, initargs=(str(folder),))
    else:
        with start_server("127.0.0.1", 0, background=True, workers=2) as server:
            yield folder, lambda: FarmExecutor(server.address, initializer=start_sdk, initargs=(str(folder),))


def test_every_span_of_every_worker_arrives_and_has_its_parent_here(farm_of, here):
    folder, make = farm_of
    with make() as farm:
        view = telemetry.traced(farm)
        with trace.get_tracer("program").start_as_current_span("request") as request:
            future = view.submit(fails)
        assert isinstance(future.exception(DEADLINE), ValueError)
        assert [f.result(DEADLINE) for f in [view.submit(math.sqrt, 4.0) for _ in range(500)]] == [2.0] * 500
        assert farm.submit(math.sqrt, 9.0).result(DEADLINE) == 3.0  # not traced

    spans, theirs = mine(here), recorded(folder, 501)
    assert {span["parent"] for span in theirs} <= set(spans)
    assert all(spans[span["parent"]].context.trace_id == span["trace"] for span in theirs)
    assert {(span["name"], span["kind"]) for span in theirs} == {
        ("run fails", "CONSUMER"),
        ("run sqrt", "CONSUMER"),
    }
    (failed,) = [span for span in theirs if span["name"] == "run fails"]
    assert (failed["status"], failed["events"]) == ("ERROR", ["exception"])
    assert failed["attributes"][headers.SPAN_ERROR] == "ValueError"
    producer = spans[failed["parent"]]
    assert (producer.name, producer.kind.name, producer.status.status_code.name) == (
        "submit fails",
        "PRODUCER",
        "ERROR",
    )
    assert producer.parent.span_id == request.get_span_context().span_id


def test_a_block_is_one_span_and_so_is_a_map(farm_of, here):
    folder, make = farm_of
    with make() as farm:
        view = telemetry.traced(farm).with_options(priority=1)
        assert list(view.map(abs, range(3000))) == list(range(3000))

    theirs = recorded(folder, 3000)
    assert [(span.name, span.status.status_code.name) for span in mine(here).values()] == [("map abs", "UNSET")]
    assert len(theirs) < 1000
    assert {span["name"] for span in theirs} == {"run abs"}
    assert {span["parent"] for span in theirs} == set(mine(here))


def test_streams_and_broadcasts_have_spans(farm_of, here):
    folder, make = farm_of
    with make() as farm:
        view = telemetry.traced(farm)
        assert list(view.stream(range, 3)) == [0, 1, 2]
        assert view.broadcast(abs, -1) == [1, 1]
        with pytest.raises(BroadcastError):
            view.broadcast(fails)

    spans, theirs = mine(here), recorded(folder, 5)
    assert sorted((span.name, span.kind.name, span.status.status_code.name) for span in spans.values()) == [
        ("broadcast abs", "INTERNAL", "UNSET"),
        ("broadcast fails", "INTERNAL", "ERROR"),
        ("stream range", "PRODUCER", "UNSET"),
    ]
    parents = sorted((span["name"], spans[span["parent"]].name) for span in theirs)
    assert parents == [
        *[("run abs", "broadcast abs")] * 2,
        *[("run fails", "broadcast fails")] * 2,
        ("run range", "stream range"),
    ]


def test_a_kernels_tasks_have_spans_as_the_farms_own(farm_of, here):
    folder, make = farm_of
    with make() as farm:
        kernel = lfarm.make_kernel(telemetry.traced(farm))
        with lfarm.use_kernel(kernel), trace.get_tracer("program").start_as_current_span("request") as request:
            channel = lfarm.make_channel()
            channel.submit(abs, -1)
            channel.submit("math:sqrt", 4.0)
            assert sorted(channel) == [1, 2.0]
            assert lfarm.force(lfarm.future(abs, -2)) == 2
            assert lfarm.force(lfarm.speculate(double, 2)) == 4
            assert list(lfarm.stream_task(range, 1)) == [0]
            assert lfarm.broadcast_task(abs, -1) == [1, 1]
            with pytest.raises(TaskExecutionError):
                lfarm.force(lfarm.future(fails))
        kernel.end(wait=True)

    spans, theirs = mine(here), recorded(folder, 8)
    assert len(spans) == 8  # and the request
    assert {span.context.trace_id for span in spans.values()} == {request.get_span_context().trace_id}
    parents = sorted((span["name"], spans[span["parent"]].name, spans[span["parent"]].kind.name) for span in theirs)
    assert parents == [
        ("run abs", "broadcast abs", "INTERNAL"),
        ("run abs", "broadcast abs", "INTERNAL"),
        ("run abs", "submit abs", "PRODUCER"),
        ("run abs", "submit abs", "PRODUCER"),
        ("run double", "submit double", "PRODUCER"),
        ("run fails", "submit fails", "PRODUCER"),
        ("run math:sqrt", "submit math:sqrt", "PRODUCER"),
        ("run range", "stream range", "PRODUCER"),
    ]
    (failed,) = [span for span in theirs if span["name"] == "run fails"]
    assert spans[failed["parent"]].attributes[headers.SPAN_ERROR] == "ValueError"


def test_the_parts_of_a_sequence_belong_to_one_span(farm_of, here):
    folder, make = farm_of
    with make() as farm, lfarm.use_kernel(lfarm.make_kernel(telemetry.traced(farm))):
        assert lfarm.pmap(abs, range(-4, 0), parts=4) == [4, 3, 2, 1]
        assert lfarm.psome(positive, [-1, 2]) is True
        with pytest.raises(TaskExecutionError):
            lfarm.plet(print, x=fails)

    theirs = recorded(folder, 7)
    spans = {id: span.name for id, span in mine(here).items()}
    assert sorted(spans.values()) == ["parts _call", "parts abs", "parts positive"]
    assert sorted((span["name"], spans[span["parent"]]) for span in theirs) == [
        ("run _call", "parts _call"),
        *[("run abs", "parts abs")] * 4,
        *[("run positive", "parts positive")] * 2,
    ]
    (failed,) = [span for span in mine(here).values() if span.name == "parts _call"]
    assert failed.attributes[headers.SPAN_ERROR] == "ValueError"


def test_a_call_that_a_channel_holds_back_belongs_to_who_has_submitted_it(here, tmp_path):
    with (
        FarmExecutor(1, initializer=start_sdk, initargs=(str(tmp_path),)) as farm,
        lfarm.use_kernel(lfarm.make_kernel(telemetry.traced(farm))),
    ):
        channel = lfarm.make_channel(fixed_capacity=1)
        with trace.get_tracer("program").start_as_current_span("request") as request:
            for number in range(5):
                channel.submit(abs, number)
        assert sorted(channel.receives(5)) == list(range(5))

    theirs = recorded(tmp_path, 5)
    assert {span["trace"] for span in theirs} == {request.get_span_context().trace_id}
    assert {mine(here)[span["parent"]].parent.span_id for span in theirs} == {request.get_span_context().span_id}


def test_a_kernel_of_the_farm_itself_has_no_spans(here):
    with FarmExecutor(1) as farm:
        telemetry.traced(farm)
        with lfarm.use_kernel(lfarm.make_kernel(farm)):
            assert lfarm.pmap(abs, [-1]) == [1]
            assert lfarm.force(lfarm.future(abs, -1)) == 1
    assert not mine(here)


def test_an_item_that_fails_is_in_its_blocks_span_and_the_maps(here, tmp_path):
    with FarmExecutor(1, initializer=start_sdk, initargs=(str(tmp_path),)) as farm:
        results = telemetry.traced(farm).map(fails_at, range(3000))
        with pytest.raises(ValueError, match="no"):
            list(results)

    lines = [json.loads(line) for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    assert [span["events"] for span in lines if span["status"] == "ERROR"] == [["exception"]]
    assert [span.status.status_code.name for span in mine(here).values()] == ["ERROR"]


def test_a_further_attempt_has_a_span_with_a_link(farm_of, here, tmp_path):
    folder, make = farm_of
    with make() as farm:
        view = telemetry.traced(farm)
        assert view.submit(dies_once, str(tmp_path / "once")).result(DEADLINE) == "again"

    (again,) = recorded(folder, 1)
    assert again["attributes"][headers.SPAN_ATTEMPT] == 2
    assert again["links"] == [again["parent"]]


def test_a_worker_that_dies_ends_the_span_of_who_has_submitted(here):
    with FarmExecutor(1) as farm:
        view = telemetry.traced(farm).with_options(max_attempts=1)
        assert isinstance(view.submit(os._exit, 3).exception(DEADLINE), WorkerLostError)

    (producer,) = mine(here).values()
    assert producer.attributes[headers.SPAN_ERROR] == "WorkerLostError"


def test_a_map_that_is_left_ends_its_span(here):
    with FarmExecutor(1) as farm:
        results = telemetry.traced(farm).map(abs, range(10), buffersize=2)
        assert next(results) == 0
        assert not mine(here)
        results.close()
        assert [span.name for span in mine(here).values()] == ["map abs"]


def test_a_call_that_is_cancelled_or_cannot_be_sent_ends_its_span(here):
    with FarmExecutor(1) as farm:
        view = telemetry.traced(farm)
        assert view.submit(abs, threading.Lock()).exception(DEADLINE) is not None
        farm.shutdown()
        with pytest.raises(RuntimeError):
            view.submit(abs, 1)

    spans = [(span.name, span.attributes[headers.SPAN_ERROR]) for span in mine(here).values()]
    assert [name for name, _ in spans] == ["submit abs", "submit abs"]
    assert spans[1][1] == "RuntimeError"


def test_what_cannot_be_traced_is_refused(monkeypatch):
    with pytest.raises(TypeError, match="FarmExecutor"):
        telemetry.traced(None)
    with FarmExecutor(1) as farm:
        farm.submit(abs, -1).result(DEADLINE)
        with pytest.raises(RuntimeError, match="before its first task"):
            telemetry.traced(farm)
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ModuleNotFoundError, match=r"farm_executor\[otel\]"):
        telemetry.traced(FarmExecutor(1))


@pytest.mark.parametrize(
    "part",
    [
        {},
        {"name": "f"},
        {"name": "f", "parent": {"traceparent": "00-zz"}},
        {"name": "f", "parent": {}, "attempt": "x"},
    ],
)
def test_a_parent_that_is_none_harms_no_worker(part, here):
    from farm_executor.server.carried import within

    try:
        assert within({headers.TRACE: part}, lambda: 5) == 5
    except (KeyError, ValueError):
        pass  # which becomes the task's own failure
