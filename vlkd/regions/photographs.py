"""Ordinary picture files, of any format, size and colour mode, as pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vlkd.errors import VlkdError


def read_picture(path: str | Path) -> np.ndarray:
    """Read a picture file as [H, W, 3] uint8 RGB, upright (EXIF orientation applied).

    Transparency is laid over white.

    Raises:
        VlkdError: there is no such file, or it is no picture that Pillow can read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise VlkdError(f"There is no picture '{path}': give the path of a picture file, such as a PNG or JPEG.")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise VlkdError(
            f"The file '{path}' cannot be read as a picture ({reason}): give a whole PNG or JPEG file."
        ) from None
