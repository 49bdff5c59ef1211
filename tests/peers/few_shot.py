"""SetFit's training written out: sentence-transformers' contrastive loop over pairs in fp32, then a logistic head."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer, get_linear_schedule_with_warmup

from tests.peers.clock import Clock
from tests.peers.text import read

LR, MAX_TOKENS = 2e-5, 256
Pair = tuple[str, str, float]


def pairs_of(rows: list[dict[str, Any]], rounds: int) -> list[Pair]:
    """`sentence_pairs_generation` of SetFit 0.x: each text meets one of its class and one of another, in each round."""
    pairs = []
    for _ in range(rounds):
        for row in rows:
            own = [some["text"] for some in rows if some["label"] == row["label"]]
            others = [some["text"] for some in rows if some["label"] != row["label"]]
            pairs += [(row["text"], random.choice(own), 1.0), (row["text"], random.choice(others), 0.0)]
    return pairs


def train(request: dict[str, Any]) -> dict[str, Any]:
    random.seed(request["seed"])
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    model = AutoModel.from_pretrained(request["model"], dtype=torch.float32)
    rows, test = (read(Path(request["data"]) / f"{name}.jsonl") for name in ("train", "test"))
    clock = Clock(request)

    def embedded(texts: list[str]) -> torch.Tensor:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        hidden_BTD = model(**batch).last_hidden_state
        mask_BT1 = batch["attention_mask"][..., None].float()
        return (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)

    def encoded(texts: list[str]) -> Any:
        model.eval()
        with torch.inference_mode():
            parts = [embedded(texts[first : first + 32]) for first in range(0, len(texts), 32)]
        return F.normalize(torch.cat(parts), dim=1).numpy()

    clock.start()
    # The updates of 20 rounds, unless fewer are asked for.
    pairs = pairs_of(rows, request["updates"] * request["batch"] // (2 * len(rows)))
    loader = DataLoader(pairs, batch_size=request["batch"], shuffle=True, collate_fn=list)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    schedule = get_linear_schedule_with_warmup(optimizer, len(loader) // 10, len(loader))
    model.train()
    for some in loader:
        # As sentence-transformers does it: tokenised anew for each batch, each side by itself.
        first, second = (embedded([pair[side] for pair in some]) for side in (0, 1))
        same = torch.tensor([pair[2] for pair in some])
        loss = F.mse_loss(F.cosine_similarity(first, second), same)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clock.batches.append((len(some), 0))
        clock.update_done()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 100 iterations are SetFit's protocol
        head = LogisticRegression().fit(encoded([row["text"] for row in rows]), [row["label"] for row in rows])
    clock.ends.pop()
    clock.update_done()  # not before the head is there
    answers = head.predict(encoded([row["text"] for row in test]))
    accuracy = sum(answer == row["label"] for answer, row in zip(answers, test, strict=True)) / len(test)
    return clock.found("fp32", accuracy)
