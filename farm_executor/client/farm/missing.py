"""Explains why a worker could not import something, by what this program knows of it.

This module owns the wording: where the module is here, and what to do. It must not know how it was asked for.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from typing import Any

from farm_executor.client.farm.own_modules import is_installed
from farm_executor.client.farm.packages import package_of
from farm_executor.core.shipment import Difference
from farm_executor.data.failure import report_of
from farm_executor.data.shared import take
from farm_executor.errors import SharedMemoryError, TaskExecutionError

__all__ = ["described", "explain_missing"]


def explain_missing(
    error: BaseException, differences: Sequence[Difference] = (), server: str = ""
) -> BaseException:
    """Return the error; if an import has failed on a worker, with what is known here of that module.

    A task's own exception stays as it was raised: the explanation is added to the report in its chain of causes.

    Args:
        error: The error of a task, as `load_failure` has rebuilt it.
        server: The server, as the client was given it.
        differences: How the server's packages are known to differ from this program's.
    """
    missing: BaseException | None = error
    report = report_of(error)
    if type(error) is TaskExecutionError:
        missing, report = error.__cause__, error
    if type(missing) not in (ModuleNotFoundError, ImportError) or report is None:
        return error
    assert isinstance(missing, ImportError)
    if missing.name == take.__module__:
        return SharedMemoryError(
            f"server {server} has an older farm_executor, which cannot hold shared objects: "
            "install the same version there, or pass the .value instead of the handle"
        )
    known = []
    # If the farm has tried to send the module, the text is another one, and says already why that failed.
    if type(missing.name) is str and str(missing) == f"No module named {missing.name!r}":
        known.append(_known(missing.name))
    if differences:
        known.append(f"on that server {described(differences)}")
    report.args = ("; ".join([report.args[0], *known]),)
    return error


def described(differences: Sequence[Difference]) -> str:
    """Return a text for people that says how a server's packages differ, and what to do about it."""
    parts = [f"{each.name} is {each.there or 'missing'}, here {each.here}" for each in differences]
    wanted = " ".join(f"{each.name}=={each.here}" for each in differences)
    return f"{', '.join(parts)}; to have the same there: python -m pip install {wanted}"


@functools.lru_cache(maxsize=256)  # many tasks may fail for one reason, and the look-up takes long
def _known(name: str) -> str:
    top = name.partition(".")[0]
    try:
        spec = _spec_of(top)
    except Exception:  # finders may be anybody's, and raise anything
        spec = None
    if spec is None:
        return f"this program does not find a module {top!r} either"
    if top in sys.stdlib_module_names:
        return f"{top} is part of Python, and the server's Python was built or packaged without it"
    place = spec.origin if spec.has_location else next(iter(spec.submodule_search_locations or ()), None)
    if not place:
        return f"this program has {top}"
    if not is_installed(os.path.abspath(place)):
        what = f"it is this program's own, from {place}, and"
        if place.endswith(".pyc"):
            return f"{what} compiled modules without source are not sent: install it where the worker runs"
        if not os.path.exists(place):
            return f"{what} modules in archives are not sent: unpack them, or install it where the worker runs"
        return f"{what} is not sent to this worker: see ship= of FarmExecutor, or install it where the worker runs"
    package = package_of(top)
    if package is not None:
        return (
            f"this program has it installed: install it there, too, as with: "
            f"python -m pip install {package.name}=={package.version}"
        )
    return f"this program has it from {place}"


def _spec_of(name: str) -> Any:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is not None:
        return spec
    return next((found for finder in sys.meta_path if (found := finder.find_spec(name, None)) is not None), None)
