"""What a program's own modules cost over a slow network: ``python tests/bench/modules.py``.

A package of many modules is sent to a server behind a proxy that delays every byte. The figures are those of a
plain call, of the first call that needs the package, and of the next.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import DelayingProxy

from farm_executor import FarmExecutor, start_server
from farm_executor.wire.address import parse_address


def write_package(folder: Path, modules: int, size: int) -> None:
    """Make a package of that many modules, of about that many bytes each, and its function ``last``."""
    package = folder / "bench_package"
    package.mkdir()
    names = [f"m{number}" for number in range(modules)]
    for number, name in enumerate(names):
        lines = [f"def f{line}(x):\n    return x + {line}\n" for line in range(size // 30)]
        (package / f"{name}.py").write_text("".join(lines) + f"value = {number}\n")
    (package / "__init__.py").write_text(
        f"from . import {', '.join(names)}\n\ndef last():\n    import os\n    return os.getpid()\n"
    )


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds that a call takes."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modules", type=int, default=60)
    parser.add_argument("--size", type=int, default=3000, help="bytes of each module (default: %(default)s)")
    parser.add_argument("--round-trip", type=float, default=50.0, help="milliseconds (default: %(default)s)")
    options = parser.parse_args()
    there = tempfile.mkdtemp()
    os.chdir(there)  # a server's tasks find modules in its current folder
    server = start_server("127.0.0.1", 0, background=True, workers=2)
    folder = Path(tempfile.mkdtemp())
    write_package(folder, options.modules, options.size)
    sys.path.insert(0, str(folder))
    import bench_package  # type: ignore[import-not-found]

    address = parse_address(server.address)
    proxy = DelayingProxy((address.host, address.port), options.round_trip / 2000)
    with FarmExecutor([proxy.address], max_workers=1) as farm:
        farm.submit(abs, -1).result()
        plain = timed(lambda: farm.submit(abs, -1).result())
        before = proxy.bytes_forth
        first = timed(lambda: farm.submit(bench_package.last).result())
        sent = proxy.bytes_forth - before
        again = timed(lambda: farm.submit(bench_package.last).result())
        # In a worker's stead: what is left when neither the network nor the farm takes any time.
        code = "import time; t = time.perf_counter(); import bench_package; print(time.perf_counter() - t)"
        command = [sys.executable, "-c", code]
        shutil.rmtree(folder / "bench_package" / "__pycache__", ignore_errors=True)
        printed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    server.end()
    print(f"{options.modules} modules of {options.size} bytes, round trip {options.round_trip:g} ms")
    print(f"a plain call {plain:.0f} ms, the first with the package {first:.0f} ms, again {again:.0f} ms")
    print(f"of the first are {float(printed) * 1000:.0f} ms to import it; it took {sent} bytes to the server")
    shutil.rmtree(folder)
    shutil.rmtree(there)


if __name__ == "__main__":
    main()
