"""Environment variables of workers, as users write them."""

import pytest

from farm_executor.core.environment import for_slot, shares, variable


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("A=b", ("A", "b")),
        ("A=", ("A", "")),
        ("A=b=c", ("A", "b=c")),
        ("A= b ", ("A", " b ")),
        ("CUDA_VISIBLE_DEVICES={slot}", ("CUDA_VISIBLE_DEVICES", "{slot}")),
        ("A=\udcff", ("A", "\udcff")),  # a byte that is not UTF-8, as the command line hands it down
    ],
)
def test_a_variable_is_a_name_and_all_behind_the_first_equals_sign(text, read):
    assert variable(text) == read


@pytest.mark.parametrize("text", ["", "A", "=", "=1", "A=\0", "\0=1", "A=\ud800"])
def test_what_is_no_variable_is_refused(text):
    with pytest.raises(ValueError, match="is not an environment variable"):
        variable(text)


@pytest.mark.parametrize(
    ("devices", "each", "parts"),
    [
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("GPU-a, GPU-b", 1, ["GPU-a", "GPU-b"]),
        ("0,1,2", 2, ["0,1", "2"]),
        ("", 1, []),
    ],
)
def test_devices_are_divided_among_workers(devices, each, parts):
    assert shares(devices, each) == parts


def test_the_values_of_slots_are_taken_in_turns():
    assert [for_slot([("A", ["x", "{slot}"])], slot) for slot in range(3)] == [
        {"A": "x"},
        {"A": "{slot}"},
        {"A": "x"},
    ]


def test_a_slot_is_put_in_wherever_it_is_named_and_nothing_else_is_touched():
    variables = [("A", "{slot}:{slot}"), ("B", "{x} {} {{slot}}"), ("C", "1"), ("C", "2")]
    assert for_slot(variables, 7) == {"A": "7:7", "B": "{x} {} {7}", "C": "2"}
