"""history.jsonl: what a killed run leaves is read as far as it is whole, and cut back when the run goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from finetune.history import History, read_history

pytestmark = pytest.mark.unit


@pytest.fixture
def history(tmp_path: Path) -> History:
    history = History(tmp_path / "history.jsonl")
    for update in range(1, 6):
        history.add({"update": update, "loss": 1 / update})
        if update % 2 == 0:
            history.add({"update": update, "valid": {"accuracy": 0.5}})
    return history


def updates(history: History) -> list[int]:
    assert history.path is not None
    return [line["update"] for line in read_history(history.path)]


def test_lines_come_back_in_order_to_the_bit(history: History) -> None:
    assert updates(history) == [1, 2, 2, 3, 4, 4, 5]
    assert history.path is not None
    assert read_history(history.path)[3] == {"update": 3, "loss": 1 / 3}


@pytest.mark.parametrize(("after", "left"), [(0, []), (2, [1, 2, 2]), (3, [1, 2, 2, 3]), (9, [1, 2, 2, 3, 4, 4, 5])])
def test_cutting_keeps_what_the_checkpoint_had_seen(history: History, after: int, left: list[int]) -> None:
    history.cut_after(after)
    assert updates(history) == left
    history.add({"update": after + 1, "loss": 0.0})
    assert updates(history) == [*left, after + 1]


@pytest.mark.parametrize("tail", ['{"update": 6, "lo', '{"update": 6', "{", "\0\0\0\0", '{"update": 6}'])
def test_half_a_last_line_is_no_line_and_never_grows_into_the_next(history: History, tail: str) -> None:
    assert history.path is not None
    with history.path.open("a") as file:
        file.write(tail)
    assert updates(history)[:7] == [1, 2, 2, 3, 4, 4, 5]
    history.cut_after(5)
    history.add({"update": 6, "loss": 0.25})
    assert [json.loads(line)["update"] for line in history.path.read_text().splitlines()] == [1, 2, 2, 3, 4, 4, 5, 6]


@pytest.mark.parametrize("damage", [b"\xff", b"}", b"\0"])
def test_a_damaged_line_costs_that_line_only(history: History, damage: bytes) -> None:
    assert history.path is not None
    lines = history.path.read_bytes().splitlines(True)
    lines[3] = damage + lines[3]
    history.path.write_bytes(b"".join(lines))
    history.cut_after(9)
    assert updates(history) == [1, 2, 2, 4, 4, 5]


@pytest.mark.parametrize("line", ["3", "null", "[]", '"update"', "{}", '{"update": "x"}'])
def test_a_line_that_is_no_entry_is_passed_over(history: History, line: str) -> None:
    assert history.path is not None
    with history.path.open("a") as file:
        file.write(line + "\n")
    history.cut_after(9)
    assert updates(history) == [1, 2, 2, 3, 4, 4, 5]


def test_json_has_no_infinity(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    history.add({"update": 1, "loss": 0.5, "grad_norm": math.inf})
    history.add({"update": 2, "loss": math.nan, "valid": {"loss": math.nan, "accuracy": 0.5}})
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert json.loads(lines[0], parse_constant=pytest.fail)["grad_norm"] is None
    assert json.loads(lines[1], parse_constant=pytest.fail)["valid"] == {"loss": None, "accuracy": 0.5}


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    history = History(None)
    history.add({"update": 1})
    history.cut_after(0)
    assert list(tmp_path.iterdir()) == []


def test_cutting_what_was_never_written_is_no_error(tmp_path: Path) -> None:
    History(tmp_path / "history.jsonl").cut_after(3)
    assert list(tmp_path.iterdir()) == []
