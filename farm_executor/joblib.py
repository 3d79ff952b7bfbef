"""joblib's backend "farm": importing this module registers it, and scikit-learn's ``n_jobs`` then runs on a farm.

::

    import joblib

    import farm_executor.joblib

    with joblib.parallel_config("farm", addresses=["hostA:11111", "hostB:11111"]):
        search.fit(X, y)
"""

from __future__ import annotations

try:
    import joblib as _joblib
except ModuleNotFoundError as error:
    if error.name != "joblib":
        raise  # joblib is there, and lacks something itself
    raise ModuleNotFoundError(
        "joblib is not installed here: python -m pip install 'farm_executor[joblib]'", name="joblib"
    ) from None

from farm_executor.integrations.backend import FarmBackend

__all__ = ["FarmBackend"]

_joblib.register_parallel_backend("farm", FarmBackend)
