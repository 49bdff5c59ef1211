"""`finetune data leaks` on real cards against comparing all pairs, on photos that were altered, and with a run."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from sklearn.feature_extraction.text import CountVectorizer

from finetune.commands import data
from finetune.config import TextClassificationData
from finetune.data.loader import load_data
from finetune.errors import ConfigError

pytestmark = pytest.mark.integration


def leaks(*words: str) -> int:
    parser = argparse.ArgumentParser(prog="finetune")
    data.add(parser.add_subparsers())
    args = parser.parse_args(["data", "leaks", *words])
    return int(args.call(args))


def test_near_duplicates_of_reuters_r8_are_those_of_all_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    leaks("reuters_r8", "--json")
    found = json.loads(capsys.readouterr().out)["leaks"]
    counts = {(leak["split"], leak["kind"]) for leak in found}
    assert counts == {("valid", "near"), ("test", "exact"), ("test", "near")}
    near = {leak["row"]: leak["similarity"] for leak in found if leak["split"] == "test" and leak["kind"] == "near"}
    assert len(near) == 9
    assert sum(leak["kind"] == "exact" for leak in found) == 4

    splits = load_data(TextClassificationData(source="reuters_r8"), {"text": None, "label": None}).splits
    earlier = [*splits["train"]["text"], *splits["valid"]["text"]]
    counter = CountVectorizer(binary=True, ngram_range=(3, 3), token_pattern=r"\w+", dtype=np.int32)
    before_RV = counter.fit_transform(earlier)
    test_RV = counter.transform(splits["test"]["text"])
    # A row's own shingles, also those that no earlier row has.
    sizes = np.asarray(CountVectorizer(**counter.get_params()).fit_transform(splits["test"]["text"]).sum(1)).ravel()
    shared = (test_RV @ before_RV.T).tocoo()
    union = sizes[shared.row] + np.asarray(before_RV.sum(1)).ravel()[shared.col] - shared.data
    alike = shared.data / np.maximum(union, 1)
    best = np.zeros(len(sizes))
    np.maximum.at(best, shared.row, alike)
    exact = {leak["row"] for leak in found if leak["split"] == "test" and leak["kind"] == "exact"}
    expected = {row: best[row] for row in np.flatnonzero(best >= 0.7).tolist() if row not in exact}
    assert near == pytest.approx(expected)


@pytest.mark.skipif("FINETUNE_DATA" not in os.environ, reason="FINETUNE_DATA names no folder with benchmark data")
def test_altered_photos_are_found_and_others_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = sorted((Path(os.environ["FINETUNE_DATA"]) / "hymenoptera" / "train" / "bees").glob("*.jpg"))[:60]
    for split, some in (("train", photos[:30]), ("test", photos[30:])):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
        for number, photo in enumerate(some):
            shutil.copy(photo, tmp_path / split / "ab"[number % 2] / photo.name)
    for number, photo in enumerate(photos[:20]):
        picture = Image.open(photo).convert("RGB")
        place = tmp_path / "test" / "ab"[number % 2] / f"altered_{photo.stem}"
        if number < 5:
            picture.save(place.with_suffix(".jpg"), quality=40)
        elif number < 10:
            picture.resize((picture.width * 2 // 3, picture.height * 2 // 3)).save(place.with_suffix(".png"))
        elif number < 15:
            ImageEnhance.Brightness(picture).enhance(0.8).save(place.with_suffix(".jpg"), quality=90)
        else:
            shutil.copy(photo, place.with_suffix(".jpg"))
    leaks(str(tmp_path), "--json")
    found = [leak for leak in json.loads(capsys.readouterr().out)["leaks"] if leak["split"] == "test"]
    assert sorted(Path(leak["id"]).stem for leak in found) == sorted(f"altered_{photo.stem}" for photo in photos[:20])
    assert all(Path(leak["earlier_id"]).stem == Path(leak["id"]).stem.removeprefix("altered_") for leak in found)
    assert sum(leak["kind"] == "exact" for leak in found) == 5


def test_flags_that_do_nothing_are_refused() -> None:
    for words in (
        ("sms_spam", "--metric", "mcc"),
        ("digits", "--threshold", "0.5"),
        ("sms_spam", "--threshold", "0"),
        ("sms_spam", "--examples", "-1"),
        ("sms_spam", "--set", "data.sauce=3"),
    ):
        with pytest.raises(ConfigError):
            leaks(*words)
