"""What `farm_executor` promises by name."""

import subprocess
import sys

import farm_executor
from farm_executor import errors


def test_every_public_name_exists_once():
    assert len(set(farm_executor.__all__)) == len(farm_executor.__all__)
    assert all(hasattr(farm_executor, name) for name in farm_executor.__all__)


def test_every_error_is_public():
    assert set(errors.__all__) <= set(farm_executor.__all__)


def test_importing_the_package_imports_no_heavy_module():
    """cloudpickle, tblib and numpy are imported when they are needed, if they are."""
    heavy = ("cloudpickle", "tblib", "numpy", "asyncio")
    code = f"import sys, farm_executor; print([name for name in {heavy} if name in sys.modules])"

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert out.strip() == "[]"
