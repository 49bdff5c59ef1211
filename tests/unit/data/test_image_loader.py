"""Images from folders, tables and cards: splits, twins, broken files, and the cache."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from finetune.data import image_cache, image_sources
from finetune.data.image_loader import Resizing, load_images
from finetune.errors import ConfigError, DataError
from finetune.image_settings import ImageData

pytestmark = pytest.mark.unit
SMALL = Resizing(16, 3, 16)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Digits 0 to 2 as PNG files in class folders below `photos`, or below the given splits of it."""
    digits = load_digits()

    def make(*splits: str, rows: int = 120) -> Path:
        for row in np.flatnonzero(digits.target < 3)[:rows]:
            place = tmp_path / "photos" / (splits[row % len(splits)] if splits else "") / "abc"[digits.target[row]]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[row] * 15).astype(np.uint8)).save(place / f"{row}.png")
        return tmp_path / "photos"

    return make


def test_digits_as_the_card_has_them() -> None:
    data, rows = load_images(ImageData(source="digits"), SMALL)
    assert data.card is not None
    block = data.card.block
    assert {split: len(some) for split, some in rows.items()} == block.rows
    assert list(data.labels) == block.labels
    for label, counts in block.label_counts.items():
        assert counts == {split: int((some.labels == int(label)).sum()) for split, some in rows.items()}
    assert not any("same pixels" in note for note in data.notes)
    digits = load_digits()
    index = int(data.splits["test"]["id"][5])
    assert rows["test"].labels[5] == digits.target[index]
    assert rows["test"].image(5).shape == (3, 16, 16)


def test_rows_per_class_keeps_the_rest_as_it_is() -> None:
    whole, few = (load_images(ImageData(source="digits", rows_per_class=n), SMALL) for n in (0, None))
    assert np.bincount(few[1]["train"].labels).tolist() == [10] * 10
    for split in ("valid", "test"):
        assert few[0].splits[split]["id"][:] == whole[0].splits[split]["id"][:]
    assert set(few[0].splits["train"]["id"][:]) < set(whole[0].splits["train"]["id"][:])
    with pytest.raises(DataError, match=r"fewer than data\.rows_per_class=500"):
        load_images(ImageData(source="digits", rows_per_class=500), SMALL)


def test_class_folders_and_twins_stay_together(folder: Callable[..., Path]) -> None:
    root = folder()
    for place in list(root.glob("*/*.png")):
        (place.parent / f"copy-{place.name}").write_bytes(place.read_bytes())
    data, _ = load_images(ImageData(source=str(root)), SMALL)
    assert data.labels == ("a", "b", "c")
    assert "120 images have the same pixels as one before them" in data.notes
    where = {name: split for split, table in data.splits.items() for name in table["id"][:]}
    assert len(where) == 240
    assert all(where[name] == where[name.replace("copy-", "")] for name in where)
    moved, _ = load_images(ImageData(source=str(root), split_salt="other"), SMALL)
    assert moved.sha256 != data.sha256
    again, _ = load_images(ImageData(source=str(root)), SMALL)
    assert again.sha256 == data.sha256


def test_folders_named_after_splits(folder: Callable[..., Path]) -> None:
    root = folder("train", "val", "test")
    data, _ = load_images(ImageData(source=str(root)), SMALL)
    for split, name in {"train": "train", "valid": "val", "test": "test"}.items():
        assert all(some.startswith(f"{name}/") for some in data.splits[split]["id"][:])


def test_a_table_of_paths_and_one_with_the_images_inside(folder: Callable[..., Path]) -> None:
    root = folder()
    files = sorted(root.glob("*/*.png"))
    (root / "list.csv").write_text(
        "file,label\n" + "".join(f"{file.relative_to(root)},{file.parent.name}\n" for file in files)
    )
    by_path, _ = load_images(ImageData(source=str(root / "list.csv")), SMALL)
    table = {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "label": [file.parent.name for file in files],
    }
    pq.write_table(pa.table(table), root / "images.parquet")
    inside, _ = load_images(ImageData(source=str(root / "images.parquet")), SMALL)
    assert by_path.sha256 == inside.sha256
    (root / "bad.csv").write_text("file,label\na/nothing.png,a\n")
    with pytest.raises(DataError, match=r"bad\.csv, line 2: there is no file"):
        load_images(ImageData(source=str(root / "bad.csv")), SMALL)


def test_a_hub_set_of_images_at_its_revision(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Parquet files, with the images inside and the splits in their names."""
    files = sorted(folder().glob("*/*.png"))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for number, split in enumerate(("train", "validation", "test")):
        some = files[number::3]
        table = {
            "image": [{"bytes": file.read_bytes(), "path": None} for file in some],
            "label": [file.parent.name for file in some],
        }
        pq.write_table(pa.table(table), tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    asked = []
    monkeypatch.setattr(image_sources, "hub_data_files", lambda *given: asked.append(given) or tmp_path / "hub")
    data, rows = load_images(ImageData(source="someone/digits", revision="abc"), SMALL)
    assert asked == [("someone/digits", "abc")]
    assert {split: len(some) for split, some in rows.items()} == {"train": 40, "valid": 40, "test": 40}
    assert data.labels == ("a", "b", "c")


def test_broken_images_are_refused_or_left_out_aloud(folder: Callable[..., Path]) -> None:
    root = folder()
    for name in ("x.jpg", "y.jpg"):
        (root / "a" / name).write_bytes(b"no image")
    (root / "a" / "Thumbs.db").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 122 images are broken: .*x\.jpg: it is no image") as refused:
        load_images(ImageData(source=str(root)), SMALL)
    assert "data.skip_broken=true" in str(refused.value)
    data, rows = load_images(ImageData(source=str(root), skip_broken=True), SMALL)
    assert sum(map(len, rows.values())) == 120
    assert any(note.startswith("2 of 122 images are broken") for note in data.notes)
    assert any("Thumbs.db" in note for note in data.notes)


def test_images_above_the_pixel_cap_are_named_or_left_out(folder: Callable[..., Path]) -> None:
    root = folder()
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(root / "a" / "large.png")
    capped = {"source": str(root), "max_megapixels": 0.002}
    with pytest.raises(DataError, match=r"1 of 121 images are broken: .*large\.png: its header says 60 x 40 pixels"):
        load_images(ImageData(**capped), SMALL)
    data, rows = load_images(ImageData(**capped, skip_broken=True), SMALL)
    assert sum(map(len, rows.values())) == 120
    assert any("1 of 121 images are broken" in note for note in data.notes)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"source": "digit"}, "Did you mean digits"),
        ({"source": "movie_snippets"}, "no image column"),
        ({"source": "digits", "revision": "main"}, "goes with a hub id"),
        ({"source": "digits", "image": "x"}, "stated by the card"),
    ],
)
def test_sources_that_mean_nothing(settings: dict[str, str], says: str) -> None:
    with pytest.raises((ConfigError, DataError), match=says):
        load_images(ImageData(**settings), SMALL)


def test_images_beside_class_folders_are_refused(folder: Callable[..., Path]) -> None:
    root = folder()
    next(root.glob("a/*.png")).rename(root / "loose.png")
    with pytest.raises(DataError, match="stands in no class folder"):
        load_images(ImageData(source=str(root)), SMALL)


def test_decoded_once_and_again_when_damaged(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder()
    first, rows = load_images(ImageData(source=str(root)), SMALL)
    before = rows["train"].image(0).clone()
    del rows
    calls = []
    decode = image_cache.decode
    monkeypatch.setattr(image_cache, "decode", lambda *given: calls.append(1) or decode(*given))
    load_images(ImageData(source=str(root)), SMALL)
    assert not calls
    (kept,) = (tmp_path / "cache" / "images").iterdir()
    (kept / "heights.npy").write_bytes(b"damaged")
    again, rows = load_images(ImageData(source=str(root)), SMALL)
    assert len(calls) == 120
    assert "decoding them again" in capsys.readouterr().err
    assert again.sha256 == first.sha256
    assert rows["train"].image(0).equal(before)


def test_data_check_counts_images(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    from finetune.cli import main

    root = folder()
    assert main(["data", "check", str(root)]) == 0
    said = capsys.readouterr().out
    assert "photos: 120 images" in said
    assert "A run can train on this data." in said
    (root / "b" / "x.jpg").write_bytes(b"no image")
    assert main(["data", "check", str(root)]) == 1
    assert "x.jpg: it is no image" in capsys.readouterr().out
    assert main(["data", "check", str(root), "--set", "data.skip_broken=true"]) == 0
