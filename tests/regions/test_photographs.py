"""Ordinary picture files: every colour mode, orientation, and what cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vlkd.errors import VlkdError
from vlkd.recipes import Detectors
from vlkd.regions import detect, load_packaged_detectors, read_picture
from vlkd.scenes import CLASSES


@pytest.fixture
def photograph(tmp_path):
    """A photograph's shape and noise, 640 x 427, as a JPEG file."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, size=(27, 40, 3), dtype=np.uint8)
    path = tmp_path / "photograph.jpg"
    Image.fromarray(pixels).resize((640, 427), Image.Resampling.BICUBIC).save(path)
    return path


def test_a_photograph_gives_boxes_tags_and_scores(photograph):
    for detector in load_packaged_detectors(Detectors()):
        boxes, tags, scores = detect(detector, read_picture(photograph))
        assert len(boxes) == len(tags) == len(scores) >= 1
        assert boxes.dtype == np.float32
        assert (boxes >= 0).all() and boxes[:, 2].max() <= 640.01 and boxes[:, 3].max() <= 427.01
        assert set(tags) <= set(CLASSES)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode: str):
    source = Image.new("RGB", (7, 5), (255, 255, 255))
    suffix = "tif" if mode in ("CMYK", "I;16") else "png"
    path = tmp_path / f"picture.{suffix}"
    image = Image.new("I;16", (7, 5), 65535) if mode == "I;16" else source.convert(mode)
    image.save(path)
    pixels = read_picture(path)
    assert pixels.shape == (5, 7, 3) and pixels.dtype == np.uint8
    assert (pixels >= 254).all()


def test_transparency_is_laid_over_white(tmp_path):
    path = tmp_path / "clear.png"
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(path)
    assert (read_picture(path) == 255).all()


def test_exif_orientation_is_applied(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert read_picture(path).shape == (40, 20, 3)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(VlkdError, match=r"There is no picture '.*absent.png'"):
        read_picture(tmp_path / "absent.png")


@pytest.mark.parametrize("content", ["text", "torn"])
def test_an_unreadable_file_is_one_sentence(tmp_path, photograph, content: str):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"not a picture" if content == "text" else photograph.read_bytes()[:500])
    with pytest.raises(VlkdError, match=r"'.*broken.jpg' cannot be read as a picture \(.*\): give a whole PNG"):
        read_picture(path)
