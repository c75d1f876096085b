"""Columns that only some studies have."""

from __future__ import annotations

from autoprune.report import extras

FLOAT = {
    "accuracy": 0.9, "float_accuracy": 0.9, "deployed_bytes": 10240.0, "deployed_bytes_fraction": 0.5,
    "deployed_activation_bytes": 4096.0, "deployed_activation_bytes_fraction": 0.75,
    "deployed_energy_uj": 12.0, "deployed_energy_uj_fraction": 0.8,
}  # fmt: skip
INT8 = FLOAT | {"accuracy": 0.875, "int8_accuracy": 0.875, "int8_bytes": 3072.0, "float_bytes": 9000.0,
                "deployed_bytes": 3072.0, "deployed_bytes_fraction": 0.15}  # fmt: skip


def test_a_plain_study_has_no_more_columns() -> None:
    assert extras.headings([{"accuracy": 0.9}]) == []
    assert extras.legend([]) == ""


def test_an_int8_file_beside_the_float_model() -> None:
    shown = extras.headings([{"accuracy": 0.9}, {"accuracy": 0.9, "int8_accuracy": 0.875, "int8_bytes": 3072.0}])
    assert shown == ["int8", "int8 size"]
    assert extras.cells({"int8_accuracy": 0.875, "int8_bytes": 3072.0}, shown) == ["87.50 %", "3 KiB"]
    assert extras.cells({"accuracy": 0.9}, shown) == ["-", "-"]
    assert "all other accuracies are float32" in extras.legend(shown)


def test_a_study_of_what_is_deployed_says_which_file_is_meant() -> None:
    shown = extras.headings([FLOAT, INT8])
    assert shown == ["file", "size", "memory", "energy", "float32"]
    assert extras.cells(INT8, shown) == ["int8", "3 KiB (15 %)", "4 KiB (75 %)", "12 uJ (80 %)", "90.00 %"]
    assert extras.cells(FLOAT, shown)[:2] == ["float32", "10 KiB (50 %)"]
    assert extras.cells({"accuracy": 0.9}, shown) == ["-"] * 5
    told = extras.legend(shown)
    assert "Accuracies are those of what is deployed" in told
    assert "all other accuracies are float32" not in told


def test_epsilons_that_differ_stand_in_the_cells() -> None:
    rows = [{"certified_accuracy": 0.5, "certified_epsilon": e} for e in (0.01, 0.02)]
    assert extras.headings(rows[:1]) == ["certified (0.01)"]
    shown = extras.headings(rows)
    assert shown == ["certified"]
    assert extras.cells(rows[1], shown) == ["50.00 % (0.02)"]


def test_a_short_line_has_only_what_is_an_objective() -> None:
    shown = extras.headings([FLOAT, INT8], ["accuracy", "memory"])
    assert shown == ["file", "memory"]
    assert extras.cells(INT8, shown) == ["int8", "4 KiB (75 %)"]
    told = extras.legend(shown)
    assert "memory: activations" in told
    assert "size:" not in told
