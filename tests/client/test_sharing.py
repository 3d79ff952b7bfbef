"""Who is told what of a farm's shared objects, without servers."""

import contextlib

from farm_executor.client.farm import sharing as module
from farm_executor.client.farm.sharing import Sharing
from farm_executor.core.features import SHARING
from farm_executor.core.frames import FrameType
from farm_executor.core.reader import FrameReader


class Reactor:
    def post(self, action):
        action()


class Host:
    features = frozenset({SHARING})
    deliveries = None
    spread = None
    slots = 2
    wants_lanes = True

    def __init__(self):
        self.lanes = {}
        self.told = []

    def tell(self, buffers):
        self.told += FrameReader().receive_data(b"".join(buffers))


def test_what_is_said_again_to_a_server_that_is_back_does_not_grow_for_ever(monkeypatch):
    monkeypatch.setattr(module, "MAX_GONE", 3)
    sharing = Sharing(Reactor(), contextlib.nullcontext, lambda lane: None, lambda: False)
    host = Host()
    sharing.connected(host, first=True)
    kept = sharing.share("kept", frozen=False)
    for number in range(10):
        sharing.share(number, frozen=False).close()
    host.told.clear()

    sharing.connected(host, first=False)

    gone = [(FrameType.UNSHARE, number) for number in (9, 10, 11)]
    assert [(frame.type, frame.seq) for frame in host.told] == [*gone, (FrameType.SHARE, 1)]
    kept.close()
    sharing.close()
