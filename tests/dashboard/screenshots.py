"""Make the screenshots of docs/_static, in a Chromium: ``nox -s screenshots``."""

import html
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from farm_executor import FarmExecutor, start_server
from farm_executor.observe.frame import Choices, frame
from farm_executor.observe.watching import Watching
from farm_executor.wire.address import parse_address

FOLDER = Path(__file__).parents[2] / "docs" / "_static"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
COLOURS = {
    "bold": "font-weight:bold",
    "dim": "color:#9aa5a0",
    "red": "color:#ff8a7d",
    "alarm": "color:#ff8a7d;font-weight:bold",
    "green": "color:#5fbf86",
    "yellow": "color:#e6c34a",
    "cyan": "color:#66c7d9",
    "head": "background:#33413b;font-weight:bold",
    "chosen": "background:#2a3a44",
}


def fit(seed):
    time.sleep(random.random() * 0.4)
    if seed % 97 == 13:
        raise ValueError(f"fold {seed} has no positive sample")
    return seed


def score(seed):
    time.sleep(random.random() * 0.15)
    return seed


def preload(seconds):
    time.sleep(seconds)


def work(farm, until):
    """Keep the farm busy in several ways."""
    futures = [farm.submit(preload, 60)]
    while time.monotonic() < until:
        futures += [farm.submit(fit, seed) for seed in range(40)]
        list(farm.map(score, range(60), progress=None))
        list(farm.map(abs, range(20_000)))
    return futures


def as_html(lines):
    rows = [
        "".join(f'<span style="{COLOURS.get(style, "")}">{html.escape(text)}</span>' for text, style in line)
        for line in lines
    ]
    text = "\n".join(rows)
    style = "background:#14181a;color:#e4e9e6;font:14px/1.3 DejaVu Sans Mono,monospace;margin:0;padding:12px"
    return f'<!doctype html><meta charset="utf-8"><body style="{style}"><pre style="margin:0">{text}</pre>'


CARD = """<!doctype html><meta charset="utf-8"><style>
body { margin: 0; width: 1200px; height: 630px; box-sizing: border-box; padding: 84px 90px; background: #f6f8f7;
       font: 40px/1.35 system-ui, sans-serif; color: #1d2623 }
h1 { font-size: 84px; margin: 34px 0 22px } svg { width: 130px } code { color: #23693f; font-size: 36px }
</style>%s<h1>farm_executor</h1>
<code>concurrent.futures.ProcessPoolExecutor</code><br>whose workers may live on other machines."""


def main():
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("there is no Chromium here")
    FOLDER.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="chromium-") as folder,
        start_server("127.0.0.1", 0, background=True, workers=4, name="rack0") as one,
        start_server("127.0.0.1", 0, background=True, workers=4, name="rack1") as two,
        FarmExecutor([one.address, two.address], name="gridsearch", heartbeat=1) as farm,
        sync_playwright() as driver,
    ):
        url = farm.dashboard()
        context = driver.chromium.launch_persistent_context(
            folder, executable_path=chromium, args=FLAGS, viewport={"width": 1280, "height": 1000}
        )
        watching = Watching([parse_address(server.address) for server in (one, two)])
        page = context.new_page()
        page.goto(url)
        watching.tick(3.0)
        thread = threading.Thread(target=work, args=(farm, time.monotonic() + 22))
        thread.start()
        page.wait_for_timeout(16_000)
        watching.tick(3.0)
        page.wait_for_timeout(1000)
        watching.tick(3.0)
        servers = list(watching.servers.values())
        for scheme, name in (("light", "dashboard.png"), ("dark", "dashboard-dark.png")):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(1000)
            page.screenshot(path=FOLDER / name)
        page = context.new_page()  # without the policy of the other
        page.set_viewport_size({"width": 1130, "height": 240})
        for server, name in ((None, "top.png"), (servers[0].name, "top-server.png")):
            page.set_content(as_html(frame(servers, Choices(opened=server or ""), 132, 18, "12:00:00")))
            page.screenshot(path=FOLDER / name)
        page.set_viewport_size({"width": 1200, "height": 630})
        page.set_content(CARD % (FOLDER / "logo.svg").read_text("utf-8"))
        page.screenshot(path=FOLDER / "card.png")  # for those who link to the pages
        thread.join()
        farm.cancel_all()
        watching.close()
        context.close()
    for path in sorted(FOLDER.glob("*.png")):
        print(f"{path.name} {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
