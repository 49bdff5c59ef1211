"""A classifier's last layer for the one token that its head reads: the others are keys and values there, and no more.

It serves BERT's sequence classifiers without touching them, as `finetune.dropout` serves every dropout. What the head
gets, and every gradient, is the same but for rounding and the places of dropout masks; of MiniLM's six layers five
sixths of one are not computed, forward or backward.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F


def last_layer(model: torch.nn.Module) -> Any:
    """The layer of which a BERT classifier reads the first token alone, or None.

    A layer that is not trained is none: a run may read the layers below it (few_shot_cls), or keep what a frozen
    encoder found.
    """
    known = sys.modules.get("transformers.models.bert.modeling_bert")  # a model of it has imported it
    if known is None:
        return None
    for module in model.modules():
        # With a frozen encoder, what it found may stand in its place.
        if isinstance(module, known.BertForSequenceClassification) and isinstance(module.bert, known.BertModel):
            config, layer = module.config, module.bert.encoder.layer[-1]
            plain = config._attn_implementation == "sdpa" and not config.is_decoder and not config.add_cross_attention
            trained = any(parameter.requires_grad for parameter in layer.parameters())
            return layer if plain and trained and module.bert.pooler is not None else None
    return None


@contextmanager
def first_token_only(model: torch.nn.Module, device: torch.device, wanted: bool) -> Iterator[None]:
    """A context in which a BERT classifier's last layer computes its first token only, on the CPU; nothing elsewhere.

    The encoder's last hidden states are [rows, 1, width] in it.
    """
    layer = last_layer(model) if wanted and device.type == "cpu" else None
    if layer is None:
        yield
        return
    plain = layer.forward

    def forward(
        hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *more: Any, **named: Any
    ) -> Any:
        others = ("encoder_hidden_states", "encoder_attention_mask", "past_key_values")
        if any(some is not None for some in more) or any(named.get(name) is not None for name in others):
            found: torch.Tensor = plain(hidden_states, attention_mask, *more, **named)
            return found
        return _first_token(layer, hidden_states, attention_mask)

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward  # the class's own shows again


def _first_token(layer: Any, hidden_BTD: torch.Tensor, mask_B1TT: torch.Tensor | None) -> torch.Tensor:
    """What a BERT layer makes of the first token, [B, 1, D]; each of its parts is called as the layer calls it."""
    own, first_B1D = layer.attention.self, hidden_BTD[:, :1]

    def heads(x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD.view(*x_BTD.shape[:2], -1, own.attention_head_size).transpose(1, 2)

    found_BH1D = F.scaled_dot_product_attention(
        heads(own.query(first_B1D)),
        heads(own.key(hidden_BTD)),
        heads(own.value(hidden_BTD)),
        attn_mask=None if mask_B1TT is None else mask_B1TT[:, :, :1],
        dropout_p=own.dropout.p if own.training else 0.0,
        scale=own.scaling,
    )
    found_B1D = found_BH1D.transpose(1, 2).reshape(len(hidden_BTD), 1, -1)
    made: torch.Tensor = layer.feed_forward_chunk(layer.attention.output(found_B1D, first_B1D))
    return made
