"""The picture of a run: written, of the right kind, the same each time, and without global state."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from finetune.report.picture import BLUE, ORANGE, result_picture

pytestmark = pytest.mark.unit


def pixels_of(path: Path, colour: str) -> int:
    """Pixels that are nearly of this colour."""
    wanted = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return int((np.abs(image.imread(path)[:, :, :3] - wanted).max(axis=2) < 0.02).sum())


def test_png_shows_the_model_and_the_validation_curve(tmp_path: Path, record: dict, history: list) -> None:
    result_picture(record, tmp_path / "a.png", history)
    assert image.imread(tmp_path / "a.png").shape == (640, 1680, 4)
    assert pixels_of(tmp_path / "a.png", BLUE) > 300
    assert pixels_of(tmp_path / "a.png", ORANGE) > 300


def test_without_history_only_the_scores_are_drawn(tmp_path: Path, record: dict) -> None:
    result_picture(record, tmp_path / "a.png")
    assert image.imread(tmp_path / "a.png").shape == (640, 992, 4)
    assert pixels_of(tmp_path / "a.png", BLUE) > 300
    assert pixels_of(tmp_path / "a.png", ORANGE) == 0


def test_the_same_record_gives_the_same_bytes(tmp_path: Path, record: dict) -> None:
    result_picture(record, tmp_path / "a.png")
    result_picture(record, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_svg_by_suffix(tmp_path: Path, record: dict) -> None:
    result_picture(record, tmp_path / "a.svg")
    assert "<svg" in (tmp_path / "a.svg").read_text()[:1000]


def test_names_that_matplotlib_would_take_for_formulas_or_lacks_a_font_for(tmp_path: Path, record: dict) -> None:
    record["data"]["card"] = "cost $a_$ 评论.csv"
    record["baselines"] = {"a $\\frac{ b$ baseline": record["baselines"]["majority class"]}
    result_picture(record, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


@pytest.mark.parametrize("losses", [[0.5], [0.0, 0.0], [float("nan")] * 3, [1.0, float("inf"), 0.5]])
def test_odd_losses_are_drawn(tmp_path: Path, record: dict, losses: list[float]) -> None:
    result_picture(record, tmp_path / "a.png", [{"update": n, "loss": loss} for n, loss in enumerate(losses, 1)])
    assert (tmp_path / "a.png").stat().st_size > 0


def test_nothing_is_drawn_for_a_run_without_results(tmp_path: Path) -> None:
    result_picture({"status": "failed"}, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_pyplot_is_never_imported() -> None:
    code = "import sys, finetune.report.picture; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_history_beside_the_picture_is_read(tmp_path: Path, record: dict, history: list[dict[str, Any]]) -> None:
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    result_picture(record, tmp_path / "beside.png")
    result_picture(record, tmp_path / "given.png", history)
    assert (tmp_path / "beside.png").read_bytes() == (tmp_path / "given.png").read_bytes()
