"""Converting GGUF files: once, whole, checked on each use; what converts them is replaced by a stub."""

from pathlib import Path

import pytest

from finetune.data import gguf
from finetune.data.gguf import converted_model
from finetune.errors import SourceError

pytestmark = pytest.mark.unit


@pytest.fixture
def conversions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    done: list[Path] = []

    def save(source: Path, folder: Path, name: str) -> None:
        done.append(folder)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(source.read_bytes())

    monkeypatch.setattr(gguf, "_save", save)
    return done


def put(path: Path, content: bytes = b"GGUF weights") -> Path:
    path.write_bytes(content)
    return path


def test_a_file_is_converted_once_for_each_content(conversions: list[Path], tmp_path: Path) -> None:
    path = put(tmp_path / "a.gguf")
    folder = converted_model(path, "a")
    assert converted_model(path, "a") == folder
    assert len(conversions) == 1
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert converted_model(put(path, b"GGUF others"), "a") != folder
    assert len(conversions) == 2


@pytest.mark.parametrize("damage", ["changed", "missing", "stranger", "manifest"])
def test_a_damaged_folder_is_converted_again_and_said(
    damage: str, conversions: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = converted_model(put(tmp_path / "a.gguf"), "a")
    if damage == "changed":
        (folder / "model.safetensors").write_bytes(b"GGUF weightz")
    elif damage == "missing":
        (folder / "config.json").unlink()
    elif damage == "stranger":
        (folder / "model.bin").write_bytes(b"x")
    else:
        (folder / gguf.MANIFEST).write_text("[]")
    assert converted_model(tmp_path / "a.gguf", "a") == folder
    assert len(conversions) == 2
    assert "is damaged" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == b"GGUF weights"
    assert not (folder / "model.bin").exists()


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))

    def save(source: Path, folder: Path, name: str) -> None:
        (folder / "config.json").write_text("{}")
        raise SourceError("no")

    monkeypatch.setattr(gguf, "_save", save)
    with pytest.raises(SourceError):
        converted_model(put(tmp_path / "a.gguf"), "a")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_what_is_no_gguf_file_is_refused(conversions: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not a GGUF file"):
        converted_model(put(tmp_path / "a.gguf", b"PK\x03\x04"), "a")
    with pytest.raises(SourceError, match="can't be read"):
        converted_model(tmp_path / "none.gguf", "a")
    assert conversions == []
