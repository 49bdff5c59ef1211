"""`finetune predict` for masked language models: what stands at each mask token of a text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune.data.masking import IGNORE
from finetune.data.windows import pad_windows
from finetune.errors import DataError
from finetune.evaluation.predict import predict_rows
from finetune.inference.exported import ListRows, loaded, own_accelerator
from finetune.masked_language_modeling import masked_logits

if TYPE_CHECKING:
    from finetune.task import Batch

TOP = 5


class MaskFiller:
    """A run's exported masked language model, in fp32.

    Raises:
        ConfigError: the model can't be loaded.
    """

    added: tuple[str, ...] = ("masks",)

    def __init__(self, run: Path, record: dict[str, Any]) -> None:
        self.text_column: str | None = record["config"].get("data", {}).get("text")
        self.tokenizer, self.model = loaded(run / "model", "AutoModelForMaskedLM")
        self._accelerator = own_accelerator()
        self.model.to(self._accelerator.device)

    def __call__(self, texts: list[str]) -> list[dict[str, Any]]:
        """{"masks": [{"start", "end", "tokens": [{"token", "probability"}]}]} of each text, in order.

        `start` and `end` are the mask token's place in the text; the five likeliest tokens come first to last. Several
        masks of one text are filled each by itself, the others masked.

        Raises:
            DataError: a text has no mask token, or more tokens than the model was trained on: a mask might be cut off.
        """
        mask = self.tokenizer.mask_token
        places = [[found.span() for found in re.finditer(re.escape(mask), text)] for text in texts]
        ids = self.tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
        for number, (text, some, own) in enumerate(zip(texts, places, ids, strict=True), 1):
            where = f"Text {number} ({text[:40]!r}{' ...' if len(text) > 40 else ''})"
            if not some:
                raise DataError(
                    f"{where} has no {mask} to fill.", f'Write {mask} for a word: "Once there was a {mask}."'
                )
            if len(own) > self.tokenizer.model_max_length:
                raise DataError(
                    f"{where} has {len(own)} tokens; the model was trained on {self.tokenizer.model_max_length}.",
                    f"Give a shorter text around {mask}.",
                )
        most = max(map(len, places))
        outputs = predict_rows(
            self.model,
            ListRows({"input_ids": ids}),
            self._collate,
            lambda model, batch: _likeliest(model, batch, most),
            self._accelerator,
            "predict",
        ).reshape(len(texts), most, 2, -1)
        return [
            {"masks": [self._named(span, *filled) for span, filled in zip(some, row, strict=False)]}
            for some, row in zip(places, outputs, strict=True)
        ]

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        batch = pad_windows(rows, self.tokenizer.pad_token_id)
        batch["labels"] = batch["input_ids"].where(batch["input_ids"] == self.tokenizer.mask_token_id, IGNORE)
        return batch

    def _named(self, span: tuple[int, int], tokens: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
        likeliest = [
            {"token": self.tokenizer.decode([int(token)]), "probability": round(float(probability), 6)}
            for token, probability in zip(tokens, probabilities, strict=True)
        ]
        return {"start": span[0], "end": span[1], "tokens": likeliest}


def _likeliest(model: torch.nn.Module, batch: Batch, most: int) -> torch.Tensor:
    """Ids of the likeliest tokens at each mask and their probabilities, [rows, most * 2 * 5]; 0 beyond a row's masks.

    fp32 holds every id below 16.7 million as it is.
    """
    logits_NV, _ = masked_logits(model, batch)
    probabilities_NK, ids_NK = logits_NV.float().softmax(-1).topk(TOP)
    asked_BT = batch["labels"] != IGNORE
    row_N, _ = asked_BT.nonzero(as_tuple=True)
    number_N = (asked_BT.cumsum(1) - 1)[asked_BT]
    filled = logits_NV.new_zeros(len(asked_BT), most, 2, TOP, dtype=torch.float32)
    filled[row_N, number_N] = torch.stack([ids_NK.float(), probabilities_NK], dim=1)
    return filled.flatten(1)
