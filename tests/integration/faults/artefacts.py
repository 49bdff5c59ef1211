"""Hostile artefacts of every kind: each makes its files, and returns what a user would do with them."""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml

from finetune.cli import main
from finetune.data.archive import Limits, unpack

CANARY = "canary.txt"


class Payload:
    """Unpickling it writes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.canary)!r}, 'w').write('ran')",)


Act = Callable[[], int]
# This process has an Accelerator already, from the real checkpoints' training, and there can be but one kind.
FP32 = ("--output", "out", "--set", "train.precision=fp32")
REVIEWS = "text,label\n" + "".join(
    f"A {word} film about {word}s.,{label}\n" for label in ("good", "bad") for word in "abcdefghijkl"
)


def _model(inner: Path, files: dict[str, Any]) -> Act:
    """A run with a model folder of these files beside a well-formed configuration."""
    model = inner / "model"
    model.mkdir()
    for name, content in {"config.json": {"model_type": "bert", "vocab_size": 10}, **files}.items():
        (model / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    (inner / "reviews.csv").write_text(REVIEWS)
    return lambda: main(["run", "bert_cls", "--data", "reviews.csv", "--set", "model.name=./model", *FP32])


def _pickled(folder: Path, rng: random.Random) -> bytes:
    data = pickle.dumps(Payload(folder / CANARY), protocol=rng.randrange(6))
    if rng.random() < 0.5:
        return data
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:  # as torch.save writes it
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return zipped.getvalue()


def _pickle_weights(inner: Path, folder: Path, real: Path, rng: random.Random) -> Act:
    name = rng.choice(
        [
            "pytorch_model.bin",
            "model.pt",
            "model.pth",
            "model.safetensors",
            "training_args.bin",
            "pytorch_model.bin.index.json",
        ]
    )
    return _model(inner, {name: _pickled(folder, rng)})


def _config_trick(inner: Path, folder: Path, real: Path, rng: random.Random) -> Act:
    weights = struct.pack("<Q", 2) + b"{}"
    key = rng.choice(["auto_map", "auto_mapping", "trust_remote_code", "custom_pipelines"])
    trick = {key: {"AutoModelForSequenceClassification": "evil.Model", "AutoConfig": "evil.Config"}}
    code = f"open({str(folder / CANARY)!r}, 'w').write('ran')".encode()
    where = rng.choice(["config.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json"])
    return _model(inner, {"model.safetensors": weights, where: {"model_type": "bert", **trick}, "evil.py": code})


def _path_trick(inner: Path, folder: Path, real: Path, rng: random.Random) -> Act:
    path = rng.choice(
        [
            "../../../secret.json",
            str(folder / "secret.json"),
            "..\\..\\secret.json",
            "file:///etc/passwd",
            "x/../../../secret.json",
        ]
    )
    if rng.random() < 0.5:
        return _model(inner, {"model.safetensors.index.json": {"weight_map": {"w": path}}})
    return _model(
        inner, {"model.safetensors": struct.pack("<Q", 2) + b"{}", "tokenizer_config.json": {"vocab_file": path}}
    )


def _huge_header(inner: Path, folder: Path, real: Path, rng: random.Random) -> Act:
    length = rng.choice([2**63, 2**40, 2**64 - 1, 100])
    return _model(inner, {"model.safetensors": struct.pack("<Q", length) + b"{" * rng.randrange(200)})


def _yaml_tag(inner: Path, folder: Path, real: Path, rng: random.Random) -> Act:
    code = f"open({str(folder / CANARY)!r}, 'w').write('ran')"
    tags = (
        f'!!python/object/apply:builtins.exec ["{code}"]', "!!python/name:os.system", "!!python/module:antigravity",
        f'!!python/object/new:type [z, !!python/tuple [], {{exec: "{code}"}}]',
        f"!!python/object/apply:os.system ['touch {folder / CANARY}']",
    )  # fmt: skip
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join(['*' + chr(97 + k)] * 9)}]\n" for k in range(8)
    )
    content = (
        bomb if rng.random() < 0.2 else f"{rng.choice(['license', 'finetune', 'pretty_name'])}: {rng.choice(tags)}\n"
    )
    (inner / "card.md").write_text(f"---\n{content}---\n")
    return lambda: main(["data", "check", "card.md"])


def _card_path(inner: Path, folder: Path, real: Path, rng: random.Random) -> Act:
    (folder / "reviews.csv").write_text(REVIEWS)
    file = rng.choice(
        ["../../reviews.csv", str(folder / "reviews.csv"), "..\\..\\reviews.csv", "a/../../../reviews.csv"]
    )
    source = {"path": ".", "files": {"all": file}}
    (inner / "card.md").write_text(f"---\n{yaml.safe_dump({'license': 'mit', 'finetune': {'source': source}})}---\n")
    return lambda: main(["data", "check", "card.md"])


def _archive(inner: Path, folder: Path, real: Path, rng: random.Random) -> Act:
    names = [
        "../../out.txt",
        "/tmp/../" + str(folder / "out.txt"),
        "data/../../../out.txt",
        "..\\..\\out.txt",
        "C:\\out.txt",
        "data/aux.json",
        "data/\0x",
    ]
    way = rng.choice(["name", "link", "bomb", "twice", "many", "device", "tar"])
    path = inner / "evil.whl"
    if way == "tar":
        with tarfile.open(path, "w") as tar:
            info = tarfile.TarInfo("../../out.txt")
            tar.addfile(info)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data/fine.txt", "fine")
            if way == "name":
                archive.writestr(rng.choice(names), "x")
            if way in ("link", "device"):
                info = zipfile.ZipInfo("data/link.txt")
                info.external_attr = ((stat.S_IFLNK if way == "link" else stat.S_IFCHR) | 0o777) << 16
                archive.writestr(info, "../../../secret.json")
            if way == "bomb":
                archive.writestr("data/bomb.txt", bytes(40 << 20))
            if way == "twice":
                import warnings

                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    archive.writestr("data/fine.txt", "other")
            for k in range(60 if way == "many" else 0):
                archive.writestr(f"data/{k}", "x")
    limits = Limits(members=50) if way == "many" else Limits()

    def act() -> int:
        unpack(path, ["data/"], inner / "into", limits=limits)
        return 0

    return act


def _pickled_table(inner: Path, folder: Path, real: Path, rng: random.Random) -> Act:
    """The hole of PyArrow before 14.0.1 (CVE-2023-47248): an extension type that is a pickle in a table's metadata."""
    words = pyarrow.array([f"A {word} film." for word in "abcdefgh"])
    metadata = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Payload(folder / CANARY), 0),
    }
    schema = pyarrow.schema(
        [pyarrow.field("text", pyarrow.string(), metadata=metadata), pyarrow.field("label", pyarrow.string())]
    )
    pyarrow.parquet.write_table(
        pyarrow.table([words, pyarrow.array(["a", "b"] * 4)], schema=schema), inner / "data.parquet"
    )
    return lambda: main(["data", "check", "data.parquet"])


def _pickled_data(inner: Path, folder: Path, real: Path, rng: random.Random) -> Act:
    name = "data" + rng.choice([".csv", ".tsv", ".jsonl", ".parquet", ".pkl", ".npy", ".pt", ".json"])
    (inner / name).write_bytes(_pickled(folder, rng))
    return lambda: main(["data", "check", name])


def _pickled_checkpoint(inner: Path, folder: Path, real: Path, rng: random.Random) -> Act:
    """A checkpoint whose manifest is right, because whoever made it wrote that too."""
    from finetune.checkpoint import Checkpoints
    from finetune.files import sha256_file

    shutil.copytree(real / "update_00000003", inner / "update_00000003")
    victim = inner / "update_00000003" / rng.choice(["state.json", "model.safetensors", "optimizer.safetensors"])
    victim.write_bytes(_pickled(folder, rng))
    manifest = victim.with_name("manifest.json")
    content = json.loads(manifest.read_text())
    content["sha256"][victim.name] = sha256_file(victim)
    manifest.write_text(json.dumps(content))
    return lambda: int(Checkpoints(inner, 1, print).newest() is None)


def _hostile_record(inner: Path, folder: Path, real: Path, rng: random.Random) -> Act:
    """A run folder from elsewhere: its model is looked at before it is loaded; its recipe is code and is the user's."""
    (inner / "run").mkdir()
    record = {
        "status": "completed", "task": "text-classification", "config": {"model": {}}, "data": {"labels": ["a", "b"]},
        "recipe": {"name": "bert_cls", "origin": "packaged", "hash": ""}, "metrics": {},
    }  # fmt: skip
    (inner / "run" / "run.json").write_text(json.dumps(record))
    made = _config_trick if rng.random() < 0.5 else _pickle_weights
    made(inner / "run", folder, real, rng)
    return lambda: main(["predict", "run", "--text", "A dull film."])


KINDS: dict[str, Callable[[Path, Path, Path, random.Random], Act]] = {
    "pickle as weights": _pickle_weights,
    "configuration that asks for code": _config_trick,
    "path that leaves the folder": _path_trick,
    "safetensors header": _huge_header,
    "YAML tag": _yaml_tag,
    "card's path": _card_path,
    "archive": _archive,
    "pickle in a table's metadata": _pickled_table,
    "pickle as data": _pickled_data,
    "pickle in a checkpoint": _pickled_checkpoint,
    "run folder from elsewhere": _hostile_record,
}
