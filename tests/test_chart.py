"""The documentation's chart is drawn from the figures that are committed beside it, and says what they say."""

import datetime as dt
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from bench import chart

STATIC = Path(__file__).parents[1] / "docs" / "_static"


@pytest.fixture
def figures():
    return json.loads((STATIC / "bench.json").read_text("utf-8"))


def test_the_pictures_are_those_of_the_figures(figures):
    """`nox -s bench -- --svg` writes all of them."""
    drawn = chart.pictures(figures)

    assert {name: (STATIC / name).read_text("utf-8") for name in drawn} == drawn


def test_the_figures_say_when_and_where_they_were_taken(figures):
    assert dt.date.fromisoformat(figures["date"])
    assert figures["machine"]
    assert "Python" in figures["about"]
    assert {group.title for group in chart.GROUPS} == {row["title"] for row in figures["rows"]}


def test_bars_are_as_long_as_their_figures(figures):
    for row in figures["rows"]:
        root = ET.fromstring(chart.draw({**figures, "rows": [row]}))
        lengths = [float(bar.get("width")) for bar in root.iter("{http://www.w3.org/2000/svg}rect")]
        values = list(row["figures"].values())
        longest = max(lengths)

        assert len(lengths) == len(values)
        for length, value in zip(lengths, values, strict=True):
            assert length == pytest.approx(max(value / max(values) * longest, 1.0), abs=0.1)


def test_no_bar_is_wider_than_the_picture(figures):
    for name in chart.pictures(figures):
        root = ET.parse(STATIC / name).getroot()

        assert max(float(bar.get("x")) + float(bar.get("width")) for bar in root.iter() if bar.get("width")) < 700
