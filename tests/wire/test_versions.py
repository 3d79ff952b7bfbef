"""Tests of `farm_executor.wire.versions`."""

import importlib.metadata
import sys

import cloudpickle
import pytest
import tblib

from farm_executor.wire import versions


@pytest.fixture(autouse=True)
def _look_anew():
    versions.local_versions.cache_clear()
    yield
    versions.local_versions.cache_clear()


def test_they_are_those_of_this_process():
    found = versions.local_versions()

    assert (found.cloudpickle, found.tblib) == (cloudpickle.__version__, tblib.__version__)
    assert found.python.endswith(f"{sys.version_info[0]}.{sys.version_info[1]}")


def test_the_first_folder_of_the_path_that_has_the_package_counts(monkeypatch, tmp_path):
    (tmp_path / "cloudpickle-9.8.dist-info").mkdir()
    (tmp_path / "cloudpickle_other-1.0.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "missing"), str(tmp_path), *sys.path])

    assert versions.local_versions().cloudpickle == "9.8"


def test_a_package_installed_in_another_way_is_found_too(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(importlib.metadata, "version", lambda package: f"that of {package}")

    assert versions.local_versions().tblib == "that of tblib"
