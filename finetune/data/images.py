"""Images as rows: decoded and resized once, kept memory-mapped in the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.data.batching import RowKey
from finetune.data.mapped import forget_pages


@dataclass(frozen=True)
class ImageRows:
    """Decoded images; reading one touches only its own pages of the file.

    Attributes:
        pixels: all images end to end, each [height, width, 3] uint8, as one flat array.
        starts, ends: image i has the bytes starts[i]:ends[i], [rows] each.
        heights: [rows].
        labels: class index of each row, [rows].
        size: side of the square that is cut out of the centre, pixels.
    """

    pixels: NDArray[np.uint8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    heights: NDArray[np.int64]
    labels: NDArray[np.int64]
    size: int

    lengths = None
    fixed = True  # the same in every epoch

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> torch.Tensor:
        """The whole resized image, [3, height, width] uint8."""
        flat = np.array(self.pixels[self.starts[index] : self.ends[index]])
        forget_pages(self.pixels)
        return torch.from_numpy(flat.reshape(self.heights[index], -1, 3)).permute(2, 0, 1)

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        return [{"pixels": self._centre(key.index), "labels": self.labels[key.index]} for key in keys]

    def _centre(self, index: int) -> torch.Tensor:
        return centre(self.image(index), self.size)


def centre(image_3HW: torch.Tensor, side: int) -> torch.Tensor:
    """The square in the middle, rounded towards the upper left as transformers' image processors do.

    torchvision's own `center_crop` rounds half a pixel to even: another square in half of the odd cases, and one pixel
    of 64 changed probabilities by 0.07.
    """
    top, left = (image_3HW.shape[1] - side) // 2, (image_3HW.shape[2] - side) // 2
    return image_3HW[:, top : top + side, left : left + side]
