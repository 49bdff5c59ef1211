"""Small data sets in every kind of file, and the one way in which a bad one must be refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.config import TextClassificationData
from finetune.data.loader import LoadedData, load_data
from finetune.errors import FinetuneError

Write = Callable[[Path], None]
# name, what writes the files, data.source and other settings, words of the message, words of the fix
Case = tuple[str, Write, str, list[str], str]

GOOD = [(f"{'fine' if i % 2 else 'poor'} film number {i}", "pos" if i % 2 else "neg") for i in range(200)]


def csv(rows: list[tuple[str, str]], header: str = "text,label") -> bytes:
    return "\n".join([header, *(f"{text},{label}" for text, label in rows), ""]).encode()


def jsonl(rows: list[object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def objects(rows: list[tuple[str, str]]) -> list[object]:
    return [{"text": text, "label": label} for text, label in rows]


def parquet(path: Path, **columns: list[object]) -> None:
    pq.write_table(pa.table(columns), path)


def put(files: dict[str, bytes]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    return write


def card(block: str, front: str = "license: mit\nlanguage: [en]\n") -> bytes:
    return f"---\n{front}finetune:\n{block}---\n# toy\n".encode()


PLAIN = (
    "  task: text-classification\n  source: {path: ., files: {all: d.csv}}\n"
    "  columns: {text: text, label: label}\n  labels: [neg, pos]\n"
)


def load(source: str) -> LoadedData:
    """Load "SOURCE key=value key=value" as a classification."""
    name, *overrides = source.split() or [source]
    settings = TextClassificationData(source=name)
    for override in overrides:
        key, _, value = override.partition("=")
        setattr(settings, key, value)
    return load_data(settings, {"text": settings.text, "label": settings.label})


def files_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the place, the fix says what to do, and nothing was written or changed."""
    _, write, source, words, fix = case
    home, cache = folder / "home", folder / "cache"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("FINETUNE_CACHE", str(cache))
    write(home)
    before = files_below(home)
    with pytest.raises(FinetuneError) as caught:
        load(source)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in caught.value.problem
    assert fix in caught.value.fix
    assert files_below(home) == before
    # Locks and the cache's own tag may stay; a row may not.
    assert {path.name for path in files_below(cache) if path.suffix != ".lock"} <= {"CACHEDIR.TAG"}
