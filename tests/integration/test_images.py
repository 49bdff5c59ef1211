"""Images by the commands of the README: the embedded digits, an own folder, LoRA, and predictions for new files."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from transformers import pipeline

from finetune.cli import main
from finetune.data.letters import LETTERS, render
from tests.forks import forks
from tests.integration.test_launch_line import fresh_accelerate

__all__ = ["fresh_accelerate"]  # a fixture
pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


def _finetune(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return forks().run(arguments, cwd, os.environ)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All digits as PNG files, in class folders, and a table of some of them."""
    root = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    lines = ["path,writer"]
    for row, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = root / "photos" / f"digit {label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(image * 255 / 16).astype(np.uint8)).save(place / f"{row}.png")
        if row < 40:
            lines.append(f"photos/digit {label}/{row}.png,someone")
    (root / "new.csv").write_text("\n".join(lines) + "\n")
    return root


def test_ten_digits_a_class_are_learnt_and_predicted(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = _finetune("run", "resnet_img", "--output", str(run), cwd=folder)
    assert done.returncode == 0, done.stderr
    record = json.loads((run / "run.json").read_text())
    assert record["data"]["rows"] == {"train": 100, "valid": 242, "test": 724}
    # A linear model of the pixels of these 100 images is right for about nine in ten.
    assert record["metrics"]["test"]["accuracy"]["value"] > 0.95
    assert record["gains"]["pixel SVM"]["low"] > 0
    card = (run / "README.md").read_text()
    assert 'pipeline("image-classification", model="model")' in card
    out = tmp_path / "out.csv"
    done = _finetune("predict", str(run), "--file", "new.csv", "--out", str(out), cwd=folder)
    assert done.returncode == 0, done.stderr
    header, first, *rest = out.read_text().splitlines()
    assert header == "path,writer,prediction,probability"
    assert len(rest) == 39
    image = first.split(",")[0]
    single = _finetune("predict", str(run), "--image", image, cwd=folder)
    answer = json.loads(single.stdout)
    assert answer["image"] == image
    assert answer["prediction"] == first.split(",")[2]
    theirs = pipeline("image-classification", str(run / "model"), top_k=1)(str(folder / image))[0]
    assert theirs["label"] == answer["prediction"]
    assert theirs["score"] == pytest.approx(answer["probability"], abs=1e-5)
    wrong = _finetune("predict", str(run), "--text", "seven", cwd=folder)
    assert wrong.returncode == 2
    assert "not of texts" in wrong.stderr


def test_a_folder_with_lora_whose_adapter_holds_the_statistics(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = tmp_path / "run"
    small = ["--set", "data.rows_per_class=4", "--set", "train.max_updates=6", "--set", "objective.baselines=false"]
    done = _finetune("run", "resnet_lora", "--data", "photos", *small, "--output", str(run), cwd=folder)
    assert done.returncode == 0, done.stderr
    record = json.loads((run / "run.json").read_text())
    assert record["data"]["labels"] == [f"digit {number}" for number in range(10)]
    assert record["model"]["trainable"] < record["model"]["parameters"] / 2
    assert {name: part["flips"] for name, part in record["export_check"]["parts"].items()} == {"adapter": 0, "model": 0}
    for name in ("adapter", "model"):
        assert f"{name}/ loaded back: logits differ by at most" in done.stdout
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    means = [tensor for name, tensor in adapter.items() if name.endswith("running_mean")]
    base = load_file(ROOT / "finetune/pretrained/letters_resnet/model.safetensors")
    assert len(means) == len([name for name in base if name.endswith("running_mean")])
    stem = next(
        tensor for name, tensor in adapter.items() if "embedder.embedder" in name and name.endswith("running_mean")
    )
    assert not torch.equal(stem, base["resnet.embedder.embedder.normalization.running_mean"])


def test_adalora_prunes_convolutions(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ["--set", "train.max_updates=20", "--set", "objective.baselines=false", "--set", "adapter.target_r=2"]
    small += ["--set", "adapter.init_r=4", "--set", "adapter.train_modules=normalization"]
    done = _finetune("run", "resnet_img", "--adapter", "adalora", *small, "--output", str(run), cwd=folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads((run / "run.json").read_text())["adapter_summary"]
    assert sum(summary["ranks"].values()) <= summary["budget"]
    assert len(set(summary["ranks"].values())) > 1
    table = done.stdout.partition("ranks that AdaLoRA left\n")[2]
    assert f"{sum(summary['ranks'].values())} ranks in {len(summary['ranks'])} matrices" in table


@pytest.mark.skipif("FINETUNE_DATA" not in os.environ, reason="FINETUNE_DATA names no folder with benchmark data")
def test_a_broken_photograph_stops_before_anything_is_written(tmp_path: Path) -> None:
    photos = Path(os.environ["FINETUNE_DATA"]) / "hymenoptera"
    if not photos.is_dir():
        pytest.skip("hymenoptera is not in FINETUNE_DATA")
    place = tmp_path / "photos"
    for kind in ("ants", "bees"):
        (place / kind).mkdir(parents=True)
        for path in sorted((photos / "train" / kind).iterdir())[:4]:
            (place / kind / path.name).symlink_to(path)
    (place / "ants" / "cut.jpg").write_bytes(next((photos / "train" / "ants").glob("*.jpg")).read_bytes()[:5000])
    done = _finetune("run", "resnet_img", "--data", "photos", "--output", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "1 of 9 images are broken" in done.stderr
    assert "cut.jpg" in done.stderr
    assert not (tmp_path / "out").exists()


def _predicted(capsys: pytest.CaptureFixture[str], run: Path, image: Path) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["predict", str(run), "--image", str(image)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_pretraining_run_names_letters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [part for setting in ("train.max_updates=1", "train.batch_size=16") for part in ("--set", setting)]
    assert main(["run", "resnet_pretrain", *small, "--output", str(tmp_path / "run")]) == 0
    Image.fromarray(render("test")[0][3]).save(tmp_path / "D.png")
    answer = _predicted(capsys, tmp_path / "run", tmp_path / "D.png")
    assert set(answer["probabilities"]) == set(LETTERS)
    theirs = pipeline("image-classification", str(tmp_path / "run" / "model"), top_k=1)(str(tmp_path / "D.png"))[0]
    assert theirs["score"] == pytest.approx(answer["probability"], abs=1e-5)


@pytest.mark.skipif("FINETUNE_DATA" not in os.environ, reason="FINETUNE_DATA names no folder with benchmark data")
@pytest.mark.usefixtures("fresh_accelerate")
def test_a_resnet_for_cifar_is_trained_and_predicts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = Path(os.environ["FINETUNE_DATA"]) / "resnet_cifar10_weights" / "resnet20-12fca82f.th"
    run = tmp_path / "run"
    settings = [f"model.name={weights}", "data.rows_per_class=2", "train.max_updates=1", "objective.baselines=false"]
    small = [part for setting in settings for part in ("--set", setting)]
    assert main(["run", "resnet_img", *small, "--output", str(run)]) == 0
    answer = _predicted(capsys, run, next((folder / "photos" / "digit 3").iterdir()))
    assert set(answer["probabilities"]) == {str(digit) for digit in range(10)}
