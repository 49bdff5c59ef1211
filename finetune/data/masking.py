"""Documents as blocks for a masked language model, with masks that are a function of (seed, epoch, index)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.data.batching import RowKey
from finetune.data.tokens import TokenRows
from finetune.errors import ConfigError
from finetune.randomness import numpy_generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
# BERT's (arXiv:1810.04805): of the chosen tokens so many are masked, so many become a random one, the rest stay.
MASKED, RANDOM = 0.8, 0.1


@dataclass(frozen=True)
class MaskingRule:
    """How tokens are masked.

    Attributes:
        mask_id: the mask token.
        ordinary: ids that may stand in for a token (no special ones), [ids].
        continues: whether a token goes on with the word before it, [vocabulary] bool; all False masks single tokens.
        share: share of the tokens that are to be predicted.
        seed: of the masks.
    """

    mask_id: int
    ordinary: np.ndarray
    continues: np.ndarray
    share: float
    seed: int


@dataclass(frozen=True)
class MaskedBlocks:
    """Blocks of whole documents. Training masks differ by epoch; fixed ones are the same at every evaluation.

    Attributes:
        ids: token ids of all documents end to end, without special tokens, [tokens].
        starts, ends: where each block begins and ends in `ids`, [rows].
        document: the document of each block, [rows].
        front, back: special tokens around a block.
        rule: how tokens are masked.
        fixed: always mask as in epoch 0 of a seed of its own, so that before and after see the same masks.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    document: np.ndarray
    front: list[int]
    back: list[int]
    rule: MaskingRule
    fixed: bool

    @property
    def lengths(self) -> np.ndarray:
        return self.ends - self.starts + len(self.front) + len(self.back)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        return [self._row(key) for key in keys]

    def _row(self, key: RowKey) -> dict[str, Any]:
        purpose = ("fixed mask", 0) if self.fixed else ("mask", key.epoch)
        generator = numpy_generator(self.rule.seed, *purpose, key.index)
        body = np.asarray(self.ids[self.starts[key.index] : self.ends[key.index]], dtype=np.int64)
        shown, labels = mask(body, self.rule, generator)
        front, back = np.array(self.front, dtype=np.int64), np.array(self.back, dtype=np.int64)
        ignored = [np.full(len(some), IGNORE) for some in (front, back)]
        return {
            "input_ids": np.concatenate([front, shown, back]),
            "labels": np.concatenate([ignored[0], labels, ignored[1]]),
        }


def mask(ids: np.ndarray, rule: MaskingRule, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(what the model sees, what it is to predict), [tokens] each; -100 where nothing is asked.

    Words are drawn in a random order until `share` of the tokens (rounded, at least one) is reached; a word that would
    go beyond is passed over, unless it is the first. With single tokens as words that is exactly the share.
    """
    words = np.cumsum(~rule.continues[ids]) - (0 if rule.continues[ids[0]] else 1)
    sizes = np.bincount(words)
    wanted = max(1, round(rule.share * len(ids)))
    taken, chosen = 0, np.zeros(len(sizes), dtype=bool)
    for word in generator.permutation(len(sizes)):
        if taken == 0 or taken + sizes[word] <= wanted:
            chosen[word] = True
            taken += int(sizes[word])
        if taken >= wanted:
            break
    asked = chosen[words]
    labels = np.where(asked, ids, IGNORE)
    kind = generator.random(len(ids))
    stand_ins = rule.ordinary[generator.integers(len(rule.ordinary), size=len(ids))]
    shown = np.where(asked & (kind < MASKED), rule.mask_id, ids)
    shown = np.where(asked & (kind >= MASKED) & (kind < MASKED + RANDOM), stand_ins, shown)
    return shown, labels


def masking_rule(
    tokenizer: PreTrainedTokenizerBase, vocabulary: int, share: float, whole_words: bool, seed: int
) -> MaskingRule:
    """The rule for a tokenizer.

    Raises:
        ConfigError: it has no mask token, or doesn't show where words begin though whole words are asked for.
    """
    if tokenizer.mask_token_id is None:
        raise ConfigError(
            "The model's tokenizer has no mask token.", "Name a masked language model (BERT, RoBERTa and their kin)."
        )
    pieces = {index: token for token, index in tokenizer.get_vocab().items() if index < vocabulary}
    special = set(tokenizer.all_special_ids)
    unused = {index for index, token in pieces.items() if token.startswith("[unused")}
    ordinary = np.array(sorted(set(pieces) - special - unused))
    continues = np.zeros(vocabulary, dtype=bool)
    if whole_words:
        inside = {index for index, token in pieces.items() if token.startswith("##")}
        if not inside:
            begins = {index for index, token in pieces.items() if token.startswith(("Ġ", "▁"))}
            if not begins:
                raise ConfigError(
                    "objective.whole_words=true needs a tokenizer that marks where words begin (## or a space sign).",
                    "Set objective.whole_words=false.",
                )
            inside = set(ordinary.tolist()) - begins
        continues[sorted(inside)] = True
    return MaskingRule(tokenizer.mask_token_id, ordinary, continues, share, seed)


def mask_blocks(
    tokens: TokenRows, block_tokens: int, front: list[int], back: list[int], rule: MaskingRule, *, fixed: bool
) -> MaskedBlocks:
    """Cut documents into blocks of at most `block_tokens`, special tokens included; no block crosses a document's end.

    A document's blocks are of nearly one length, so that none is a stump of a few tokens without context. A cut falls
    between words where whole words are masked, as long as a word is shorter than a block.

    Args:
        tokens: token ids of each document with the special tokens of its tokenizer around them.
    """
    room = block_tokens - len(front) - len(back)
    ids: list[np.ndarray] = []
    starts: list[int] = []
    ends: list[int] = []
    document: list[int] = []
    at = 0
    for number in range(len(tokens)):
        first, last = tokens.offsets[number] + len(front), tokens.offsets[number + 1] - len(back)
        body = np.asarray(tokens.columns["input_ids"][first:last])
        pieces = -(-len(body) // room)
        edges = [round(piece * len(body) / pieces) for piece in range(pieces + 1)] if pieces else [0]
        for place in range(1, len(edges) - 1):
            back_to = edges[place]
            while back_to > edges[place - 1] + 1 and rule.continues[body[back_to]]:
                back_to -= 1
            if not rule.continues[body[back_to]] and edges[place + 1] - back_to <= room:
                edges[place] = back_to
        ids.append(body)
        starts += [at + edge for edge in edges[:-1]]
        ends += [at + edge for edge in edges[1:]]
        document += [number] * (len(edges) - 1)
        at += len(body)
    return MaskedBlocks(
        np.concatenate(ids), np.array(starts), np.array(ends), np.array(document), front, back, rule, fixed
    )
