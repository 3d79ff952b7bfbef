"""joblib's own tests of backends, with "farm" in the place of its process backends: ``nox -s joblib``.

They come with joblib: its `test_parallel.py` is copied with that one change, and every test that names the farm is
run. Those that fail do so for the reasons given here, which docs/how-to/joblib.md tells users.
"""

import contextlib
import os
import re
import sys
import tempfile
from pathlib import Path

FAIL = {
    "test_error_capture": "looks into loky's own pool",
    "test_auto_memmap_on_arrays_from_generator": "wants numpy.memmap, where the farm gives a read-only array",
    "test_memmapping_leaks": "wants numpy.memmap, where the farm gives a read-only array",
}

CONFTEST = f"""
import pytest

FAIL = {FAIL!r}


def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if hasattr(item, "callspec") and "farm" in item.callspec.id.lower()]
    for item in items:
        if item.originalname in FAIL:
            item.add_marker(pytest.mark.xfail(strict=True, reason=FAIL[item.originalname]))
"""
# A script has ten seconds there, in which it starts a farm here, and all of its processes import numpy.
HEAD = """
import joblib.testing

import farm_executor.joblib

_hasty = joblib.testing.check_subprocess_call


def _patient(command, timeout=None, **expected):
    _hasty(command, timeout=timeout and 120, **expected)


joblib.testing.check_subprocess_call = _patient
"""
# The scripts that the tests write do not import what registers the farm.
SITE = """
import sys

if any(word.endswith(".py") or "joblib" in word for word in sys.orig_argv):
    import farm_executor.joblib
"""


def main(*arguments):
    import joblib
    import pytest

    source = Path(joblib.__file__).parent / "test" / "test_parallel.py"
    text, count = re.subn(
        r'PROCESS_BACKENDS = \["multiprocessing", "loky"\]',
        'PROCESS_BACKENDS = ["farm"]',
        source.read_text("utf-8"),
    )
    assert count == 1, "joblib's tests have changed: see what names its process backends now"
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("test_parallel.py").write_text(HEAD + text, "utf-8")
        Path("conftest.py").write_text(CONFTEST, "utf-8")
        site = Path(folder, "site")
        site.mkdir()
        Path(site, "sitecustomize.py").write_text(SITE, "utf-8")
        paths = [str(site), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        os.environ["XDG_CONFIG_HOME"] = folder
        Path("pytest.ini").write_text("[pytest]\n", "utf-8")
        return pytest.main(["-q", "-rxX", "-p", "no:cacheprovider", "--timeout", "240", *arguments])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
