"""Somebody in between, without the key, can break connections and nothing else.

Each attack here has succeeded against a farm whose frames, or whose hellos, no key protected.
"""

import contextlib
import json
import os
import pickle
import struct
import threading
from concurrent.futures import wait

import pytest
from meddling import Chances, Meddler, exactly, pump, relay_words
from server import tasks
from server.peers import KEY, read_to_end
from server.processes import DEADLINE
from server.serving import Serving

from farm_executor import FarmError, FarmExecutor
from farm_executor.client.farm import link as dialling
from farm_executor.core.frames import FrameType
from farm_executor.core.handshake import Security
from farm_executor.core.seal import RECORD_HEAD
from farm_executor.wire.keygen import make_key_file_content
from farm_executor.wire.security import write_key

pytestmark = pytest.mark.usefixtures("no_leaks")

HEADER = struct.Struct("<IBBHQ")


@pytest.fixture(scope="module")
def key_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    write_key(folder / "plain", KEY)
    write_key(folder / "tls", make_key_file_content())
    return {kind: folder / kind for kind in ("plain", "tls")}


@pytest.fixture(scope="module", params=["plain", "tls"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def key_file(key_files, kind):
    return key_files[kind]


@contextlib.contextmanager
def serving_with(key_file, workers=2):
    hasty = "import faults.tasks, farm_executor.server.door as d; d.GUEST_SECONDS = 1.0"
    with Serving(before=hasty, key=key_file.read_bytes(), workers=workers) as server:
        yield server


@pytest.fixture(scope="module")
def serving(key_file):
    with serving_with(key_file) as server:
        yield server


# -- frames put in behind the proofs --------------------------------------------------------------------------


class Gadget:
    """Whoever unpickles it makes a file."""

    def __init__(self, path):
        self._path = str(path)

    def __reduce__(self):
        return os.mkdir, (self._path,)


def put_in(source, sink, wanted, gadget, done):
    """Rewrite frames of that type in a stream of records of one frame each, keeping the records' seals."""
    with contextlib.suppress(EOFError, OSError, struct.error):
        while True:
            head = exactly(source, RECORD_HEAD)
            record = exactly(source, int.from_bytes(head[:4], "little"))
            length, kind, flags, count, seq = HEADER.unpack_from(record)
            if kind == wanted:
                body = pickle.dumps(gadget)
                if wanted is FrameType.RESULTS:
                    body = struct.pack("<II", 1, len(body)) + body
                record = HEADER.pack(len(body), kind, 0, count, seq) + body
                head = len(record).to_bytes(4, "little") + head[4:]
                done.append(kind)
            sink.sendall(head + record)


@pytest.mark.parametrize("victim", [FrameType.FUNCTION, FrameType.RESULTS], ids=["the server", "the client"])
def test_who_relays_the_proofs_cannot_put_in_frames_of_his_own(key_files, tmp_path, victim):
    """As a user of the same machine can, at a port that a client dials while its server is down."""

    attacked = []

    def attack(client, server):
        relay_words(client, server)
        if len(attacked) == 3:
            meddler.both_ways(client, server)
            return
        way = (client, server) if victim is FrameType.FUNCTION else (server, client)
        threading.Thread(target=pump, args=way[::-1]).start()
        put_in(*way, victim, Gadget(tmp_path / "ran"), attacked)

    with (
        serving_with(key_files["plain"]) as server,
        Meddler(server.address, attack) as meddler,
        FarmExecutor(meddler.address, key=KEY, heartbeat=0.2) as farm,
    ):
        assert farm.submit(abs, -7).result(DEADLINE) == 7
    assert len(attacked) == 3
    assert not (tmp_path / "ran").exists()


# -- hellos ---------------------------------------------------------------------------------------------------


def test_a_hello_that_was_changed_is_nobodys(serving, key_file, kind):
    """A lane's other number would have reports and kills concern another lane's worker."""
    changed = []

    def attack(client, server):
        said = relay_words(client, server)
        if kind == "plain" or said[0][6] == Security.TLS_LANE:
            head = exactly(client, RECORD_HEAD)
            record = exactly(client, int.from_bytes(head[:4], "little"))
            hello = json.loads(record[HEADER.size :])
            if hello["role"] == "lane" and len(changed) < 3:
                hello["lane"] ^= 1
                body = json.dumps(hello).encode().ljust(len(record) - HEADER.size)
                record = record[: HEADER.size] + body
                changed.append(read_after(server, head + record))
                return
            server.sendall(head + record)
        meddler.both_ways(client, server)

    with Meddler(serving.address, attack) as meddler, FarmExecutor(meddler.address, key_file=key_file) as farm:
        assert list(farm.map(abs, range(-5, 0), timeout=DEADLINE)) == [5, 4, 3, 2, 1]
    assert len(changed) >= 3, "two lanes at once may make it more"
    assert not any(changed), "it was answered"
    assert serving.lines("dismissed .*was not sent by the other end")


def read_after(server, data):
    server.sendall(data)
    return read_to_end(server)


def test_lanes_cannot_be_exchanged_behind_their_hellos(key_files):
    """He lets two lanes say their hellos, and then has each worker speak TLS with the other's client."""
    met = threading.Barrier(2, timeout=DEADLINE)
    waiting = {}
    lock = threading.Lock()
    exchanged = []

    def attack(client, server):
        said = relay_words(client, server)
        with lock:
            place = len(waiting)
            mine = said[0][6] == Security.TLS_LANE and place < 2
            if mine:
                waiting[place] = server
        if not mine:
            meddler.both_ways(client, server)
            return
        for source, sink in ((client, server), (server, client)):
            head = exactly(source, RECORD_HEAD)
            sink.sendall(head + exactly(source, int.from_bytes(head[:4], "little")))
        exchanged.append(place)
        # The client dials its lanes one after the other, each until TLS stands: so this one's worker has to wait,
        # and the other's hello comes over another farm's connection.
        met.wait()
        meddler.both_ways(client, waiting[1 - place])

    with serving_with(key_files["tls"]) as server, Meddler(server.address, attack) as meddler:
        with contextlib.ExitStack() as stack:
            farms = [
                stack.enter_context(FarmExecutor(meddler.address, key_file=key_files["tls"], max_workers=1))
                for _ in range(2)
            ]
            futures = [farm.submit(tasks.pid) for farm in farms]
            pids = [future.result(DEADLINE) for future in futures]
        assert len(set(pids)) == 2
        assert sorted(exchanged) == [0, 1]
        # At least one has seen a wrong proof; the other's connection may have ended with that one's.
        assert server.wait_for_line("worker ends pid=[0-9]+ why=wrong key")


# -- refusals in the clear ------------------------------------------------------------------------------------


def forged(kind, preamble):
    """A refusal by somebody who has nothing."""
    answer = bytearray(preamble[:7] + bytes(41))
    if kind == "version":
        answer[4:6] = b"\0\1"
    elif kind == "security":
        answer[6] = Security.TLS if preamble[6] == Security.SEALED else Security.SEALED
    return bytes(answer)


@pytest.mark.parametrize("how", ["version", "security", "wrong key", "refused", "alert"])
@pytest.mark.parametrize("whom", ["the first", "lanes"])
def test_a_refusal_by_anybody_is_a_passing_failure(serving, key_file, how, whom):
    refused = []

    def attack(client, server):
        number = len(connections)
        connections.append(client)
        if (number < 2) if whom == "the first" else (1 <= number < 4):
            refused.append(how)
            if how in ("refused", "alert"):
                relay_words(client, server)
                text = json.dumps({"code": "version", "message": "\x1b[31mno", "mismatches": {}}).encode()
                said = HEADER.pack(len(text), FrameType.REFUSED, 0, 0, 0) + text
                client.sendall(b"\x15\x03\x03\x00\x02\x02\x30" if how == "alert" else said)
                return
            client.sendall(forged(how, exactly(client, 48)))
            if how == "wrong key":
                exactly(client, 32)
                client.sendall(bytes(33))
            return
        meddler.both_ways(client, server)

    connections = []
    with Meddler(serving.address, attack) as meddler, FarmExecutor(meddler.address, key_file=key_file) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
    assert refused


# -- whatever he does -----------------------------------------------------------------------------------------


def enter(token):
    os.environ["FARM_TOKEN"] = token


def leave_a_line(path, number):
    with open(path, "a") as file:
        file.write(f"{number}\n")
    return number, os.environ["FARM_TOKEN"]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_he_does_nothing_runs_twice_or_in_anothers_worker(serving, key_file, tmp_path, monkeypatch, seed):
    """He flips, leaves out, repeats, puts in, swaps, exchanges between connections, and ends them."""
    monkeypatch.setattr(dialling, "CONNECT_SECONDS", 1.0)
    chances = Chances(seed, times=15)
    holder = []
    with Meddler(serving.address, chances.attack(lambda: holder[0])) as meddler, contextlib.ExitStack() as stack:
        holder.append(meddler)
        farms = {
            name: stack.enter_context(
                FarmExecutor(
                    *(meddler.address,),
                    key_file=key_file,
                    max_attempts=1,
                    heartbeat=0.1,
                    connect_timeout=DEADLINE,
                    initializer=enter,
                    initargs=(name,),
                )
            )
            for name in ("one", "other")
        }
        futures = {
            name: [farm.submit(leave_a_line, tmp_path / name, number) for number in range(120)]
            for name, farm in farms.items()
        }
        for name, calls in futures.items():
            assert not wait(calls, 2 * DEADLINE).not_done, chances.done
            for number, call in enumerate(calls):
                with contextlib.suppress(FarmError):
                    assert call.result() == (number, name)
            lines = (tmp_path / name).read_text().split() if (tmp_path / name).exists() else []
            assert len(lines) == len(set(lines)), f"run twice, after {chances.done}"
    assert chances.done
    with FarmExecutor(serving.address, key_file=key_file) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
