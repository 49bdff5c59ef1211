"""`finetune predict` for taggers: the entities of plain texts, through nothing but the exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.windows import make_windows, pad_windows
from finetune.evaluation.predict import predict_rows
from finetune.inference.exported import load_exported, own_accelerator
from finetune.token_classification import WORD, entities_of, tags_of_tokens


class EntityTagger:
    """A run's exported tagger, in fp32. Texts are split into words as annotated sets are; long ones are windowed.

    Raises:
        ConfigError: the model can't be loaded, or its tags are not the record's.
    """

    added: tuple[str, ...] = ("entities",)

    def __init__(self, run: Path, record: dict[str, Any]) -> None:
        self.text_column: str | None = None
        self.tokenizer, self.model, self.tags = load_exported(run, record, "AutoModelForTokenClassification")
        self._accelerator = own_accelerator()
        self.model.to(self._accelerator.device)
        self._iobes = any(tag[:2] in ("E-", "S-") for tag in self.tags)
        settings = record["config"]["data"]
        self._limits = int(settings["max_tokens"]), int(settings["overlap_tokens"])

    def __call__(self, texts: list[str]) -> list[dict[str, Any]]:
        """{"entities": [{"text", "type", "score", "start", "end"}]} of each text, in order."""
        words = [list(WORD.finditer(text)) for text in texts]
        # A text without any word (white space was refused before) is one unknown word without entities.
        sentences = [[word.group() for word in some] or ["?"] for some in words]
        windows = make_windows(sentences, None, self.tokenizer, *self._limits)
        width = int(windows.lengths.max())
        outputs = predict_rows(
            self.model,
            windows,
            lambda some: pad_windows(some, self.tokenizer.pad_token_id),
            lambda model, batch: tags_of_tokens(model(**batch).logits, width),
            self._accelerator,
            "predict",
        )
        tags_RT, probabilities_RT = np.split(outputs, 2, axis=1)
        tags = windows.by_sentence(windows.of_words(tags_RT).astype(np.int64))
        scores = windows.by_sentence(windows.of_words(probabilities_RT))
        return [
            {"entities": entities_of(text, some, [self.tags[tag] for tag in own][: len(some)], score, self._iobes)}
            for text, some, own, score in zip(texts, words, tags, scores, strict=True)
        ]
