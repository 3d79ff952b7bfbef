"""What a peer says of itself, in names, refusals and offers, is shown and taken only as far as it is fit."""

import subprocess
import sys
from types import SimpleNamespace

from server.peers import SessionPeer
from server.serving import KEY, Serving

from farm_executor import status
from farm_executor.client.farm.link import MAX_LANES, ServerLink, Settings
from farm_executor.client.launching import at
from farm_executor.core.messages import MAX_MESSAGE, Welcome
from farm_executor.wire.address import Address
from farm_executor.wire.dialling import _refusal
from farm_executor.wire.versions import local_versions


def test_what_clients_call_themselves_is_one_printable_line_wherever_it_is_shown():
    name = "\x1b[2Jme\nERROR forged \ud800\u202e" + "x" * 60_000
    with Serving() as server, SessionPeer(server.address, client=name):
        (session,) = status(server.host, server.port, key=KEY)["sessions"]
        assert session["client"].startswith("?[2Jme ERROR forged ??x")
        assert session["client"].isprintable()
        assert len(session["client"]) < 200
        command = [
            sys.executable,
            "-m",
            "farm_executor",
            "status",
            server.address,
            "--key-file",
            str(server.key_file),
        ]
        shown = subprocess.run(command, capture_output=True, check=True, text=True, encoding="utf-8")
        assert session["client"] in shown.stdout
        assert not server.lines("^ERROR forged")
        assert "\x1b" not in server.log


def test_a_server_s_refusal_is_one_printable_line():
    error = _refusal({"code": "slot", "message": "\x1b[31mno\n" + "x" * 60_000})
    assert str(error).startswith("?[31mno xxx")
    assert len(str(error)) == MAX_MESSAGE


def test_a_server_s_offer_of_workers_is_bounded_and_said(caplog):
    offer = Welcome("s", 10**7, "", local_versions(), 0.0)
    told = []
    session = SimpleNamespace(id="s", connected=lambda connection, first: None)

    def open_session(link, terms):
        told.append(terms.slots)
        return session

    listener = SimpleNamespace(open_session=open_session)
    link = ServerLink(Address("h", 1), at(Address("h", 1)), None, Settings(lambda address: None), listener)
    link._connect = lambda hello, kind: (SimpleNamespace(peer=None), offer)
    link._dial_more = lambda: None
    link._open_session()
    assert told == [MAX_LANES]
    assert "slots=10000000" in caplog.text
