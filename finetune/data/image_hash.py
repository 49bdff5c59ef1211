"""Perceptual hashes of images: the same picture in another size, format or brightness has nearly the same hash."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import dctn

from finetune.data.images import ImageRows

SIDE = 32
KEPT = 8
# Bits in which two hashes of one picture may differ, of 63.
MOST_BITS = 6
# Of the two pictures at 32 x 32 in grey. The hash alone takes simple drawings (digits) for each other.
LEAST_CORRELATION = 0.98
Hashes = npt.NDArray[np.uint64]


def small_grey(rows: ImageRows) -> npt.NDArray[np.float32]:
    """Every image squeezed to 32 x 32 grey pixels of mean 0 and length 1, [rows, 1024]; one colour alone gives 0."""
    weights_3 = torch.tensor([0.299, 0.587, 0.114])  # luma of ITU-R BT.601
    flat = np.zeros((len(rows), SIDE * SIDE), dtype=np.float32)
    for index in range(len(rows)):
        grey_HW = torch.einsum("chw,c->hw", rows.image(index).float(), weights_3)
        small = torch.nn.functional.interpolate(
            grey_HW[None, None], (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False
        ).flatten()
        flat[index] = small - small.mean()
    lengths = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, lengths, out=np.zeros_like(flat), where=lengths > 1e-3)


def perceptual_hashes(grey: npt.NDArray[np.float32]) -> Hashes:
    """63 bits of each image, [rows]: its 8 x 8 lowest frequencies but the mean, above or below their median.

    pHash: Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010.
    """
    low = dctn(grey.reshape(-1, SIDE, SIDE), axes=(1, 2))[:, :KEPT, :KEPT].reshape(len(grey), -1)[:, 1:]
    bits = low > np.median(low, axis=1, keepdims=True)
    found: Hashes = (bits.astype(np.uint64) << np.arange(bits.shape[1], dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
    return found


def near_images(earlier: npt.NDArray[np.float32], later: npt.NDArray[np.float32]) -> list[tuple[int, int, float]]:
    """(row of `later`, its nearest row of `earlier`, their correlation) of all near duplicates.

    Two images are near when their hashes differ in at most 6 of 63 bits and their small grey pictures correlate by
    0.98 or more. Hashes within 6 bits agree in one of 7 bands of 9 bits, so no near pair is missed, and only rows of
    one band's bucket are compared.

    Args:
        earlier, later: what `small_grey` gave, [rows, 1024].
    """
    known, asked = perceptual_hashes(earlier), perceptual_hashes(later)
    bands = MOST_BITS + 1
    width = 63 // bands
    buckets: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(bands)]
    for row, keys in enumerate(_band_keys(known, bands, width)):
        for band, key in enumerate(keys):
            buckets[band][key].append(row)
    found = []
    for row, keys in enumerate(_band_keys(asked, bands, width)):
        some = np.unique(np.concatenate([buckets[band].get(key, []) for band, key in enumerate(keys)]).astype(np.int64))
        some = some[np.bitwise_count(known[some] ^ asked[row]) <= MOST_BITS]
        if len(some):
            alike = earlier[some] @ later[row]
            best = int(alike.argmax())
            if alike[best] >= LEAST_CORRELATION:
                found.append((row, int(some[best]), float(alike[best])))
    return found


def _band_keys(hashes: Hashes, bands: int, width: int) -> Sequence[list[int]]:
    shifts = np.arange(bands, dtype=np.uint64) * np.uint64(width)
    keys: list[list[int]] = ((hashes[:, None] >> shifts) & np.uint64(2**width - 1)).tolist()
    return keys
