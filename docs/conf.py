"""How Sphinx builds the documentation: ``nox -s docs``, or ``sphinx-build -n -W docs docs/_build/html``."""

import os
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import farm_executor

project = "farm_executor"
author = "the farm_executor authors"
copyright = f"2026, {author}"
version = release = farm_executor.__version__

extensions = [
    "myst_parser",
    "notfound.extension",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxext.opengraph",
]
exclude_patterns = ["_build", "examples"]
html_theme = "furo"
html_title = f"farm_executor {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_logo = html_favicon = "_static/logo.svg"
html_theme_options = {
    "top_of_page_buttons": [],  # no page is edited from here
    "light_css_variables": {"color-brand-primary": "#2f7d4f", "color-brand-content": "#23693f"},
    "dark_css_variables": {"color-brand-primary": "#5fbf86", "color-brand-content": "#74cc97"},
}

# Where the pages are published, if anywhere: the project itself has no host, so whoever publishes them says so.
html_baseurl = os.environ.get("DOCS_URL", "")
ogp_site_url = html_baseurl
ogp_site_name = "farm_executor"
ogp_image = "_static/card.png"
ogp_image_alt = "FarmExecutor: ProcessPoolExecutor whose workers may live on other machines"
ogp_social_cards = {"enable": False}  # drawing one for each page would need matplotlib
notfound_urls_prefix = urlsplit(html_baseurl).path or "/"
notfound_context = {
    "title": "Page not found",
    "body": "<h1>Page not found</h1>\n<p>Search for it by some words, or start at the "
    f'<a href="{notfound_urls_prefix}index.html">first page</a>.</p>',
}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

default_role = "literal"  # docstrings write `name` as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autosummary_generate = False  # summaries lead to what is on the same page
python_maximum_signature_line_length = 60  # a parameter a line where they do not all fit into one
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Thread safety"]
nitpick_ignore = [
    ("py:class", "farm_executor.wire.address.Address"),  # users write strings and tuples
    ("py:class", "farm_executor.client.front.Front"),  # an executor or a view of one
    ("py:class", "ContextVar"),  # names in the standard library are longer, and not all of them are listed below
    ("py:class", "collections.abc.Awaitable"),
    ("py:class", "collections.abc.MutableMapping"),
    ("py:exc", "CancelledError"),
]

nitpick_ignore_regex = [
    ("py:class", r"(farm_executor\..*\.)?(P|T|T_co|Ts|Target)(\.args|\.kwargs)?"),  # type variables
    ("py:class", r"Unpack|_Of\w+|(Address|Progress|Task)Like|Streamable"),  # options of another function; aliases
]

# The names of the standard library that we link to. Its own inventory would have to be downloaded for each build,
# and a build must neither need the network nor fail without it: so here is one that holds just these.
PYTHON_NAMES = {
    "library/concurrent.futures": {
        "concurrent.futures": "module",
        "concurrent.futures.BrokenExecutor": "exception",
        "concurrent.futures.Executor": "class",
        "concurrent.futures.Executor.map": "method",
        "concurrent.futures.Executor.shutdown": "method",
        "concurrent.futures.Executor.submit": "method",
        "concurrent.futures.Future": "class",
        "concurrent.futures._base.Executor": "class",  # as annotations have it
        "concurrent.futures._base.Future": "class",
        "concurrent.futures.ProcessPoolExecutor": "class",
        "concurrent.futures.wait": "function",
        "concurrent.futures.as_completed": "function",
    },
    "library/collections.abc": {
        f"collections.abc.{name}": "class" for name in ("Callable", "Hashable", "Iterable", "Iterator", "Mapping")
    },
    "library/exceptions": dict.fromkeys(
        ("BaseException", "Exception", "OSError", "RuntimeError", "TimeoutError", "TypeError", "ValueError"),
        "exception",
    ),
    "library/functions": dict.fromkeys(("bool", "float", "int", "object", "type"), "class"),
    "library/stdtypes": dict.fromkeys(("bytes", "dict", "list", "str", "tuple"), "class"),
    "library/constants": {"None": "data"},
    "library/os": {"os.PathLike": "class"},
    "library/types": {"types.TracebackType": "class"},
    "library/typing": {"typing.Any": "data", "typing.ClassVar": "data"},
}


def _write_inventory(path: Path) -> str:
    lines = [
        f"{name} py:{kind} 1 {page}.html#{'module-' if kind == 'module' else ''}$ -"
        for page, names in PYTHON_NAMES.items()
        for name, kind in names.items()
    ]
    head = "# Sphinx inventory version 2\n# Project: Python\n# Version: 3\n"
    head += "# The remainder of this file is compressed using zlib.\n"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(head.encode() + zlib.compress("".join(f"{line}\n" for line in lines).encode()))
    return str(path)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _with_plain_parameters)


def _with_plain_parameters(app: Sphinx, what: str, name: str, obj: object, options: object, *signature: str) -> Any:
    """Autodoc has its own way to write a `ParamSpec`; write it as the source does."""
    arguments, result = signature
    if arguments:
        for theirs, ours in (("[[~P]", "[P"), ("*args: ~typing.~P", "*args: P.args"), ("~typing.~P", "P.kwargs")):
            arguments = arguments.replace(theirs, ours)
    return arguments, result


def _without_overloads(analyzer: ModuleAnalyzer) -> None:
    """Readers are shown the one signature that runs: overloads are for type checkers."""
    _analyze(analyzer)
    analyzer.overloads = {}


_analyze = ModuleAnalyzer.analyze
ModuleAnalyzer.analyze = _without_overloads

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", _write_inventory(Path(__file__).parent / "_build" / "python.inv"))
}
