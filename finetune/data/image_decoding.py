"""One image file to RGB pixels, the same pixels that transformers' pipelines see, or a reason why not."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Pillow would clip these to 8 bits, so that nearly all of it is white or black.
DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")


class BrokenImage(Exception):
    """An image that can't be used; the message says why."""


def decode(content: Path | bytes | NDArray[np.uint8], max_megapixels: float) -> NDArray[np.uint8]:
    """Pixels of an image, [height, width, 3] uint8: upright by its EXIF tag, grey, palette, alpha and CMYK as RGB.

    Equal to `transformers.image_utils.load_image`, so that an exported model sees in a pipeline what it was trained
    on; transparency is dropped, as there. Of an animation it is the first picture.

    Args:
        content: a file, the bytes of one, or [height, width] grey values as they are.
        max_megapixels: more, by the header alone, is refused before anything is decoded.

    Raises:
        BrokenImage: no image, cut off, too large, or of more than 8 bits a channel.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(content, np.ndarray):
        return np.repeat(content[:, :, None], 3, axis=2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd EXIF and palettes, and on sizes that are checked here
            source: Any = io.BytesIO(content) if isinstance(content, bytes) else content
            with Image.open(source) as image:
                width, height = image.size
                if width * height > max_megapixels * 1e6:
                    raise BrokenImage(
                        f"its header says {width} x {height} pixels, above data.max_megapixels={max_megapixels:g}"
                    )
                if image.mode in DEEP_MODES:
                    raise BrokenImage(f"it has more than 8 bits a channel (Pillow's mode {image.mode})")
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Image.DecompressionBombError:
        raise BrokenImage(f"its header says far more pixels than data.max_megapixels={max_megapixels:g}") from None
    except UnidentifiedImageError:
        raise BrokenImage("it is no image that Pillow knows") from None
    except (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, ArithmeticError, MemoryError) as error:
        # Many kinds, because each format has a reader of its own.
        raise BrokenImage(str(error).splitlines()[0] if str(error) else type(error).__name__) from None


def resized(pixels_HW3: NDArray[np.uint8], shorter: int, resample: int) -> NDArray[np.uint8]:
    """An image with its shorter side at `shorter` pixels, as torchvision-backed image processors resize it.

    What lies farther than twice the shorter side from the middle is cut off first: no centre crop sees it, and a
    strip of 10 x 10,000 pixels would become gigabytes.

    Args:
        resample: Pillow's number of the interpolation (2 bilinear, 3 bicubic, ...).
    """
    import torch
    from torchvision.transforms.v2 import functional
    from transformers.image_transforms import get_resize_output_image_size
    from transformers.image_utils import ChannelDimension, pil_torch_interpolation_mapping

    height, width, _ = pixels_HW3.shape
    longest = 4 * min(height, width)
    top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
    cut = pixels_HW3[top : top + longest, left : left + longest]
    image_3HW = torch.from_numpy(np.array(cut)).permute(2, 0, 1)
    size = get_resize_output_image_size(
        image_3HW, size=shorter, default_to_square=False, input_data_format=ChannelDimension.FIRST
    )
    out = functional.resize(image_3HW, list(size), pil_torch_interpolation_mapping[resample], antialias=True)
    return out.permute(1, 2, 0).contiguous().numpy()
