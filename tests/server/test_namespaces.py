"""The namespaces of a worker, and the shared objects in them."""

import sys
import threading

import pytest

from farm_executor.server.namespaces import SharedNamespaces

NAME = "a_module_of_the_client"


@pytest.fixture
def namespaces(monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setitem(sys.modules, NAME, None)  # so that it is gone afterwards
    return SharedNamespaces()


def put(namespaces, name, value, digest):
    module = namespaces.named(NAME)
    namespaces.received_globals(module)[name] = digest
    vars(module)[name] = value
    return vars(module)


def in_thread(call, *arguments):
    thread = threading.Thread(target=call, args=arguments)
    thread.start()
    thread.join()


def test_a_global_that_is_a_shared_object_goes_with_it(namespaces):
    found = put(namespaces, "big", [1], b"shared 7")
    put(namespaces, "other", [2], b"shared 8")
    namespaces.forget_shared(7)

    assert "big" not in found
    assert found["other"] == [2]


def test_what_a_payload_brings_stays_whichever_thread_drops_what_was_there_before(namespaces):
    found = put(namespaces, "big", [1], b"shared 7")
    put(namespaces, "other", [2], b"shared 7")
    reading = namespaces.resolver()
    in_thread(namespaces.forget_shared, 7)
    assert found["big"] == [1]  # not while it is read: what is there might be what has just come
    put(namespaces, "big", [3], b"another")
    reading.end()

    assert found["big"] == [3]
    assert "other" not in found


def test_payloads_within_a_payload_are_read_to_the_end_of_all(namespaces):
    found = put(namespaces, "big", [1], b"shared 7")
    outer, inner = namespaces.resolver(), namespaces.resolver()
    in_thread(namespaces.forget_shared, 7)
    inner.end()
    assert "big" in found
    outer.end()
    assert "big" not in found
