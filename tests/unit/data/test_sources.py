"""Model names of every kind lead to a checked folder or to one clear error."""

import hashlib
import json
import struct
import zipfile
from pathlib import Path

import pytest

from finetune.data.sources import resolve_model
from finetune.errors import SourceError

pytestmark = pytest.mark.unit


def safetensors(values: bytes = bytes(8)) -> bytes:
    """One float32 tensor of two numbers, written by hand from the format's description."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return struct.pack("<Q", len(header)) + header + values


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder in the current folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(safetensors())
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("written", ["./model", "model", "../{parent}/model", "{absolute}"])
def test_a_local_folder_however_it_is_written(model: Path, written: str) -> None:
    name = written.format(parent=model.parent.name, absolute=model)
    found = resolve_model(name, None)
    assert (found.path, found.name, found.revision) == (model.resolve(), name, None)
    assert found.sha256 == hashlib.sha256(safetensors()).hexdigest()


def shard(model: Path) -> Path:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    (model / "model-00002-of-00002.safetensors").write_bytes(safetensors(b"\1" * 8))
    index = model / "model.safetensors.index.json"
    names = {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": names}))
    return index


def test_the_hash_of_shards_covers_each_of_them(model: Path) -> None:
    shard(model)
    before = resolve_model("./model", None).sha256
    (model / "model-00002-of-00002.safetensors").write_bytes(safetensors(b"\2" * 8))
    assert resolve_model("./model", None).sha256 != before


@pytest.mark.parametrize(
    "target", ["../secret.safetensors", "/etc/secret.safetensors", "a\\b.safetensors", "weights.bin", "", ".."]
)
def test_a_shard_outside_the_folder_is_refused(model: Path, target: str) -> None:
    shard(model).write_text(json.dumps({"weight_map": {"a": target}}))
    with pytest.raises(SourceError, match="no safetensors file of its folder"):
        resolve_model("./model", None)


def test_a_missing_shard_is_named(model: Path) -> None:
    shard(model)
    (model / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SourceError, match=r"model-00002-of-00002\.safetensors is missing"):
        resolve_model("./model", None)


def test_a_missing_folder_suggests_the_nearest(model: Path) -> None:
    with pytest.raises(SourceError, match=r"\./modle does not exist") as caught:
        resolve_model("./modle", None)
    assert "Did you mean model?" in caught.value.fix


def test_a_folder_that_exists_is_never_looked_up_on_the_hub(model: Path) -> None:
    (model / "config.json").unlink()
    with pytest.raises(SourceError, match=r"config\.json is missing"):
        resolve_model("model", None)


def test_a_runs_folder_points_to_its_model(model: Path) -> None:
    with pytest.raises(SourceError, match="no model folder") as caught:
        resolve_model(str(model.parent), None)
    assert str(model) in caught.value.fix


def test_an_adapter_folder_is_told_apart(model: Path) -> None:
    (model / "config.json").rename(model / "adapter_config.json")
    with pytest.raises(SourceError) as caught:
        resolve_model("./model", None)
    assert "adapter" in caught.value.fix


def test_a_file_instead_of_a_folder(model: Path) -> None:
    with pytest.raises(SourceError, match="is a file") as caught:
        resolve_model("model/model.safetensors", None)
    assert "model" in caught.value.fix


def test_pickled_weights_are_not_used(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"no safetensors weights.*pytorch_model\.bin, which can run code"):
        resolve_model("./model", None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a complete safetensors"),
        (safetensors()[:-1], "not a complete safetensors"),
        (safetensors() + b"x", "not a complete safetensors"),
        (struct.pack("<Q", 1 << 62) + b"{}", "not a complete safetensors"),
        (struct.pack("<Q", 2) + b"[]", "not a complete safetensors"),
        (b"\x80\x04" + bytes(100), "not a complete safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "Git LFS pointer"),
    ],
)
def test_torn_weights_are_noticed(model: Path, content: bytes, reason: str) -> None:
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(SourceError, match=reason):
        resolve_model("./model", None)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_config_that_is_no_json_object(model: Path, content: bytes) -> None:
    (model / "config.json").write_bytes(content)
    with pytest.raises(SourceError, match=r"config\.json is not"):
        resolve_model("./model", None)


@pytest.mark.parametrize("name", ["./model", f"pypi:toy==1.0/m/#sha256={'a' * 64}"])
def test_a_revision_is_for_the_hub_only(model: Path, name: str) -> None:
    with pytest.raises(SourceError, match=r"model\.revision=main"):
        resolve_model(name, "main")


@pytest.mark.parametrize("name", ["", "  ", "a\0b", "x" * 5000, "~nobody-of-this-name/model", "a/b/c", "Ünï/cödé"])
def test_names_that_nothing_can_have(model: Path, name: str) -> None:
    with pytest.raises(SourceError):
        resolve_model(name, None)


def test_a_model_in_a_wheel_leaves_code_and_pickles_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "cache/wheels/toy-1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/m/config.json", "{}")
        archive.writestr("toy/m/model.safetensors", safetensors())
        archive.writestr("toy/m/modeling.py", "1/0")
        archive.writestr("toy/m/pytorch_model.bin", "evil")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    found = resolve_model(f"pypi:toy==1.0/toy/m#sha256={digest}", None)
    assert sorted(file.name for file in found.path.iterdir()) == ["config.json", "model.safetensors"]
    assert found.sha256 == hashlib.sha256(safetensors()).hexdigest()
    assert found.revision is None
