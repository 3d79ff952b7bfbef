"""What it costs to watch: many servers over TLS, and one with many workers. ``python tests/bench/watching.py``."""

from __future__ import annotations

import argparse
import os
import selectors
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from farm_executor import FarmExecutor, start_server
from farm_executor.observe.watching import Watching
from farm_executor.wire.address import parse_address
from farm_executor.wire.keygen import make_key_file_content
from farm_executor.wire.security import monitor_content, write_key


def many_servers(count: int, ticks: int) -> None:
    """Print what a tick costs who watches that many servers with a monitor's key, over TLS."""
    with tempfile.TemporaryDirectory(prefix="watching-") as folder:
        key, monitor = Path(folder, "key"), Path(folder, "monitor")
        write_key(key, make_key_file_content())
        write_key(monitor, monitor_content(key))
        command = [sys.executable, "-m", "farm_executor", "serve", "127.0.0.1:0", "--workers", "1"]
        servers = []
        try:
            for _ in range(count):
                process = subprocess.Popen(
                    [*command, "--key-file", str(key)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
                servers.append(process)
            addresses = []
            for process in servers:
                assert process.stdout is not None
                addresses.append(parse_address(process.stdout.readline().split()[2].rstrip(",")))
            watching = Watching(addresses, monitor, timeout=10.0)
            while any(server.state != "open" for server in watching.servers.values()):
                watching.tick(5.0)
            walls, busy = [], time.process_time()
            for _ in range(ticks):
                time.sleep(1.0)
                began = time.perf_counter()
                watching.tick(5.0)
                walls.append(time.perf_counter() - began)
            spent = (time.process_time() - busy) / ticks
            walls.sort()
            print(
                f"{count} servers over TLS: a tick {walls[ticks // 2] * 1e3:.0f} ms "
                f"(best {walls[0] * 1e3:.0f}), {spent * 1e3:.1f} ms of CPU",
                flush=True,
            )
            watching.close()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # none may stay
            for process in servers:
                process.send_signal(signal.SIGKILL)
            for process in servers:
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()


ECHO = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
plain, _ = listener.accept()
plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
connection = context.wrap_socket(plain, server_side=True)
while connection.recv(1 << 16):
    connection.sendall(b"x" * 700)
"""


def raw_echoes(count: int, ticks: int) -> None:
    """Print what the same takes of processes that only answer as much over TLS: what the machine itself needs."""
    with tempfile.TemporaryDirectory(prefix="watching-") as folder:
        key = Path(folder, "key")
        write_key(key, make_key_file_content())
        command = [sys.executable, "-c", ECHO, str(key)]
        servers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            selector, connections = selectors.DefaultSelector(), []
            for process in servers:
                assert process.stdout is not None
                plain = socket.create_connection(("127.0.0.1", int(process.stdout.readline())))
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections.append(context.wrap_socket(plain))
                selector.register(connections[-1], selectors.EVENT_READ)
            walls, busy = [], time.process_time()
            for _ in range(ticks):
                time.sleep(1.0)
                began = time.perf_counter()
                for connection in connections:
                    connection.send(b"y" * 16)
                due = count
                while due:
                    for ready, _ in selector.select():
                        assert isinstance(ready.fileobj, ssl.SSLSocket)
                        due -= len(ready.fileobj.recv(1 << 16)) == 700
                walls.append(time.perf_counter() - began)
            spent = (time.process_time() - busy) / ticks
            walls.sort()
            print(
                f"{count} raw echoes over TLS: a tick {walls[ticks // 2] * 1e3:.0f} ms "
                f"(best {walls[0] * 1e3:.0f}), {spent * 1e3:.1f} ms of CPU",
                flush=True,
            )
            for connection in connections:
                connection.close()
        finally:
            for process in servers:
                process.kill()
            for process in servers:
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()


def many_workers(workers: int, watchers: int, seconds: float) -> None:
    """Print what a server with that many workers spends on those who watch it."""
    with (
        start_server("127.0.0.1", 0, background=True, workers=workers) as server,
        FarmExecutor(server.address) as farm,
    ):
        farm.connect(60)
        assert len(set(farm.broadcast(os.getpid))) == workers
        pid = farm.submit(os.getppid).result()
        idle = spent_by(pid, seconds)
        watching = [Watching([parse_address(server.address)]) for _ in range(watchers)]
        until, before, began = time.monotonic() + seconds, cpu_of(pid), time.monotonic()
        while time.monotonic() < until:
            for one in watching:
                one.tick(2.0)
            time.sleep(0.5)
        share = (cpu_of(pid) - before) / (time.monotonic() - began)
        print(
            f"a server with {workers} workers, {watchers} watch twice a second: {share:.2%} of a core "
            f"(nobody watches: {idle:.2%})",
            flush=True,
        )
        for one in watching:
            one.close()


def spent_by(pid: int, seconds: float) -> float:
    """Return the share of a core that a process uses."""
    before, began = cpu_of(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_of(pid) - before) / (time.monotonic() - began)


def cpu_of(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=int, default=100)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--watchers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    many_workers(options.workers, options.watchers, options.seconds)
    many_servers(options.servers, 10)
    raw_echoes(options.servers, 10)


if __name__ == "__main__":
    main()
