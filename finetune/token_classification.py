"""The parts of a tagger that are the same for every recipe: rows, loss, outputs, its baseline, entities of a text."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from finetune.data.windows import IGNORE, Windows, make_windows
from finetune.evaluation.entities import spans

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from finetune.data.loader import LoadedData
    from finetune.evaluation.baselines import Baseline
    from finetune.evaluation.predict import Predict
    from finetune.task import Batch

# Words of plain text as annotated sets have them: links and @names whole, 's apart, each other sign by itself.
WORD = re.compile(r"https?://\S+|[@#]\w+|\w+(?:[-.]\w+)*|['’]\w+|[^\w\s]")


def window_splits(
    data: LoadedData, tokenizer: PreTrainedTokenizerBase, max_tokens: int, overlap_tokens: int
) -> dict[str, Windows]:
    """Windows of each split."""
    index = {tag: at for at, tag in enumerate(data.labels)}
    return {
        name: make_windows(
            split["tokens"][:], [[index[tag] for tag in tags] for tags in split["tags"][:]],
            tokenizer, max_tokens, overlap_tokens,
        )
        for name, split in data.splits.items()
    }  # fmt: skip


def tag_loss_sum(logits_BTC: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropy over words (first sub-words; -100 counts nothing), in fp32."""
    return F.cross_entropy(logits_BTC.float().flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORE, reduction="sum")


def word_count(batch: Batch) -> torch.Tensor:
    """Words that `tag_loss_sum` sums over, a float64 scalar."""
    return (batch["labels"] != IGNORE).sum(dtype=torch.float64)


def tags_of_tokens(logits_BTC: torch.Tensor, width: int) -> torch.Tensor:
    """Likeliest tag of every token, then its probability: [rows, 2 x width], what `EntityJudge` judges."""
    probabilities, tags = logits_BTC.float().softmax(-1).max(-1)
    more = (0, width - tags.shape[1])
    return torch.cat([F.pad(tags.float(), more), F.pad(probabilities, more)], dim=1)


def width_of(rows: Mapping[str, Windows]) -> int:
    """The longest row of all splits, in tokens."""
    return max(int(some.lengths.max()) for some in rows.values())


def word_dictionary(data: LoadedData, test: Windows, width: int) -> Callable[[Accelerator, Predict], list[Baseline]]:
    """Each word gets the tag that it has most often in the training rows (ties: the first); unknown words get O."""

    def compute(accelerator: Accelerator, _: Predict) -> list[Baseline]:
        from finetune.evaluation.baselines import Baseline

        if not accelerator.is_main_process:
            return []
        seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
        train = data.splits["train"]
        for words, tags in zip(train["tokens"], train["tags"], strict=True):
            for word, tag in zip(words, tags, strict=True):
                seen[word][tag] += 1
        index = {tag: at for at, tag in enumerate(data.labels)}
        best = {word: index[tags.most_common(1)[0][0]] for word, tags in seen.items()}
        words = [word for sentence in data.splits["test"]["tokens"] for word in sentence]
        outputs = np.zeros((len(test), 2 * width))
        outputs[test.owner, test.position] = [best.get(word, index["O"]) for word in words]
        return [Baseline("dictionary of words", outputs, "each word's commonest tag in train; unknown words are O")]

    return compute


def window_notes(rows: Mapping[str, Windows]) -> list[str]:
    """How many sentences and words the rows are, and what was windowed or cut."""
    notes = [
        "sentences: "
        + ", ".join(f"{name} {some.sentences:,} with {len(some.owner):,} words" for name, some in rows.items())
    ]
    for name, some in rows.items():
        if len(some) > some.sentences:
            notes.append(
                f"{name}: long sentences are read in windows, {len(some) - some.sentences:,} more than sentences"
            )
        if some.cut_words:
            notes.append(
                f"{name}: {some.cut_words:,} words have more sub-words than a window; their first ones are read"
            )
    return notes


def entities_of(
    text: str, words: list[re.Match[str]], tags: list[str], probabilities: np.ndarray, iobes: bool
) -> list[dict[str, Any]]:
    """Entities of a text: where they stand (characters, end excluded), type, and the mean score of their words."""
    return [
        {
            "text": text[words[first].start() : words[last].end()],
            "type": name,
            "score": round(float(probabilities[first : last + 1].mean()), 6),
            "start": words[first].start(),
            "end": words[last].end(),
        }
        for name, first, last in spans(tags, iobes)
    ]
