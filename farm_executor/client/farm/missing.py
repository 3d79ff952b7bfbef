"""Explains why a worker has not found a module, by what this program knows of it.

This module owns the wording: where the module is here, and what to do. It must not know how it was asked for.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

from farm_executor.client.farm.own_modules import is_installed
from farm_executor.data.failure import report_of
from farm_executor.errors import TaskExecutionError

__all__ = ["explain_missing"]


def explain_missing(error: BaseException) -> BaseException:
    """Return the error; if it says that a worker lacks a module, with what is known of that module here.

    A task's own exception stays as it was raised: the explanation is added to the report in its chain of causes.
    """
    missing: BaseException | None = error
    report = report_of(error)
    if type(error) is TaskExecutionError:
        missing, report = error.__cause__, error
    if type(missing) is not ModuleNotFoundError:
        return error
    # If the farm has tried to send the module, the text is another one, and says already why that failed.
    if report is not None and type(missing.name) is str and str(missing) == f"No module named {missing.name!r}":
        report.args = (f"{report.args[0]}; {_known(missing.name)}",)
    return error


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
        return (
            f"it is this program's own, from {place}, and is not sent to this worker: see ship= of FarmExecutor, "
            "or install it where the worker runs"
        )
    from importlib.metadata import packages_distributions, version  # late, as it takes long

    found = [f"{each}=={version(each)}" for each in dict.fromkeys(packages_distributions().get(top, ()))]
    if found:
        return f"this program has it installed: install it there, too, as with: pip install {' '.join(found)}"
    return f"this program has it from {place}"


def _spec_of(name: str) -> Any:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is not None:
        return spec
    return next((found for finder in sys.meta_path if (found := finder.find_spec(name, None)) is not None), None)
