"""An encoder's layers without padding: they compute a batch's real tokens one after another, as if they were one text.

Attention alone sees texts, padded, and each by itself. It serves `BertEncoder` without touching it, as
`finetune.dropout` serves every dropout. What it computes is the same but for rounding and the place of dropout masks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

# Moving tokens costs something too: with less padding than a tenth the batch stays as it is.
MOST_REAL = 0.9
# oneDNN compiles for each number of tokens and keeps what it compiled: few_shot_cls peaks at 1.42 GB and not 1.52.
TOKENS_STEP = 32


@dataclass(frozen=True)
class Layout:
    """Where the tokens that are computed stand in a padded batch.

    Attributes:
        keep_BT: bool, true where a token is real.
        places_N: indices into the flattened batch, [B x T]: all real tokens, and padding up to a multiple of
            `TOKENS_STEP`, which no attention looks at.
    """

    keep_BT: torch.Tensor
    places_N: torch.Tensor

    @staticmethod
    def of(keep_BT: torch.Tensor) -> Layout:
        keep_X = keep_BT.flatten()
        real_N, others = keep_X.nonzero().squeeze(1), keep_X.logical_not().nonzero().squeeze(1)
        return Layout(keep_BT, torch.cat([real_N, others[: -len(real_N) % TOKENS_STEP]]))

    def packed(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """The tokens at these places alone, [N, D]."""
        found: torch.Tensor = _Packed.apply(x_BTD.reshape(-1, x_BTD.shape[-1]), self.places_N)
        return found

    def padded(self, x_ND: torch.Tensor) -> torch.Tensor:
        """The tokens in their places, 0 elsewhere, [B, T, D]."""
        batch, length = self.keep_BT.shape
        found: torch.Tensor = _Padded.apply(x_ND, self.places_N, batch * length)
        return found.view(batch, length, x_ND.shape[-1])


def has_encoder(model: torch.nn.Module) -> bool:
    """Whether a part of the model can do without padding."""
    return bool(_encoders(model))


@contextmanager
def without_padding(model: torch.nn.Module, device: torch.device, wanted: bool) -> Iterator[None]:
    """A context in which BERT's encoder computes real tokens only, on the CPU; nothing elsewhere.

    It is for forward and backward passes alike: activation checkpointing runs layers again in the latter, of the batch
    that went through last.
    """
    encoders = _encoders(model) if wanted and device.type == "cpu" else []
    if not encoders:
        yield
        return
    before = F.scaled_dot_product_attention
    layouts: list[Layout] = []  # one at most: of the batch that is on its way

    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        *more: Any,
        **named: Any,
    ) -> torch.Tensor:
        if not layouts or attn_mask is not None or query.shape[0] != 1 or query.shape[2] != len(layouts[-1].places_N):
            return before(query, key, value, attn_mask, *more, **named)
        layout = layouts[-1]
        query, key, value = (_by_text(some, layout) for some in (query, key, value))
        found_BHTD = before(query, key, value, layout.keep_BT[:, None, None, :], *more, **named)
        found_BTHD = found_BHTD.transpose(1, 2)
        packed_ND = layout.packed(found_BTHD.reshape(*found_BTHD.shape[:2], -1))
        return packed_ND.view(1, len(packed_ND), *found_BTHD.shape[2:]).transpose(1, 2)

    for encoder in encoders:
        encoder.forward = _without_padding(encoder, layouts)
    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before
        for encoder in encoders:
            del encoder.forward  # the class's own shows again


def _by_text(x_1HND: torch.Tensor, layout: Layout) -> torch.Tensor:
    """[1, H, N, D] to [B, H, T, D]."""
    _, heads, tokens, width = x_1HND.shape
    x_BTX = layout.padded(x_1HND.transpose(1, 2).reshape(tokens, heads * width))
    return x_BTX.view(*x_BTX.shape[:2], heads, width).transpose(1, 2)


def _without_padding(encoder: Any, layouts: list[Layout]) -> Any:
    """An encoder's forward that drops padding before its layers and puts it back after them.

    Not where the hidden states of each layer are asked for: those would be without padding.
    """
    forward = encoder.forward

    def packed_forward(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **named: Any) -> Any:
        layouts.clear()
        # [B, 1, T, T] of bool is what transformers makes of a mask over tokens, and None where all are real.
        usual = attention_mask is not None and attention_mask.dim() == 4 and attention_mask.dtype == torch.bool
        others = ("encoder_hidden_states", "encoder_attention_mask", "past_key_values", "cache")
        shown = named.get("output_hidden_states", encoder.config.output_hidden_states)
        if attention_mask is None or not usual or shown or any(named.get(name) is not None for name in others):
            return forward(hidden_states, attention_mask, **named)
        keep_BT = attention_mask[:, 0, 0]
        if keep_BT.float().mean() > MOST_REAL:
            return forward(hidden_states, attention_mask, **named)
        layouts.append(layout := Layout.of(keep_BT))
        found = forward(layout.packed(hidden_states).unsqueeze(0), None, **named)
        found.last_hidden_state = layout.padded(found.last_hidden_state.squeeze(0))
        return found

    return packed_forward


def _encoders(model: torch.nn.Module) -> list[Any]:
    """The model's stacks of BERT layers, where their attention is torch's and each token sees all others."""
    known = sys.modules.get("transformers.models.bert.modeling_bert")  # a model of it has imported it
    if known is None:
        return []
    found = [module for module in model.modules() if isinstance(module, known.BertEncoder)]
    return [some for some in found if some.config._attn_implementation == "sdpa" and not some.config.is_decoder]


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_XD: torch.Tensor, places_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places_N)
        ctx.rows = len(x_XD)
        return x_XD.index_select(0, places_N)

    @staticmethod
    def backward(ctx: Any, grad_ND: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _placed(grad_ND, ctx.saved_tensors[0], ctx.rows), None


class _Padded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: torch.Tensor, places_N: torch.Tensor, rows: int) -> torch.Tensor:
        ctx.save_for_backward(places_N)
        return _placed(x_ND, places_N, rows)

    @staticmethod
    def backward(ctx: Any, grad_XD: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grad_XD.index_select(0, ctx.saved_tensors[0]), None, None


def _placed(x_ND: torch.Tensor, places_N: torch.Tensor, rows: int) -> torch.Tensor:
    return x_ND.new_zeros(rows, x_ND.shape[1]).index_copy_(0, places_N, x_ND)
