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


def last_layer(model: torch.nn.Module, frozen: bool = False) -> Any:
    """The layer of which a BERT classifier reads the first token alone, or None.

    Args:
        frozen: also where it is not trained. By itself it is none then: a run may read the layers below it
            (few_shot_cls).
    """
    classifier = _classifier(model, frozen)
    return None if classifier is None else classifier.bert.encoder.layer[-1]


@contextmanager
def first_token_only(
    model: torch.nn.Module, device: torch.device, wanted: bool, frozen: bool = False
) -> Iterator[None]:
    """A context in which a BERT classifier's last layer computes its first token only, on the CPU; nothing elsewhere.

    Where the classifier is asked for its hidden states, or its encoder is called by itself, the layer is whole. A hook
    that reads its other tokens all the same finds NaN there, which no loss survives unseen.

    Args:
        frozen: also where the layer is not trained.
    """
    classifier = _classifier(model, frozen) if wanted and device.type == "cpu" else None
    if classifier is None:
        yield
        return
    layer = classifier.bert.encoder.layer[-1]
    whole_layer, whole_model, own = layer.forward, classifier.forward, vars(classifier).get("forward")
    reads_one_token = [False]

    def model_forward(*arguments: Any, **named: Any) -> Any:
        asked = named.get("output_hidden_states")
        reads_one_token[0] = not (classifier.config.output_hidden_states if asked is None else asked)
        try:
            return whole_model(*arguments, **named)
        finally:
            reads_one_token[0] = False

    def layer_forward(hidden_states: torch.Tensor, attention_mask: Any = None, *more: Any, **named: Any) -> Any:
        others = ("encoder_hidden_states", "encoder_attention_mask", "past_key_values", "cache")
        unusual = any(some is not None for some in (*more, *(named.get(name) for name in others)))
        if unusual or not reads_one_token[0]:
            return whole_layer(hidden_states, attention_mask, *more, **named)
        first_B1D = _first_token(layer, hidden_states, attention_mask)
        return F.pad(first_B1D, (0, 0, 0, hidden_states.shape[1] - 1), value=torch.nan)

    layer.forward, classifier.forward = layer_forward, model_forward
    try:
        yield
    finally:
        del layer.forward, classifier.forward  # the classes' own show again
        if own is not None:
            classifier.forward = own  # Accelerate's


def _classifier(model: torch.nn.Module, frozen: bool) -> Any:
    """A BERT sequence classifier in the model whose last layer is trained (or may be frozen) and can be computed in
    part, or None."""
    known = sys.modules.get("transformers.models.bert.modeling_bert")  # a model of it has imported it
    if known is None:
        return None
    for module in model.modules():
        # With a frozen encoder, what it found may stand in its place.
        if isinstance(module, known.BertForSequenceClassification) and isinstance(module.bert, known.BertModel):
            config, layer = module.config, module.bert.encoder.layer[-1]
            plain = config._attn_implementation == "sdpa" and not config.is_decoder and not config.add_cross_attention
            trained = frozen or any(parameter.requires_grad for parameter in layer.parameters())
            return module if plain and trained and module.bert.pooler is not None else None
    return None


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
