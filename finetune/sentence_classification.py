"""A sentence encoder with mean pooling and a logistic head, inside the sequence classifier that transformers has.

BERT's sequence classifier looks at the first token alone, through a tanh layer. Mean pooling is written as one more
BERT layer, so that the exported model needs no code of this toolkit: with queries and keys of 0 its attention is the
mean over a text's real tokens, its LayerNorm centres that mean over features and gives it the length sqrt(width), and
its feed-forward part adds 0. The pooler then multiplies by a number so small that tanh is the identity in fp32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune.errors import ConfigError
from finetune.evaluation.predict import predict_rows
from finetune.models import load_pretrained
from finetune.text_classification import label_maps

if TYPE_CHECKING:
    from accelerate import Accelerator

    from finetune.data.sources import ModelFiles
    from finetune.data.tokens import TokenRows
    from finetune.task import Batch, Collate

# The layer adds its input to the mean: the first token weighs 1/MEAN_SCALE in it. More would overflow fp16.
MEAN_SCALE = 2.0**10
# Of numbers around 1; tanh bends them by (2^-12)²/3 = 2e-8 of themselves.
POOLER_SCALE = 2.0**-12


def load_sentence_classifier(
    files: ModelFiles, labels: tuple[str, ...], dropout: float | None
) -> tuple[Any, list[str]]:
    """A BERT sequence classifier whose pooled output is the mean over tokens, and the names of modules to leave alone.

    Its head is 0 until `fit_logistic_head`.

    Raises:
        ConfigError: the model is not a BERT, whose layers are known here.
        SourceError: weights are missing.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    try:
        config = AutoConfig.from_pretrained(files.path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model.name={files.name} can't be read: {str(error).splitlines()[0]}") from None
    if config.model_type != "bert":
        raise ConfigError(
            f"model.name={files.name} is a {config.model_type}; mean pooling can be written into a bert only.",
            "Name a BERT encoder, for example sentence-transformers/all-MiniLM-L12-v2 or BAAI/bge-small-en-v1.5.",
        )
    layers = config.num_hidden_layers
    fixed = [f"bert.encoder.layer.{layers}", "bert.pooler", "classifier"]
    model, _ = load_pretrained(
        AutoModelForSequenceClassification,
        files,
        dropout=dropout,
        new_modules=tuple(fixed),
        replaceable=True,
        num_hidden_layers=layers + 1,
        **label_maps(labels),
    )
    write_mean_pooling(model)
    return model, fixed


@torch.no_grad()
def write_mean_pooling(model: Any) -> None:
    """Make the last layer of a BERT classifier the mean over tokens, and its pooler next to nothing."""
    layer, pooler = model.bert.encoder.layer[-1], model.bert.pooler.dense
    for part in (*layer.modules(), pooler, model.classifier):
        if isinstance(part, torch.nn.Linear):
            part.weight.zero_()
            part.bias.zero_()
        elif isinstance(part, torch.nn.LayerNorm):
            part.weight.fill_(1.0)
            part.bias.zero_()
        elif isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    width = torch.eye(pooler.weight.shape[0])
    layer.attention.self.value.weight.copy_(width)
    layer.attention.output.dense.weight.copy_(MEAN_SCALE * width)
    pooler.weight.copy_(POOLER_SCALE * width)


def encoded(model: Any, batch: Batch) -> torch.Tensor:
    """Hidden states of the last layer of the encoder itself, below the pooling layer: [texts, tokens, width]."""
    from transformers.models.bert.modeling_bert import BertEncoder

    encoder: Any = next(module for module in model.modules() if isinstance(module, BertEncoder))
    found: list[torch.Tensor] = []
    hook = encoder.register_forward_hook(lambda *call: found.append(call[-1].last_hidden_state))
    # Called as a whole all the same: with several processes the outermost module is what reduces gradients.
    layers, encoder.layer = encoder.layer, encoder.layer[:-1]
    try:
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    finally:
        encoder.layer = layers
        hook.remove()
    return found[0]


def sentence_features(bert: Any, batch: Batch) -> torch.Tensor:
    """What the head sees, at unit length: mean over tokens, centred over features. [texts, width]."""
    pooled_BD = bert(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
    return pooled_BD / (POOLER_SCALE * pooled_BD.shape[1] ** 0.5)


def fit_logistic_head(rows: TokenRows, collate: Collate) -> Callable[[torch.nn.Module, Accelerator], None]:
    """A function that fits scikit-learn's default LogisticRegression and writes it into the model's classifier.

    Features are computed in fp32, by all processes together; each fits the same head from them.
    """

    def fit(model: Any, accelerator: Accelerator) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        features = predict_rows(plain.bert, rows, collate, sentence_features, accelerator, "head").astype(np.float64)
        head = LogisticRegression()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 100 iterations are SetFit's protocol
            head.fit(features, rows.labels)
        weight, bias = head.coef_, head.intercept_
        if len(head.classes_) == 2:  # scikit-learn keeps one row, the second class against the first
            weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        with torch.no_grad():
            plain.classifier.weight.copy_(torch.as_tensor(weight / (POOLER_SCALE * features.shape[1] ** 0.5)))
            plain.classifier.bias.copy_(torch.as_tensor(bias))

    return fit
