"""Promises that are not kept yet. Each test here fails; when it passes, it moves to where it belongs."""

import contextlib
import json
import subprocess
import sys

import pytest
from faults.proxy import TO_CLIENT, Cut, End, Proxy
from server.peers import SessionPeer
from server.processes import resident_bytes
from server.serving import KEY, Serving

from farm_executor import FarmExecutor
from farm_executor.core.frames import FrameType
from farm_executor.core.handshake import encode_hello


def first_word(serving):
    """After how many bytes a worker says its first word: the handshake's, and those of the answer to its hello."""
    return 81 + 16 + len(json.dumps({"pid": serving.pid}))


@pytest.mark.parametrize("end", End)
def test_a_network_that_ends_young_connections_does_not_break_the_farm(serving, end, no_leaks):
    """Three lanes in a row end before their workers have heard a word: that was the network, not the initializer.

    `Engine._on_stillborn` takes "exited with code 0", which is how a worker ends that its client has hung up on,
    for a death in the initializer, and breaks the farm for ever.
    """
    cuts = [Cut(number, TO_CLIENT, first_word(serving), end) for number in range(1, 6)]
    with Proxy(serving.address, *cuts) as proxy, FarmExecutor([proxy.address], key=KEY, max_workers=1) as farm:
        assert farm.submit(pow, 2, 10).result(30) == 1024


def test_a_client_that_asks_and_never_listens_costs_a_bounded_amount():
    """Each KILL that spares is answered; the answers to somebody who does not read pile up in the supervisor.

    20 MB of orders make it grow by 70 MB, and so on. It should hang up on who leaves so many answers unread.
    """
    order = {"order": 1, "lane": 1, "first": 0, "ranges": []}
    orders = b"".join(encode_hello(order, FrameType.KILL)) * 1000
    with Serving(workers=1) as serving, SessionPeer(serving.address) as peer:
        peer.open_lane().start()
        before = resident_bytes(serving.pid)
        with contextlib.suppress(OSError):  # it has hung up, which is right
            for _ in range(300):
                peer.connection.socket.sendall(orders)
        assert resident_bytes(serving.pid) - before < 16 << 20


def test_a_segment_that_is_only_promised_takes_no_memory_without_numpy():
    program = (
        "import resource\n"
        "from farm_executor.payload import allocate\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "segment = allocate(1 << 30)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 << 10  # KiB
