"""How many cores a process may use: the affinity mask, and the quotas of its control groups."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from farm_executor.wire.cores import usable_cores

CPUS = 8


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CPUS)), raising=False)


def cores(tmp_path: Path, groups: str, files: dict[str, str]) -> float:
    """What a process in these groups may use, where the files say what their quotas are."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return usable_cores(str(tmp_path / "proc"), str(tmp_path / "cgroup"))


@pytest.mark.skipif(sys.platform == "win32", reason="the names have colons")
@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, CPUS),
        ("0::/\n", {}, CPUS),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "400000 100000\n"}, 2),
        ("0::/of/the/host\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/../..\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, CPUS),
        ("0::/\n", {"cpu.max": "rubbish\n"}, CPUS),
        ("0::/\n", {"cpu.max": "0 0\n"}, CPUS),
        (
            "4:cpu,cpuacct:/x\n3:memory:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "75000\n", "cpu/x/cpu.cfs_period_us": "50000\n"},
            1.5,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, CPUS),
        ("3:memory:/x\n", {"memory/x/cpu.max": "100000 100000\n"}, CPUS),
        ("not like this\n", {}, CPUS),
    ],
)
def test_the_smallest_quota_of_its_groups_counts(
    tmp_path: Path, groups: str, files: dict[str, str], expected: float
) -> None:
    assert cores(tmp_path, groups, files) == expected


def test_a_quota_that_is_not_text_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup/cpu.max").write_bytes(b"\xff 1")
    assert cores(tmp_path, "0::/\n", {}) == CPUS


def test_without_groups_the_affinity_mask_counts(tmp_path: Path) -> None:
    assert usable_cores(str(tmp_path / "none"), str(tmp_path / "none")) == CPUS


def test_without_a_mask_all_cores_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert usable_cores(str(tmp_path / "none"), str(tmp_path / "none")) == 3
