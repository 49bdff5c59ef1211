"""The README's table of faults says what the committed records say."""

from __future__ import annotations

import pytest

from tests.integration.faults import table

pytestmark = pytest.mark.unit


def test_the_readme_has_the_table_that_the_records_give() -> None:
    """Otherwise: python -m tests.integration.faults --table."""
    assert table.committed() == table.made(table.records())


def test_what_the_table_says_of_records() -> None:
    def entry(failures: int, **outcomes: int) -> dict[str, object]:
        kinds = {kind.replace("__", ", ").replace("_", " "): count for kind, count in outcomes.items()}
        return {"done": sum(outcomes.values()), "failures": [{}] * failures, "outcomes": kinds}

    lines = table.made(
        {
            "kills": entry(1, lora__in_save=5, lora__in_training=3, full__in_rotate=2, FAILED=1),
            "trainer: kills": entry(
                0, resumed__same_bits__killed_in_training=4, resumed__other_bits__killed_in_save=1,
                not_resumed__killed_in_save=2, ended_before_the_kill=1,
            ),
            "damage": entry(0, refused=1200),
        }
    ).splitlines()  # fmt: skip
    killed, damaged = (next(line for line in lines if word in line) for word in ("SIGKILL", "damaged"))
    assert killed.split(" | ")[1:] == [
        "10 of 11 with the same bits, 7 killed in a save",
        "5 of 7 resumed, 4 with the same bits, 3 killed in a save",
        "not measured yet |",
    ]
    assert damaged.split(" | ")[1:] == ["1,200 of 1,200 noticed", "not measured yet", "not measured yet |"]
