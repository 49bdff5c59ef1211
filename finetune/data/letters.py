"""Letters rendered from matplotlib's own fonts: images to pretrain on that any installation can make again."""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from finetune.data.batching import RowKey
from finetune.randomness import numpy_generator

LETTERS = string.ascii_uppercase + string.ascii_lowercase
# Whole fonts are held out, so that the test says how far the model knows letters and not these outlines.
FONTS = {
    "train": (
        "DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSansMono",
        "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "DejaVuSerif-Italic",
        "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "STIXGeneralItalic", "cmb10", "cmmi10", "cmr10", "cmti10",
    ),
    "valid": ("DejaVuSansMono-Oblique", "cmtt10"),
    "test": ("DejaVuSansMono-BoldOblique", "cmss10"),
}  # fmt: skip
CANVAS, GLYPH = 64, 48  # pixels of the canvas, and of the longer side of a letter on it
WARPED = 32
LOW_RESOLUTIONS = (8, 8, 10, 12, 16)  # half as often as all others together, 8: what scanned digits come as


def render(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """All letters in a split's fonts: white on black [rows, 64, 64], class indices [rows], ids [rows]."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    images, ids = [], []
    for font_name in FONTS[split]:
        font = ImageFont.truetype(folder / f"{font_name}.ttf", 96, layout_engine=ImageFont.Layout.BASIC)
        for letter in LETTERS:
            large = Image.new("L", (256, 256))
            ImageDraw.Draw(large).text((64, 64), letter, fill=255, font=font)
            glyph = large.crop(large.getbbox())
            scale = GLYPH / max(glyph.size)
            glyph = glyph.resize((max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale))))
            canvas = Image.new("L", (CANVAS, CANVAS))
            canvas.paste(glyph, ((CANVAS - glyph.width) // 2, (CANVAS - glyph.height) // 2))
            images.append(np.asarray(canvas))
            ids.append(f"{font_name}/{letter}")
    return np.stack(images), np.tile(np.arange(len(LETTERS)), len(FONTS[split])), ids


def letters_sha256() -> str:
    """Over the rendered letters of all splits."""
    digest = hashlib.sha256()
    for split in FONTS:
        digest.update(render(split)[0].tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class LetterRows:
    """Letters, each time distorted anew: stroke, affine map, elastic field, low resolution, contrast.

    Attributes:
        images: [rows, 64, 64] uint8.
        labels: [rows] class indices.
        size: side of the images that are returned, pixels.
        varied: by epoch; False distorts a row the same way each time, for evaluation.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    size: int
    seed: int
    varied: bool = True

    lengths = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        draws = [self._draw(key) for key in keys]
        images_B1HW = torch.from_numpy(self.images[[key.index for key in keys]]).float()[:, None] / 255.0
        stroke_B = torch.tensor([draw["stroke"] for draw in draws])
        thick = F.max_pool2d(images_B1HW, 3, 1, 1)
        thin = -F.max_pool2d(-images_B1HW, 3, 1, 1)
        kinds = torch.stack([thin, images_B1HW, thick, F.max_pool2d(thick, 3, 1, 1)])
        images_B1HW = kinds[stroke_B, torch.arange(len(keys))]
        theta_B23 = torch.from_numpy(np.stack([draw["theta"] for draw in draws])).float()
        grid_BHW2 = F.affine_grid(theta_B23, [len(keys), 1, WARPED, WARPED], align_corners=False)
        bends_B2KK = torch.from_numpy(np.stack([draw["bend"] for draw in draws])).float()
        bent = F.interpolate(bends_B2KK, size=(WARPED, WARPED), mode="bicubic", align_corners=True)
        warped = F.grid_sample(images_B1HW, grid_BHW2 + bent.permute(0, 2, 3, 1), align_corners=False)
        out = torch.empty(len(keys), 1, self.size, self.size)
        for low in sorted(set(LOW_RESOLUTIONS)):
            rows = [row for row, draw in enumerate(draws) if draw["low"] == low]
            if rows:
                small = F.interpolate(warped[rows], size=(low, low), mode="area")
                out[rows] = F.interpolate(small, size=(self.size, self.size), mode="bicubic", align_corners=False)
        contrast_B = torch.tensor([draw["contrast"] for draw in draws])[:, None, None, None]
        pixels_B3HW = (out * contrast_B).clamp(0.0, 1.0).mul(255).round().to(torch.uint8).expand(-1, 3, -1, -1)
        return [
            {"pixels": pixels, "labels": self.labels[key.index]} for key, pixels in zip(keys, pixels_B3HW, strict=True)
        ]

    def _draw(self, key: RowKey) -> dict[str, Any]:
        """Everything random of one row, from (seed, epoch, index) alone."""
        generator = numpy_generator(self.seed, "letters", key.epoch if self.varied else "same", key.index)
        angle, shear = generator.normal(0.0, 0.16), generator.normal(0.0, 0.25)
        # The letter fills 3/4 of its canvas, so 0.75 makes it fill the image.
        wide, high = generator.uniform(0.7, 1.0, 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = turn @ np.array([[wide, shear * wide], [0.0, high]])
        return {
            "stroke": int(generator.integers(4)),
            "theta": np.concatenate([matrix, generator.uniform(-0.08, 0.08, (2, 1))], axis=1),
            "bend": generator.normal(0.0, 0.07, (2, 4, 4)),
            "low": int(generator.choice(LOW_RESOLUTIONS)),
            "contrast": np.float32(generator.uniform(0.9, 1.4)),
        }
