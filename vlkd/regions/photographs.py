"""Ordinary picture files, of any format, size and colour mode, as pixels.

Legend: H, W the picture's pixels.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlkd.errors import VlkdError

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow's other formats run programs (EPS starts Ghostscript) or are no pictures. The most frequent come first.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow widens such pixels to 8 bits, but not the value that is transparent


def read_picture(path: str | Path) -> np.ndarray:
    """Read a picture file as [H, W, 3] uint8 RGB, upright.

    Of EXIF only the orientation is read, in whatever type it was written; an invalid one counts as none. Transparency is
    laid over white. 16 bits a channel become their upper 8, so dark pictures of 10 or 12 significant bits stay dark (a TIFF
    that says it has 12 is taken by its word). Of several frames or pages the first is read.

    Raises:
        VlkdError: there is no such file, or it is no picture that Pillow can read, or one of floats or 32-bit integers,
            whose black and white the file does not say.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise VlkdError(
            f"There is no picture '{printable(path)}': give the path of a picture file, such as a PNG or JPEG."
        )
    try:
        with Image.open(path, formats=_formats()) as image:
            raw = image.tile[0][3] if image.tile else None
            image.load()
            pixels = _rgb(image, raw)
            # After loading: a TIFF is turned by that, and then says nothing any more.
            return np.ascontiguousarray(_upright(pixels, _orientation(image)))
    except VlkdError as error:
        reason = str(error)
    except UnidentifiedImageError:
        reason = f"it is no {', '.join(_formats())} that Pillow can read"
    # A decoder meets damaged bytes with any exception there is (struct.error, zlib.error, AssertionError, MemoryError, …).
    # Whatever it is, it is about this one file, whose name the user needs.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    raise VlkdError(
        f"The file '{printable(path)}' cannot be read as a picture ({reason}): give a whole PNG or JPEG file."
    )


def printable(name: str | Path) -> str:
    """A file's name for a message: on one line, and printable even where it is no UTF-8."""
    escaped = (f"\\x{ord(letter) - 0xDC00:02x}" if "\udc80" <= letter <= "\udcff" else letter for letter in str(name))
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for text in escaped for letter in text)


@cache
def _formats() -> tuple[str, ...]:
    """Those of ours that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _rgb(image: Image, raw: Any) -> np.ndarray:
    """[H, W, 3] uint8 of a loaded picture whose decoder was told the layout ``raw``."""
    from PIL import Image as Pillow

    if min(image.size) < 1:
        raise VlkdError(f"it has {image.size[0]} x {image.size[1]} pixels")
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        kind = "floats" if image.mode == "F" else "signed or 32-bit integers"
        raise VlkdError(f"its pixels are {kind}, of which it does not say what is black and what is white")
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple) and max(transparent) > 255:  # of 16 bits, whose pixels have become 8
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    elif isinstance(transparent, int) and isinstance(raw, str) and raw in _GREY_STEPS:
        image.info["transparency"] = transparent * _GREY_STEPS[raw]
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return np.array(Pillow.alpha_composite(Pillow.new("RGBA", image.size, "white"), image).convert("RGB"))


def _from_16_bits(image: Image) -> np.ndarray:
    """Grey of 16 bits, which Pillow's own conversion clips to white."""
    grey = np.array(image).astype(np.int64)  # [H, W] in 0..65535
    tags = getattr(image, "tag_v2", {})
    bits = min(max(int(np.max(tags.get(_BITS, 16))), 8), 16)
    levels = np.clip(grey >> (bits - 8), 0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = 255 - levels
    levels[grey == image.info.get("transparency", -1)] = 255
    return np.repeat(levels[..., None], 3, axis=2)


def _orientation(image: Image) -> int:
    """1 to 8 of EXIF; 1, upright, where there is none or an invalid one."""
    try:
        value: Any = image.getexif().get(_ORIENTATION, 1)
        if isinstance(value, (tuple, list)):
            value = value[0]
        if isinstance(value, bytes):
            value = value.decode().strip() if value.strip(b"\0 ").isdigit() else int.from_bytes(value, "little")
        number = int(str(value).strip("\0 ")) if isinstance(value, str) else int(value)
    except Exception:  # of EXIF that is damaged or mistyped; the pixels are sound
        return 1
    while number >= 1 << 8 and number % (1 << 8) == 0:  # a short in a longer field of the other byte order
        number >>= 8
    return number if 1 <= number <= 8 else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """``pixels`` [H, W, 3] as a camera of that orientation meant them: mirrored, turned, or both."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):  # the first row is at the bottom
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):  # the first column is at the right
        pixels = pixels[:, ::-1]
    return pixels
