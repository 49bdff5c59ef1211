"""The embedded encoder, read through the project's loader and pooling, has the quality that MTEB published for it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scipy.stats import spearmanr

from finetune.config import DataSettings
from finetune.data.loader import load_data
from finetune.data.sources import resolve_model
from finetune.data.tokens import pad_tokens, tokenize
from finetune.evaluation.predict import mean_pooled, predict_rows
from finetune.models import load_pretrained, load_tokenizer
from finetune.recipe import load_recipe

pytestmark = pytest.mark.equivalence

STS_TEST = Path(os.environ.get("FINETUNE_DATA", "")) / "glue" / "STS-B" / "sts-test.tsv"
# MTEB's results repository, sentence-transformers/all-MiniLM-L6-v2 on STSBenchmark, cosine Spearman x 100.
PUBLISHED = 82.03


@pytest.mark.skipif(not STS_TEST.is_file(), reason="needs glue/STS-B/sts-test.tsv below FINETUNE_DATA")
def test_sts_benchmark_is_mtebs_number(tmp_path: Path) -> None:
    from transformers import AutoModel

    # Some rows carry two more columns with their source; the loader would rightly refuse ragged rows.
    rows = [line.split("\t")[:7] for line in STS_TEST.read_text("utf-8").splitlines()]
    table = tmp_path / "sts.tsv"
    lines = ["id\ttext\ttext_pair", *(f"{number}\t{row[5]}\t{row[6]}" for number, row in enumerate(rows))]
    table.write_text("\n".join(lines) + "\n", "utf-8")
    data = load_data(DataSettings(source=str(table)), {"text": None, "text_pair": None})
    files = resolve_model(load_recipe("bert_cls").recipe.model.name, None)
    tokenizer = load_tokenizer(files)
    model, _ = load_pretrained(AutoModel, files)
    cosine, scores = [], []
    for split in data.splits.values():
        pair = [
            predict_rows(
                model,
                tokenize(split, tokenizer, 256, texts=[column], label=None),
                lambda some: pad_tokens(some, tokenizer.pad_token_id),
                lambda model, batch: mean_pooled(model(**batch).last_hidden_state, batch["attention_mask"]),
                Accelerator(cpu=True),
                column,
            )
            for column in ("text", "text_pair")
        ]
        one, other = (torch.nn.functional.normalize(torch.from_numpy(side), dim=1).numpy() for side in pair)
        cosine.append((one * other).sum(axis=1))
        scores.append([float(rows[int(number)][4]) for number in split["id"]])
    spearman = spearmanr(np.concatenate(cosine), np.concatenate(scores)).statistic * 100
    assert len(np.concatenate(scores)) == 1379
    assert spearman == pytest.approx(PUBLISHED, abs=0.05)
