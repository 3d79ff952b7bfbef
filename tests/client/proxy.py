"""Stands between a client and a server, and does to their connections what networks do.

with Proxy(server.address) as proxy, FarmExecutor(proxy.address) as farm:
    proxy.cut()             # every connection ends
    proxy.cut([1])          # that one; they are counted from 0 in the order in which they were made
    proxy.stall()           # the network swallows all, and nobody is told
    proxy.flow()            # it is back: what waited comes through
    proxy.refuse()          # nobody listens there
    proxy.admit()
"""

import contextlib
import socket
import threading
import time

TO_SERVER, TO_CLIENT = 0, 1
LOOK_EVERY = 0.02  # seconds, at whether what is stalled flows again


class _Link:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, proxy, number, client):
        self._proxy = proxy
        self.number = number
        self.ended = False
        self.stalled = set()
        server = socket.create_connection(proxy.target)
        self._sockets = (client, server)
        for sock in self._sockets:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pumps = [(client, server, TO_SERVER), (server, client, TO_CLIENT)]
        self._threads = [threading.Thread(target=self._pump, args=pump, daemon=True) for pump in pumps]
        for thread in self._threads:
            thread.start()

    def _pump(self, source, sink, direction):
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(65536)
                while direction in self.stalled | self._proxy.stalled and not self.ended:
                    time.sleep(LOOK_EVERY)
                if self.ended or not data:
                    break
                sink.sendall(data)
        self.end()

    def end(self):
        self.ended = True
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.end()
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()


class Proxy:
    """See the module.

    Attributes:
        address: "127.0.0.1:port", for clients.
        links: Every connection so far.
    """

    def __init__(self, target):
        host, _, port = target.rpartition(":")
        self.target = (host, int(port))
        self.stalled = set()
        self.links = []
        self._refusing = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self._accept()

    def _accept(self):
        self._thread = threading.Thread(target=self._serve, args=(self._listener,), daemon=True)
        self._thread.start()

    def _serve(self, listener):
        with listener:
            while True:
                try:
                    client = listener.accept()[0]
                except OSError:
                    return
                try:
                    self.links.append(_Link(self, len(self.links), client))
                except OSError:  # the server is away
                    client.close()

    @property
    def live(self):
        """The numbers of the connections that there are."""
        return [link.number for link in self.links if not link.ended]

    def cut(self, numbers=None):
        """End these connections, or all."""
        for link in list(self.links):
            if numbers is None or link.number in numbers:
                link.end()

    def stall(self, *directions):
        """Pass nothing on, both ways or one way."""
        self.stalled = set(directions or (TO_SERVER, TO_CLIENT))

    def flow(self):
        """Pass on again, first what has waited."""
        self.stalled = set()

    def refuse(self):
        """Listen no more. Connections that there are go on."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def admit(self):
        """Listen again, at the same address."""
        self._listener = socket.create_server(("127.0.0.1", self._port), backlog=100)
        self._accept()

    def close(self):
        """End all, and go."""
        with contextlib.suppress(OSError):  # it may refuse
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for link in self.links:
            link.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()
