"""The parts of a masked language model's task that are the same for every recipe: rows, losses, head."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from finetune.data.masking import IGNORE, MaskedBlocks, mask_blocks, masking_rule
from finetune.data.tokens import tokenize
from finetune.data.windows import special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finetune.data.loader import LoadedData
    from finetune.task import Batch
    from finetune.text_settings import MaskedObjective


def mask_splits(
    data: LoadedData,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
    block_tokens: int,
    objective: MaskedObjective,
    seed: int,
) -> dict[str, MaskedBlocks]:
    """Blocks of each split; only those of train are masked anew each epoch."""
    rule = masking_rule(tokenizer, vocabulary, objective.mask_share, objective.whole_words, seed)
    front, back = special_tokens(tokenizer)
    return {
        name: mask_blocks(
            tokenize(split, tokenizer, sys.maxsize, label=None), block_tokens, front, back, rule,
            fixed=name != "train",
        )
        for name, split in data.splits.items()
    }  # fmt: skip


def masked_logits(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the masked tokens alone, [masked, vocabulary], and what they are, [masked].

    The head sees the masked tokens only: a sixth of the work of a vocabulary of 30,000, and of its memory. Everything
    happens inside the model's own forward, so that autocast, adapters and DDP see what they always see.
    """
    asked_BT = batch["labels"] != IGNORE
    head = _head(model)

    def narrow(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        handle.remove()
        return (inputs[0][asked_BT], *inputs[1:])

    handle = head.register_forward_pre_hook(narrow)
    try:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    finally:
        handle.remove()
    return logits, batch["labels"][asked_BT]


def masked_loss_sum(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Sum of the cross-entropy over masked tokens, in fp32."""
    logits_NV, labels_N = masked_logits(model, batch)
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="sum")


def masked_count(batch: Batch) -> torch.Tensor:
    """Masked tokens, a float64 scalar."""
    return (batch["labels"] != IGNORE).sum(dtype=torch.float64)


def masked_sums(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Loss, right predictions and masked tokens of each row, [rows, 3]: what `MaskedJudge` judges."""
    logits_NV, labels_N = masked_logits(model, batch)
    asked_BT = batch["labels"] != IGNORE
    row_N = torch.arange(len(asked_BT), device=asked_BT.device)[:, None].expand_as(asked_BT)[asked_BT]
    losses_N = F.cross_entropy(logits_NV.float(), labels_N, reduction="none")
    right_N = (logits_NV.argmax(-1) == labels_N).float()
    sums = torch.zeros(len(asked_BT), 3, device=asked_BT.device)
    return sums.index_add_(0, row_N, torch.stack([losses_N, right_N, torch.ones_like(losses_N)], dim=1))


def corner_logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Logits of a corner of a batch, [at most 8 rows, at most 64 tokens, vocabulary]: all would be gigabytes."""
    corner = {name: batch[name][:8, :64] for name in ("input_ids", "attention_mask")}
    return model(**corner).logits


def _head(model: torch.nn.Module) -> torch.nn.Module:
    """The module behind the encoder that makes logits (BERT's `cls`, RoBERTa's `lm_head`), found through wrappers."""
    inner: Any = model
    while not hasattr(inner, "get_output_embeddings"):
        inner = inner.module
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    decoder = inner.get_output_embeddings()
    return next(
        child
        for child in inner.children()
        if child is not inner.base_model and any(module is decoder for module in child.modules())
    )
