"""Words with tags as windows of sub-words: long sentences are read in overlapping windows, each word judged once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune.data.batching import RowKey
from finetune.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
CHUNK_SENTENCES = 1_000


@dataclass(frozen=True)
class Windows:
    """Rows that a tagger reads. A word's tag stands on its first sub-word, in the one window that owns the word.

    Attributes:
        ids: token ids of all rows end to end, special tokens included, [tokens] int32.
        offsets: row i has ids[offsets[i]:offsets[i + 1]], [rows + 1].
        sentence_ends: words up to the end of each sentence, [sentences].
        owner: row in which each word has most context on both sides, [words].
        position: place of each word's first sub-word in that row, [words].
        tags: class index of each word, [words], or None.
        cut_words: words of more sub-words than a window holds, of which the first ones are kept.
    """

    ids: np.ndarray
    offsets: np.ndarray
    sentence_ends: np.ndarray
    owner: np.ndarray
    position: np.ndarray
    tags: np.ndarray | None
    cut_words: int

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def token_ids(self) -> np.ndarray:
        """Ids of all rows end to end, [tokens]: no others occur."""
        return self.ids

    @property
    def sentences(self) -> int:
        return len(self.sentence_ends)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        return [self._row(key.index) for key in keys]

    def _row(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {"input_ids": self.ids[self.offsets[index] : self.offsets[index + 1]]}
        if self.tags is not None:
            # Owners ascend, because windows and words do.
            words = slice(*np.searchsorted(self.owner, [index, index + 1]))
            labels = np.full(len(row["input_ids"]), IGNORE, dtype=np.int64)
            labels[self.position[words]] = self.tags[words]
            row["labels"] = labels
        return row

    def of_words(self, values_RT: np.ndarray) -> np.ndarray:
        """What stands at each word's place: [rows, tokens] to [words]."""
        return values_RT[self.owner, self.position]

    def by_sentence(self, values: np.ndarray) -> list[np.ndarray]:
        """[words] as one array a sentence."""
        return np.split(values, self.sentence_ends[:-1])


def make_windows(
    sentences: Sequence[Sequence[str]],
    tags: Sequence[Sequence[int]] | None,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    overlap_tokens: int,
) -> Windows:
    """Cut sentences into windows of at most `max_tokens`, special tokens included; most sentences are one window.

    Windows begin at words. The next one begins so early that at most `overlap_tokens` sub-words stand in both.

    Raises:
        ConfigError: the overlap leaves a window no room for anything new.
    """
    front, back = special_tokens(tokenizer)
    room = max_tokens - len(front) - len(back)
    if overlap_tokens >= room:
        raise ConfigError(
            f"data.overlap_tokens={overlap_tokens} leaves nothing of windows of data.max_tokens={max_tokens}.",
            f"Set it below {room}; a quarter of max_tokens is usual.",
        )
    parts: list[np.ndarray] = []
    lengths: list[int] = []
    owners: list[int] = []
    positions: list[int] = []
    cut = 0
    for words in _sub_words(sentences, tokenizer):
        cut += sum(len(word) > room for word in words)
        words = [word[:room] for word in words]
        starts = np.concatenate([[0], np.cumsum([len(word) for word in words])])
        spans = _spans(starts, room, overlap_tokens)
        first_row = len(lengths)
        for first, last in spans:
            row = [*front, *itertools.chain.from_iterable(words[first:last]), *back]
            parts.append(np.array(row, dtype=np.int32))
            lengths.append(len(row))
        for word, chosen in enumerate(_owners(starts, spans)):
            owners.append(first_row + chosen)
            positions.append(len(front) + int(starts[word] - starts[spans[chosen][0]]))
    ends = np.cumsum([len(sentence) for sentence in sentences])
    flat = None if tags is None else np.array(list(itertools.chain.from_iterable(tags)), dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Windows(np.concatenate(parts), offsets, ends, np.array(owners), np.array(positions), flat, cut)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before and behind a text."""
    whole, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    at = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
    return whole[:at], whole[at + len(bare) :]


def _sub_words(sentences: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> list[list[list[int]]]:
    """Sub-words of each word; a word that the tokenizer makes nothing of (a lone variation sign) is unknown to it."""
    found: list[list[list[int]]] = []
    for start in range(0, len(sentences), CHUNK_SENTENCES):
        chunk = [list(sentence) for sentence in sentences[start : start + CHUNK_SENTENCES]]
        encoded = tokenizer(chunk, is_split_into_words=True, add_special_tokens=False, verbose=False)
        for at, sentence in enumerate(chunk):
            words: list[list[int]] = [[] for _ in sentence]
            for token, word in zip(encoded["input_ids"][at], encoded.word_ids(at), strict=True):
                words[word].append(token)
            found.append([word or [tokenizer.unk_token_id or 0] for word in words])
    return found


def _spans(starts: np.ndarray, room: int, overlap: int) -> list[tuple[int, int]]:
    """(first word, word behind the last) of each window of a sentence."""
    words, first = len(starts) - 1, 0
    spans = []
    while True:
        last = int(np.searchsorted(starts, starts[first] + room, side="right")) - 1
        spans.append((first, last))
        if last == words:
            return spans
        first = max(first + 1, int(np.searchsorted(starts, starts[last] - overlap, side="left")))


def _owners(starts: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
    """Window of each word: where the shorter of its two contexts is longest. The sentence's own ends don't count."""
    words = len(starts) - 1
    if len(spans) == 1:
        return np.zeros(words, dtype=np.int64)
    context = np.full((len(spans), words), -1.0)
    for row, (first, last) in enumerate(spans):
        left = starts[first:last] - starts[first] if first else np.full(last - first, np.inf)
        right = starts[last] - starts[first + 1 : last + 1] if last < words else np.full(last - first, np.inf)
        context[row, first:last] = np.minimum(left, right)
    return context.argmax(axis=0)


def pad_windows(rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Rows to input_ids, attention_mask and, where rows have them, labels, [rows, longest] int64 each."""
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {}
    for name, filler in (("input_ids", pad_token_id), ("labels", IGNORE)):
        if name in rows[0]:
            padded_BT = np.full((len(rows), longest), filler, dtype=np.int64)
            for padded, row in zip(padded_BT, rows, strict=True):
                padded[: len(row[name])] = row[name]
            batch[name] = torch.from_numpy(padded_BT)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch["attention_mask"] = (torch.arange(longest)[None, :] < lengths[:, None]).long()
    return batch
