"""Model folders that ask for code or for files elsewhere are refused by name, before any library reads them."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.data.artefacts import check_artefacts
from finetune.data.sources import resolve_model
from finetune.errors import SourceError

pytestmark = pytest.mark.unit

OUTSIDE = ["../secret", "/etc/passwd", "a/b", "..", "C:\\x", "https://x.org/y", "x\0y"]
HOSTILE: list[tuple[str, Any, str]] = [
    *(("model.safetensors.index.json", {"weight_map": {"w": path}}, ".json") for path in OUTSIDE),
    ("model.safetensors.index.json", {"weight_map": {"w": "config.json"}}, ".json"),
    ("model.safetensors.index.json", {"weight_map": {"w": 3}}, ".json"),
    *(("tokenizer_config.json", {"vocab_file": path}, "vocab_file") for path in OUTSIDE),
    *(("tokenizer_config.json", {"merges_file": path}, "merges_file") for path in OUTSIDE),
    *(("tokenizer_config.json", {"init": [{"tokenizer_file": path}]}, "tokenizer_file") for path in OUTSIDE),
    ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    ("config.json", {"model_type": "bert", "text_config": {"auto_map": {"AutoConfig": "x--y.Z"}}}, "auto_map"),
    ("config.json", {"trust_remote_code": True}, "trust_remote_code"),
    ("config.json", {"custom_pipelines": {"x": {"impl": "y.Z"}}}, "custom_pipelines"),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["x.Y", None]}}, "auto_map"),
    ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "x.Y"}}, "auto_map"),
    ("adapter_config.json", {"auto_mapping": {"parent_library": "os", "base_model_class": "system"}}, "auto_mapping"),
    ("generation_config.json", {"custom_generate": "x/y"}, "custom_generate"),
    ("config.json", [1], "config.json"),
    ("config.json", "text", "config.json"),
]


def folder_with(folder: Path, name: str, content: Any) -> Path:
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(("name", "content", "named"), HOSTILE)
def test_hostile_settings_are_named(tmp_path: Path, name: str, content: Any, named: str) -> None:
    with pytest.raises(SourceError) as caught:
        resolve_model(str(folder_with(tmp_path, name, content)), None)
    assert name in str(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe{}", b'{"a": ' + b"[" * 100_000, b""])
def test_broken_json_is_one_message(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "config.json").write_bytes(body)
    with pytest.raises(SourceError, match=r"config\.json"):
        check_artefacts(tmp_path, "m")


def test_a_folder_where_a_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(SourceError, match="no file"):
        check_artefacts(tmp_path, "m")


def test_what_real_model_folders_say_is_allowed(tmp_path: Path) -> None:
    folder_with(
        tmp_path, "tokenizer_config.json", {"vocab_file": "vocab.txt", "name_or_path": "google/bert", "x": None}
    )
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"auto_mapping": None, "base_model_name_or_path": "../base"})
    )
    (tmp_path / "a.safetensors").write_bytes(b"")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    (tmp_path / "vocab.json").write_text('["auto_map"]')
    (tmp_path / "data_config.json").write_text("[1, {}]")  # the default model has such a list
    check_artefacts(tmp_path, "m")
