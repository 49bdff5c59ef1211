"""The classifier with mean pooling: its features, its head and its pipeline against PyTorch and scikit-learn alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, pipeline

from finetune.contrastive import cosine_error_sum, pad_texts_or_pairs
from finetune.data.sources import ModelFiles, resolve_model
from finetune.data.tokens import TokenRows, pad_tokens
from finetune.recipe import load_recipe
from finetune.sentence_classification import (
    MEAN_SCALE,
    encoded,
    fit_logistic_head,
    load_sentence_classifier,
    sentence_features,
)

pytestmark = pytest.mark.equivalence

TEXTS = [
    "A dull film.", "Clumsy, slow and far too long to sit through on any evening.", "I want my money back.",
    "A joy.", "Warm, funny and very well played by everybody in it.", "The best film of this year so far!",
]  # fmt: skip
LABELS = np.array([0, 0, 0, 1, 1, 1])


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    model = load_recipe("few_shot_cls").recipe.model
    return resolve_model(model.name, model.revision)


def token_rows(files: ModelFiles) -> TokenRows:
    ids = AutoTokenizer.from_pretrained(files.path)(TEXTS)["input_ids"]
    lengths = np.cumsum([0, *map(len, ids)])
    return TokenRows({"input_ids": np.concatenate(ids)}, lengths, np.zeros(len(ids), bool), LABELS)


def mean_and_first(files: ModelFiles) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over tokens and first token of each text, alone and without padding, in fp64."""
    tokenizer, encoder = (
        AutoTokenizer.from_pretrained(files.path),
        AutoModel.from_pretrained(files.path).double().eval(),
    )
    with torch.inference_mode():
        hidden = [encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in TEXTS]
    return torch.stack([some.mean(0) for some in hidden]), torch.stack([some[0] for some in hidden])


def test_features_are_the_centred_mean_over_tokens_in_a_padded_batch(files: ModelFiles) -> None:
    model, fixed = load_sentence_classifier(files, ("bad", "good"), None)
    means, first = mean_and_first(files)
    batch = pad_tokens(
        [{"input_ids": np.array(ids)} for ids in AutoTokenizer.from_pretrained(files.path)(TEXTS).input_ids], 0
    )
    with torch.inference_mode():
        found = sentence_features(model.eval().bert, batch)
        model.train()
        layers = encoded(model.eval(), batch)
    exact = means + first / MEAN_SCALE
    assert torch.allclose(found.double(), F.normalize(exact - exact.mean(1, keepdim=True)), atol=2e-6)
    # What the first token and the centring change, against the embedding of sentence-transformers.
    assert F.cosine_similarity(found.double(), means).min() > 0.999
    assert layers.shape[:2] == batch["input_ids"].shape
    assert [name for name in fixed if not any(some.startswith(name) for some, _ in model.named_parameters())] == []


def test_the_loss_is_that_of_plain_pytorch(files: ModelFiles) -> None:
    model, _ = load_sentence_classifier(files, ("bad", "good"), None)
    rows, means = token_rows(files), mean_and_first(files)[0]
    ids = [rows.columns["input_ids"][rows.offsets[text] : rows.offsets[text + 1]] for text in range(6)]
    pairs = [(0, 1, 1), (3, 2, 0), (4, 5, 1)]
    batch = pad_texts_or_pairs([{"texts": [ids[a], ids[b]], "same": same} for a, b, same in pairs], 0)
    with torch.inference_mode():
        found = cosine_error_sum(encoded(model.eval(), batch), batch["attention_mask"], batch["same"])
    cosines = F.cosine_similarity(means[[0, 3, 4]], means[[1, 2, 5]])
    assert float(found) == pytest.approx(float(((cosines - torch.tensor([1, 0, 1])) ** 2).sum()), rel=1e-5)


def test_texts_that_are_encoded_once_give_the_same_loss_and_gradients(files: ModelFiles) -> None:
    model, _ = load_sentence_classifier(files, ("bad", "good"), 0.0)
    rows = token_rows(files)
    ids = [rows.columns["input_ids"][rows.offsets[text] : rows.offsets[text + 1]] for text in range(6)]
    pairs = [(0, 1, 1), (3, 0, 0), (3, 5, 1), (0, 0, 1), (5, 1, 0)]
    losses, gradients = [], []
    for each_once, texts in ((False, 10), (True, 4)):
        batch = pad_texts_or_pairs([{"texts": [ids[a], ids[b]], "same": same} for a, b, same in pairs], 0, each_once)
        assert len(batch["input_ids"]) == texts
        model.zero_grad()
        hidden_BTD = encoded(model, batch)
        loss = cosine_error_sum(hidden_BTD, batch["attention_mask"], batch["same"], batch.get("places"))
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(model.bert.encoder.layer[0].output.dense.weight.grad.clone())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert float((gradients[1] - gradients[0]).abs().max()) < 1e-5 * float(gradients[0].abs().max())


@pytest.mark.parametrize("classes", [2, 3])
def test_the_pipeline_gives_the_probabilities_of_scikit_learns_head(
    files: ModelFiles, tmp_path: Path, classes: int
) -> None:
    labels = LABELS if classes == 2 else np.array([0, 0, 1, 1, 2, 2])
    names = ("bad", "good", "best")[:classes]
    model, _ = load_sentence_classifier(files, names, None)
    rows = token_rows(files)
    rows = TokenRows(rows.columns, rows.offsets, rows.truncated, labels)
    fit_logistic_head(rows, lambda some: pad_tokens(some, 0))(model, Accelerator(cpu=True))
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(files.path).save_pretrained(tmp_path)
    answers = pipeline("text-classification", str(tmp_path), top_k=None)(TEXTS, batch_size=6)
    found = [[{one["label"]: one["score"] for one in answer}[name] for name in names] for answer in answers]
    means, first = mean_and_first(files)
    exact = means + first / MEAN_SCALE
    features = F.normalize(exact - exact.mean(1, keepdim=True)).numpy()
    expected = LogisticRegression().fit(features, labels).predict_proba(features)
    assert np.allclose(found, expected, atol=1e-5)
