"""Token ids of every row, computed once, kept memory-mapped in the cache, and never computed again."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.data.batching import RowKey
from finetune.data.cache import cache_folder, disk_errors, turn
from finetune.data.mapped import forget_pages
from finetune.files import sha256_file, sync_file, sync_folder

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

CHUNK_ROWS = 2_000


@dataclass(frozen=True)
class TokenRows:
    """Tokenised rows; reading one touches only its own pages of the file.

    Attributes:
        columns: name to the values of all rows end to end, [tokens]; input_ids, and token_type_ids for pairs.
        offsets: row i has the values offsets[i]:offsets[i + 1], [rows + 1].
        truncated: whether a row was longer than the limit, [rows] bool.
        labels: class index (or score) of each row, [rows], or None.
    """

    columns: Mapping[str, np.ndarray]
    offsets: np.ndarray
    truncated: np.ndarray
    labels: np.ndarray | None = None

    fixed = True  # the same in every epoch

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def token_ids(self) -> np.ndarray:
        """Ids of all rows end to end, [tokens]: no others occur."""
        return self.columns["input_ids"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        for values in self.columns.values():
            forget_pages(values)  # those of the last rows, which were read after they were given
        return [self._row(key.index) for key in keys]

    def _row(self, index: int) -> dict[str, Any]:
        start, end = self.offsets[index], self.offsets[index + 1]
        row: dict[str, Any] = {name: values[start:end] for name, values in self.columns.items()}
        if self.labels is not None:
            row["labels"] = self.labels[index]
        return row


def tokenize(
    split: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    texts: Sequence[str] = ("text",),
    label: str | None = "label",
) -> TokenRows:
    """Token ids of a split, special tokens included, from the cache when the same texts were tokenised before.

    Args:
        texts: one text column, or two for sentence pairs.
        label: column that becomes TokenRows.labels, or None.
    """
    apart = _apart(split)
    key = _key(apart, tokenizer, max_tokens, texts)
    folder = cache_folder("tokens") / key
    # Ranks and parallel runs ask for the same split at the same time: one works, the others wait and read.
    with turn(f"tokens-{key}", "tokenising the same rows"):
        if not (folder / "done").exists():
            with disk_errors(folder.parent):
                _write(apart, tokenizer, max_tokens, texts, folder)
    columns = {path.stem: np.memmap(path, np.int32, mode="r") for path in sorted(folder.glob("*.int32"))}
    offsets, truncated = np.load(folder / "offsets.npy"), np.load(folder / "truncated.npy")
    labels = None if label is None else np.asarray(split.with_format("numpy")[label][:])
    return TokenRows(columns, offsets, truncated, labels)


def _apart(split: datasets.Dataset) -> datasets.Dataset:
    """The same rows from a mapping of their own: its pages go with it, and those of `split` would stay this process's
    memory, as large as all texts."""
    files, formatting = split.cache_files, split.format
    plain = formatting["type"] is None and formatting["columns"] == split.column_names
    if len(files) != 1 or not plain:  # of several files, in memory, or varied when they are read
        return split
    try:
        again = type(split).from_file(files[0]["filename"])
    except (OSError, ValueError):  # no longer there, or another file by now
        return split
    # Rows that were chosen by an index, or whose columns were renamed, have another fingerprint than their file.
    return again if again._fingerprint == split._fingerprint else split


def _key(split: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_tokens: int, texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    code = sha256_file(Path(__file__))  # rows kept by other code than this are not taken for this code's
    for part in (code, type(tokenizer).__name__, _vocabulary(tokenizer), str(max_tokens), *texts):
        digest.update(part.encode() + b"\0")
    for start in range(0, len(split), CHUNK_ROWS):
        rows = split[start : start + CHUNK_ROWS]
        for name in texts:
            for text in rows[name]:
                digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:32]


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that decides a text's ids. Truncation and padding are states of the last call, so they are left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return json.dumps(sorted(tokenizer.get_vocab().items()))
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        return str(backend.to_str())
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def _write(
    split: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_tokens: int, texts: Sequence[str], folder: Path
) -> None:
    names = ["input_ids"] + (["token_type_ids"] if len(texts) == 2 and _uses_token_types(tokenizer) else [])
    # Straight to the disk, so that a million rows need no more memory than a thousand.
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tokens-"))
    offsets, truncated = array("q", [0]), array("b")
    try:
        with contextlib.ExitStack() as files:
            written = {name: files.enter_context((temporary / f"{name}.int32").open("wb")) for name in names}
            for start in range(0, len(split), CHUNK_ROWS):
                rows = split[start : start + CHUNK_ROWS]
                coded, too_long = _coded(tokenizer, [list(rows[name]) for name in texts], names, max_tokens)
                for ids in coded["input_ids"]:
                    offsets.append(offsets[-1] + len(ids))
                truncated.extend(too_long)
                for name, file in written.items():
                    file.write(np.fromiter(itertools.chain.from_iterable(coded[name]), np.int32).tobytes())
        np.save(temporary / "offsets.npy", np.asarray(offsets))
        np.save(temporary / "truncated.npy", np.asarray(truncated, dtype=bool))
        for path in temporary.iterdir():
            sync_file(path)
        (temporary / "done").touch()
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _coded(
    tokenizer: PreTrainedTokenizerBase, columns: list[list[str]], names: Sequence[str], max_tokens: int
) -> tuple[dict[str, list[list[int]]], list[bool]]:
    """Values of each row by name, and whether the row was cut.

    Encoded whole first, so that what is cut off is known exactly and not guessed from "length == limit"; only what is
    too long is encoded again, because a pair is cut at the longer text's end and special tokens stay.
    """
    whole = tokenizer(*columns, truncation=False, return_attention_mask=False, verbose=False)
    coded = {name: list(whole[name]) for name in names}
    too_long = [len(ids) > max_tokens for ids in coded["input_ids"]]
    again = [row for row, long in enumerate(too_long) if long]
    if again:
        long_columns = [[texts[row] for row in again] for texts in columns]
        cut = tokenizer(*long_columns, truncation=True, max_length=max_tokens, return_attention_mask=False)
        for name in names:
            for row, ids in zip(again, cut[name], strict=True):
                coded[name][row] = ids
    return coded, too_long


def _uses_token_types(tokenizer: PreTrainedTokenizerBase) -> bool:
    return "token_type_ids" in tokenizer.model_input_names


def pad_tokens(rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
    """Rows to a batch: input_ids and attention_mask [rows, longest], and what else the rows have.

    Tensors are made by NumPy in one copy; `tokenizer.pad` builds Python lists and takes several times as long.
    """
    import torch

    lengths = np.array([len(row["input_ids"]) for row in rows])
    mask_BT = np.arange(lengths.max())[None, :] < lengths[:, None]
    batch: dict[str, Any] = {}
    for name in rows[0]:
        if name == "labels":
            batch[name] = torch.as_tensor(np.array([row[name] for row in rows]))
            continue
        padded_BT = np.full(mask_BT.shape, pad_token_id if name == "input_ids" else 0, dtype=np.int64)
        padded_BT[mask_BT] = np.concatenate([row[name] for row in rows])
        batch[name] = torch.from_numpy(padded_BT)
    batch["attention_mask"] = torch.from_numpy(mask_BT.astype(np.int64))
    return batch
