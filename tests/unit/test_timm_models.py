"""Folders of timm's models: what could run code or can't be followed is refused before timm reads it."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.errors import ConfigError, FinetuneError
from finetune.timm_models import TimmPreprocessing, check_timm, is_timm

pytestmark = pytest.mark.unit


def written(folder: Path, **changes: Any) -> Path:
    config = {"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": {"input_size": [3, 224, 224]}, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_which_folders_are_timms(tmp_path: Path) -> None:
    assert not is_timm(tmp_path)
    assert is_timm(written(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    assert not is_timm(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture": "hf-hub:someone/model"}, "no name of timm's"),
        ({"architecture": "local-dir:/tmp/model"}, "no name of timm's"),
        ({"architecture": None}, "no name of timm's"),
        ({"architecture": "resnet999"}, "doesn't know"),
        ({"model_args": {"checkpoint_path": "weights.pth"}}, "model_args.checkpoint_path"),
        ({"model_args": {"pretrained": True}}, "model_args.pretrained"),
        ({"model_args": {"features_only": True}}, "model_args.features_only"),
        ({"model_args": ["img_size"]}, "model_args"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    pytest.importorskip("timm")
    check_timm(written(tmp_path, model_args={"img_size": 160}), "x")
    with pytest.raises(FinetuneError) as refused:
        check_timm(written(tmp_path, **changes), "x")
    assert says in refused.value.problem
    assert refused.value.fix or "no name" in says


def test_without_timm_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # so Python finds no module of that name
    with pytest.raises(ConfigError, match="not installed") as refused:
        check_timm(written(tmp_path), "timm/resnet18.a1_in1k")
    assert refused.value.fix == "pip install timm"


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_mode": "squash"}, {"crop_mode": "border"}, {"interpolation": "random"}, {"input_size": (1, 28, 28)},
        {"input_size": (3, 224, 256)}, {"crop_border_pixels": 2},
    ],
)  # fmt: skip
def test_preprocessing_that_cannot_be_followed(changes: dict[str, Any]) -> None:
    config = {
        "input_size": (3, 224, 224), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3,
        "crop_pct": 0.95, "crop_mode": "center",
    }  # fmt: skip
    plain = TimmPreprocessing(SimpleNamespace(data_config=config), "x")
    assert (plain.size["shortest_edge"], plain.crop_size["height"], plain.resample) == (235, 224, 3)
    with pytest.raises(ConfigError, match="can't follow"):
        TimmPreprocessing(SimpleNamespace(data_config=config | changes), "x")
