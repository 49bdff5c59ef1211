"""Documents as blocks of tokens for a causal language model: every token a target exactly once an epoch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune.data.batching import RowKey
from finetune.data.tokens import TokenRows
from finetune.randomness import numpy_generator

IGNORE = -100


@dataclass(frozen=True)
class Blocks:
    """Rows of at most `block_tokens` targets each, with the token before every target as its input.

    Attributes:
        ids: token ids of the streams that blocks are cut from, end to end, [tokens] int32.
        starts: where in `ids` the first input of each block is, [rows].
        targets: number of targets of each block, [rows]; they are ids[start + 1 : start + targets + 1].
        document_ends: where each document's last target is in `ids`, plus 1, [documents] ascending.
    """

    ids: np.ndarray
    starts: np.ndarray
    targets: np.ndarray
    document_ends: np.ndarray
    block_tokens: int

    @property
    def lengths(self) -> np.ndarray:
        return self.targets

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        return [self._row(int(self.starts[key.index]), int(self.targets[key.index])) for key in keys]

    def _row(self, start: int, targets: int) -> dict[str, Any]:
        ids = self.ids[start : start + targets + 1]
        return {"input_ids": ids[:-1], "targets": ids[1:]}

    def documents(self) -> np.ndarray:
        """The document of every target, [rows, block_tokens]; -1 beyond a block's end."""
        places = self.starts[:, None] + 1 + np.arange(self.block_tokens)[None, :]
        found = np.searchsorted(self.document_ends, places, side="right")
        return np.where(np.arange(self.block_tokens)[None, :] < self.targets[:, None], found, -1)


def pack(tokens: TokenRows, block_tokens: int, *, before: int | None, end: int | None, across: bool = False) -> Blocks:
    """Cut documents into blocks. A block's last target is also the next block's first input, and there no target.

    So a document of n tokens gives n + 1 targets: its first token is predicted from `before`, its end from its last
    token. The last block of a document is short; nothing is dropped, repeated or filled up.

    Args:
        tokens: token ids of each document as its tokenizer made them.
        before: what a document's first token is predicted from, unless the tokenizer put it there already. None: the
            first token is an input only.
        end: what is predicted at a document's end, unless it stands there already; None for nothing.
        across: join all documents to one stream and let blocks cross their ends (all are full but the last); only
            the first document has `before` then, since the others follow an end.
    """
    ids, offsets = tokens.columns["input_ids"], tokens.offsets
    parts: list[np.ndarray] = []
    document_ends: list[int] = []
    segments: list[tuple[int, int]] = []  # first input and last target of every stretch that blocks are cut from
    length = 0
    for first, last in itertools.pairwise(offsets.tolist()):
        document = np.asarray(ids[first:last], dtype=np.int32)
        front = [before] if before is not None and (not len(document) or document[0] != before) else []
        if across and parts:
            front, document = [], document[1:] if before is not None and document[:1] == [before] else document
        back = [end] if end is not None and (not len(document) or document[-1] != end) else []
        whole = np.concatenate([np.array(front, np.int32), document, np.array(back, np.int32)])
        segments.append((length, length + len(whole) - 1))
        parts.append(whole)
        length += len(whole)
        document_ends.append(length)
    if across:
        segments = [(0, length - 1)]
    starts = [np.arange(first, last, block_tokens) for first, last in segments]
    rows = np.concatenate(starts)
    ends = np.repeat([last for _, last in segments], [len(some) for some in starts])
    return Blocks(
        np.concatenate(parts), rows, np.minimum(block_tokens, ends - rows), np.array(document_ends), block_tokens
    )


@dataclass(frozen=True)
class RandomBlocks:
    """Blocks that begin anywhere in a stream, drawn anew each epoch: a function of (seed, epoch, index), as nanoGPT's.

    As many rows an epoch as the stream has blocks, so an epoch costs as much as one of `Blocks`; but a token may be a
    target twice in it, or not at all.
    """

    blocks: Blocks
    seed: int

    @property
    def lengths(self) -> None:
        return None

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        width = min(self.blocks.block_tokens, len(self.blocks.ids) - 1)
        most = len(self.blocks.ids) - width
        return [
            self.blocks._row(int(numpy_generator(self.seed, "block", key.epoch, key.index).integers(most)), width)
            for key in keys
        ]


def pad_blocks(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows to input_ids and targets, [rows, longest] int64 each; beyond a row's end 0 and IGNORE.

    Padding is known by position and not by the token's id, so that a tokenizer whose padding token is its end token
    keeps the real ends as targets. No attention mask: nothing attends to what stands to its right.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {}
    for name, filler in (("input_ids", 0), ("targets", IGNORE)):
        padded_BT = np.full((len(rows), longest), filler, dtype=np.int64)
        for row, values in zip(padded_BT, (row[name] for row in rows), strict=True):
            row[: len(values)] = values
        batch[name] = torch.from_numpy(padded_BT)
    return batch
