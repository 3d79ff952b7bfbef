"""In Ray's place: a cluster whose actors are objects of the process that asks for them.

The file that ``FAKE_RAY`` names says, in JSON, what there is: ``lacking`` for a package that is not installed,
``unreachable`` for a head that does not answer, ``refused`` for one that asks for a token, the ``resources``, how
many actors there is ``room`` for, what an actor ``says`` in place of running, and what becomes of ``calls``: they
"fail", "stall", or come out of "order". What it was asked for is written
beside it.
"""

import itertools
import json
import os
import threading
import time
import types
from concurrent.futures import Future


def _cluster():
    with open(os.environ["FAKE_RAY"]) as file:
        return json.load(file)


def _note(**words):
    with open(os.environ["FAKE_RAY"] + ".asked", "a") as file:
        file.write(json.dumps(words) + "\n")


if lacking := _cluster().get("lacking"):
    raise ImportError(f"No module named {lacking!r}", name=lacking)


class _AuthenticationError(Exception):
    pass


exceptions = types.SimpleNamespace(AuthenticationError=_AuthenticationError)


def init(address, log_to_driver, logging_level):
    _note(address=address)
    if words := _cluster().get("refused"):
        raise exceptions.AuthenticationError(words)
    if words := _cluster().get("unreachable"):
        raise ConnectionError(words)


def get_runtime_context():
    return types.SimpleNamespace(gcs_address="127.0.0.1:6379")


def cluster_resources():
    return _cluster()["resources"]


def available_resources():
    return {}


_begun = []


_calls = itertools.count()


class _Reference(Future):
    def future(self):
        return self


class _Actor:
    """One whose methods each run in a thread, once there is room for it."""

    def __init__(self, made):
        self._made = made
        self._has_room = len(_begun) < _cluster().get("room", 99)
        if self._has_room:
            _begun.append(self)

    def __getattr__(self, name):
        return types.SimpleNamespace(remote=lambda *args: self._call(name, args))

    def _call(self, name, args):
        reference = _Reference()

        how, number = _cluster().get("calls") if name == "exchange" else None, next(_calls)
        if how == "stall":
            return reference

        def run():
            try:
                if how == "fail":
                    raise OSError("the engine has hung up")
                if how == "order":
                    time.sleep((0.02, 0.0, 0.01)[number % 3])
                said = _cluster().get("says") if name == "hold" else None
                reference.set_result(said or getattr(self._made, name)(*args))
            except Exception as error:
                reference.set_exception(error)

        if self._has_room:
            threading.Thread(target=run, daemon=True).start()
        return reference


def remote(**options):
    _note(**options)
    return lambda kind: types.SimpleNamespace(remote=lambda *args: _Actor(kind(*args)))


def wait(references, timeout):
    done = [one for one in references if one.done()]
    return done, [one for one in references if one not in done]


def get(reference):
    return reference.result()


def kill(actor):
    pass


def shutdown():
    pass
