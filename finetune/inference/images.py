"""`finetune predict` for images: a run's exported classifier, in fp32 as `transformers.pipeline` would run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import finetune.cifar_resnet  # noqa: F401  makes its architecture known to the auto classes
from finetune.data.batching import RowKey
from finetune.data.image_decoding import BrokenImage, decode, resized
from finetune.data.images import centre
from finetune.errors import DataError
from finetune.evaluation.predict import predict_rows
from finetune.image_classification import image_size, normalised
from finetune.inference.exported import labels_of, loaded, named, own_accelerator
from finetune.timm_models import TimmPreprocessing, check_timm, is_timm

MAX_MEGAPIXELS = 64.0


class ImageClassifier:
    """Predicts images by their paths.

    Args:
        folder: what relative paths start from.

    Raises:
        ConfigError: the model can't be loaded, or its labels are not the record's.
    """

    added: tuple[str, ...] = ("prediction", "probability")

    def __init__(self, run: Path, record: dict[str, Any], folder: Path) -> None:
        self.folder = folder
        config = record["config"].get("data", {})
        self.text_column = config.get("image")
        self.max_megapixels = float(config.get("max_megapixels", MAX_MEGAPIXELS))
        timm = is_timm(run / "model")
        if timm:
            check_timm(run / "model", str(run / "model"))
        self.processor, self.model = loaded(run / "model", "AutoModelForImageClassification", "AutoImageProcessor")
        if timm:
            self.processor = TimmPreprocessing(self.processor, str(run / "model"))
        self.labels = labels_of(self.model, record, run / "model")

    def __call__(self, paths: list[str]) -> list[dict[str, Any]]:
        """Prediction, its probability and all probabilities of each image, in order.

        Raises:
            DataError: an image is missing or broken.
        """
        shorter, side = image_size(self.processor, "the run")
        accelerator = own_accelerator()
        self.model.to(accelerator.device)
        rows = _Paths(
            [self._path(path) for path in paths], shorter, int(self.processor.resample), side, self.max_megapixels
        )
        probabilities_RC = predict_rows(
            self.model,
            rows,
            normalised(self.processor),
            lambda model, batch: model(**batch).logits.float().softmax(-1),
            accelerator,
            "predict",
        )
        return named(self.labels, probabilities_RC)

    def _path(self, text: str) -> Path:
        path = Path(text).expanduser()
        path = path if path.is_absolute() else self.folder / path
        if not path.is_file():
            raise DataError(f"There is no image {path}.", "Paths in a file are relative to that file's folder.")
        return path


class _Paths:
    """Images that are decoded as they are asked for."""

    lengths = None

    def __init__(self, paths: list[Path], shorter: int, resample: int, side: int, max_megapixels: float) -> None:
        self.paths, self.shorter, self.resample, self.side = paths, shorter, resample, side
        self.max_megapixels = max_megapixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        rows = []
        for key in keys:
            path = self.paths[key.index]
            try:
                pixels_HW3 = resized(decode(path, self.max_megapixels), self.shorter, self.resample)
            except BrokenImage as error:
                raise DataError(f"{path} is broken: {error}.", "Mend it, or take it out.") from None
            image_3HW = torch.from_numpy(pixels_HW3).permute(2, 0, 1)
            rows.append({"pixels": centre(image_3HW, self.side)})
        return rows
