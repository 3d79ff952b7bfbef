"""The built documentation in a real browser: nothing is wider than its page, and what people type is found.

``nox -s site`` builds it and runs this, in a Chromium that must be installed; ``SITE`` names the folder of pages.
"""

import functools
import http.server
import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
SITE = Path(os.environ.get("SITE") or Path(__file__).parents[2] / "docs" / "_build" / "html")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
    pytest.mark.skipif(not SITE.is_dir(), reason="the pages have not been built"),
]

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WORDS = {  # what somebody types, and a page that must be among those found
    "progress": "how-to/progress",
    "dashboard": "how-to/dashboard",
    "GPU": "how-to/gpus-and-threads",
    "docker": "how-to/in-docker",
    "Slurm": "how-to/on-slurm",
    "pandas": "how-to/pandas-and-numpy",
    "kubernetes": "how-to/on-kubernetes",
    "fastapi": "how-to/web-services",
    "pytest": "how-to/in-tests",
    "joblib": "how-to/joblib",
    "windows": "reference/support",
    "still dialling": "how-to/when-something-goes-wrong",
}
TOO_WIDE = """() => {
    const width = document.documentElement.clientWidth;
    const found = [];
    if (document.documentElement.scrollWidth > width) {
        for (const part of document.querySelectorAll("article *")) {
            if (part.getBoundingClientRect().right > width + 1 && !part.closest(".table-wrapper"))
                found.push(part.tagName + ": " + part.textContent.slice(0, 60));
        }
        found.push("page: " + document.documentElement.scrollWidth);
    }
    for (const block of document.querySelectorAll("article pre"))
        if (block.scrollWidth > block.clientWidth + 1) found.push("line: " + block.textContent.slice(0, 60));
    return found.slice(0, 5);
}"""


@pytest.fixture(scope="module")
def url():
    """The pages are served, as search asks for its index."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def page():
    with tempfile.TemporaryDirectory(prefix="chromium-") as folder, playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(folder, executable_path=CHROMIUM, args=FLAGS)
        yield context.new_page()
        context.close()


def _pages():
    return sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if "_static" not in path.parts)


@pytest.mark.parametrize("width", [1280, 420])
def test_nothing_is_wider_than_the_page(page, url, width):
    page.set_viewport_size({"width": width, "height": 900})
    wide = {}
    for name in _pages():
        page.goto(f"{url}/{name}")
        if found := page.evaluate(TOO_WIDE):
            wide[name] = found

    assert wide == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_page_can_be_read(page, url, scheme):
    """The chart's text has the colour of the page's, in the light and in the dark."""
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{url}/index.html")
    colours = page.evaluate(
        """() => [getComputedStyle(document.querySelector("svg.bench text")).fill,
                  getComputedStyle(document.querySelector("article p")).color]"""
    )

    assert colours[0] == colours[1]


def test_tabs_show_one_program_at_a_time(page, url):
    page.goto(f"{url}/index.html")
    page.click("label:text('lfarm')")

    assert page.locator(".sd-tab-content:visible").count() == 1
    assert "make_kernel" in page.locator(".sd-tab-content:visible").inner_text()


@pytest.mark.parametrize("words", WORDS)
def test_what_people_type_is_found(page, url, words):
    page.goto(f"{url}/search.html?q={words}")
    page.wait_for_selector("#search-results .search-summary:has-text('found')")
    links = page.locator("#search-results ul.search li a")
    first = links.evaluate_all("links => links.map(link => link.href.split('#')[0])")

    pages = list(dict.fromkeys(first))  # each has its parts as well

    assert f"{url}/{WORDS[words]}.html" in pages[:5]


def test_no_link_within_the_site_leads_nowhere(page, url):
    """Also those to parts of pages."""
    anchors, links = {}, {}
    for name in _pages():
        page.goto(f"{url}/{name}")
        anchors[name] = set(page.evaluate("() => [...document.querySelectorAll('[id]')].map(part => part.id)"))
        links[name] = page.evaluate(
            "() => [...document.querySelectorAll('article a[href]')].map(link => link.href)"
        )
    broken = []
    for name, targets in links.items():
        for target in targets:
            if not target.startswith(url):
                continue
            path, _, anchor = target.removeprefix(url + "/").partition("#")
            file = path.partition("?")[0]
            if not (SITE / file).exists() or (anchor and file in anchors and anchor not in anchors[file]):
                broken.append(f"{name}: {target}")

    assert broken == []
