"""Ordinary picture files: every colour mode, orientation, and what cannot be read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from vlkd.errors import VlkdError
from vlkd.recipes import Detectors
from vlkd.regions import detect, load_packaged_detectors, read_picture
from vlkd.regions.photographs import printable
from vlkd.scenes import CLASSES

ORIENTATION = 0x0112


@pytest.fixture
def photograph(tmp_path):
    """A photograph's shape and noise, 640 x 427, as a JPEG file."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, size=(27, 40, 3), dtype=np.uint8)
    path = tmp_path / "photograph.jpg"
    Image.fromarray(pixels).resize((640, 427), Image.Resampling.BICUBIC).save(path)
    return path


def png(bits: int, colour: int, row: bytes, width: int = 1, *, height: int = 1, before: bytes = b"") -> bytes:
    """A PNG of one row, or one that says it has more."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(bits: int, data: bytes, order: str = "<", *, photometric: int = 1, kind: int = 1) -> bytes:
    """A grey TIFF of two pixels; ``kind`` 1 is unsigned, 2 signed, 3 float."""
    shorts = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 277: 1, 278: 1, 339: kind}
    entries = {tag: struct.pack(order + "HHIHH", tag, 3, 1, value, 0) for tag, value in shorts.items()}
    place = 8 + 2 + 12 * (len(entries) + 2) + 4
    for tag, value in ((273, place), (279, len(data))):
        entries[tag] = struct.pack(order + "HHII", tag, 4, 1, value)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    return head + b"".join(entries[tag] for tag in sorted(entries)) + struct.pack(order + "I", 0) + data


def exif(kind: int, count: int, value: bytes, order: str = "<") -> bytes:
    """EXIF of nothing but an orientation of that TIFF type; ``value`` is the entry's four bytes."""
    head = b"Exif\0\0" + (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 1)
    return head + struct.pack(order + "HHI", ORIENTATION, kind, count) + value + struct.pack(order + "I", 0)


def read(tmp_path: Path, content: bytes) -> np.ndarray:
    path = tmp_path / "picture"
    path.write_bytes(content)
    return read_picture(path)


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


def test_sixteen_bits_of_grey_become_their_upper_eight(tmp_path):
    """Every level of 8 bits as often as any other, and what the same file in 8 bits would be."""
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    pixels = read_picture(tmp_path / "ramp.png")
    assert pixels.mean() == 127.5 and (np.bincount(pixels[..., 0].ravel()) == 256).all()
    assert (pixels == (ramp >> 8)[..., None]).all()
    # 12 of 16 bits: dark, but even, as any viewer shows it.
    Image.fromarray(ramp >> 4).save(tmp_path / "dark.png")
    assert read_picture(tmp_path / "dark.png").mean() == 7.5


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(16, 0, struct.pack(">HH", 65535, 256), 2), [255, 1]),
        (tiff(16, struct.pack("<HH", 65535, 256)), [255, 1]),
        (tiff(16, struct.pack(">HH", 65535, 256), ">"), [255, 1]),
        (tiff(16, struct.pack("<HH", 65535, 256), photometric=0), [0, 254]),
        (tiff(12, bytes([0xFF, 0xF8, 0x00])), [255, 128]),
        (b"P5 2 1 65535\n" + struct.pack(">HH", 65535, 256), [255, 1]),
        (b"P5 2 1 1023\n" + struct.pack(">HH", 1023, 512), [255, 128]),
        (png(16, 2, struct.pack(">HHH", 65535, 256, 32768)), [(255, 1, 128)]),
        (png(16, 4, struct.pack(">HHHH", 65535, 65535, 256, 0), 2), [255, 255]),
        (png(16, 0, struct.pack(">HH", 7, 7 << 8), 2, before=chunk(b"tRNS", struct.pack(">H", 7))), [255, 7]),
        (png(2, 0, b"\x1b", 4, before=chunk(b"tRNS", struct.pack(">H", 0))), [255, 85, 170, 255]),
        (png(2, 0, b"\x1b", 4, before=chunk(b"tRNS", struct.pack(">H", 2))), [0, 85, 255, 255]),
        (
            png(16, 2, struct.pack(">6H", 65535, 256, 0, 1, 2, 3), 2, before=chunk(b"tRNS", b"\xff\xff\1\0\0\0")),
            [255, 0],
        ),
    ],
    ids=[
        "png16",
        "tif16",
        "tif16-big",
        "white-is-zero",
        "tif12",
        "pgm16",
        "pgm10",
        "rgb16",
        "la16",
        "trns16",
        "trns2",
        "trns2-middle",
        "trns-rgb16",
    ],
)
def test_depths_byte_orders_and_transparent_values(tmp_path, content: bytes, expected: list):
    wanted = np.broadcast_to(np.array(expected).reshape(1, len(expected), -1), (1, len(expected), 3))
    np.testing.assert_array_equal(read(tmp_path, content), wanted)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(32, struct.pack("<ff", 0.5, 1.0), kind=3), "pixels are floats, .* what is black"),
        (tiff(32, struct.pack("<ii", 5, -5), kind=2), "signed or 32-bit integers"),
        (tiff(16, struct.pack("<hh", 5, -5), kind=2), "signed or 32-bit integers"),
        (tiff(32, struct.pack("<II", 5, 2**32 - 1)), "signed or 32-bit integers"),
        (png(8, 3, b"\0\1", 2), "AssertionError"),
        (png(8, 0, b"", 0), "no JPEG, PNG"),
        (png(8, 0, b"\0", 60000, height=60000), "exceeds limit"),
        (png(8, 0, b"\0\1", 2)[:-22] + b"\0" * 22, "."),
        (b"", "no JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "no JPEG, PNG"),
    ],
    ids=["float", "int", "signed", "uint", "no-palette", "no-pixel", "bomb", "crc", "empty", "eps"],
)
def test_what_has_no_sure_pixels_is_refused_by_name(tmp_path, content: bytes, reason: str):
    with pytest.raises(VlkdError, match=rf"'.*picture' cannot be read as a picture \(.*{reason}.*\): ") as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, struct.error, KeyError])
def test_whatever_a_decoder_raises_names_the_file(photograph, monkeypatch, kind: type[Exception]):
    def load(_):
        raise kind

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(VlkdError, match=rf"'.*photograph.jpg' cannot be read as a picture \({kind.__name__}\)"):
        read_picture(photograph)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_several_frames_the_first_is_read(tmp_path, suffix: str):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert (read_picture(tmp_path / f"moving.{suffix}") == [255, 0, 0]).all()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_avif_is_read(tmp_path):
    Image.new("RGB", (8, 8), (255, 255, 255)).save(tmp_path / "modern.avif")
    assert (read_picture(tmp_path / "modern.avif") >= 254).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_over_white(tmp_path, mode: str):
    path = tmp_path / "clear.tif"
    Image.new(mode, (4, 4)).save(path)
    assert (read_picture(path) == 255).all()


def test_a_palettes_transparency_is_laid_over_white(tmp_path):
    colours = chunk(b"PLTE", bytes([10, 20, 30, 255, 0, 0]))
    content = png(8, 3, b"\0\1", 2, before=colours + chunk(b"tRNS", b"\0"))
    np.testing.assert_array_equal(read(tmp_path, content), [[[255, 255, 255], [255, 0, 0]]])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation_is_applied(tmp_path, orientation: int, suffix: str):
    """As Pillow's own function does; which re-encodes all of EXIF on the way, and fails on any field of it."""
    path = tmp_path / f"turned.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=tags)
    with Image.open(path) as image:
        image.load()
        expected = np.array(ImageOps.exif_transpose(image))
    assert expected.shape[:2] == ((3, 5) if orientation < 5 else (5, 3))
    np.testing.assert_array_equal(read_picture(path), expected)


@pytest.mark.parametrize(
    ("written", "turned"),
    [
        ((3, 1, struct.pack("<HH", 6, 0)), True),
        ((3, 1, struct.pack(">HH", 6, 0), ">"), True),
        ((4, 1, struct.pack("<I", 6)), True),
        ((4, 1, struct.pack(">HH", 6, 0), ">"), True),  # a short where a long belongs
        ((9, 1, struct.pack("<i", 6)), True),
        ((11, 1, struct.pack("<f", 6.0)), True),
        ((2, 2, b"6\0\0\0"), True),
        ((7, 1, b"\6\0\0\0"), True),
        ((7, 2, b"\0\6\0\0"), True),
        ((7, 1, b"6\0\0\0"), True),
        ((3, 2, struct.pack("<HH", 6, 6)), True),
        ((3, 1, struct.pack("<HH", 9, 0)), False),
        ((3, 1, b"\0\0\0\0"), False),
        ((2, 3, b"top\0"), False),
        ((11, 1, struct.pack("<f", float("nan"))), False),
        ((5, 1, struct.pack("<I", 60000)), False),
        ((99, 1, b"\6\0\0\0"), False),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_an_orientation_is_read_in_whatever_type_it_was_written(tmp_path, written: tuple, turned: bool):
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (40, 20)).save(path, exif=exif(*written))
    assert read_picture(path).shape[:2] == ((40, 20) if turned else (20, 40))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_mistyped_and_damaged_exif_stops_nothing(tmp_path):
    """Pillow's exif_transpose raises on a width and on a GPS version that are text."""
    path = tmp_path / "x.jpg"
    turned = struct.pack("<HHIHH", ORIENTATION, 3, 1, 6, 0)
    width = struct.pack("<HHI", 0x0100, 2, 3) + b"96\0\0"
    position = struct.pack("<HHII", 0x8825, 4, 1, 38) + bytes(4)  # an IFD of its own, behind this one
    version = struct.pack("<HHHI", 1, 0, 2, 3) + b"2.2\0" + bytes(4)
    for entries, behind in ((width + turned, bytes(4)), (turned + position, version)):
        data = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + behind
        Image.new("RGB", (40, 20)).save(path, exif=data)
        with pytest.raises((TypeError, struct.error)), Image.open(path) as image:
            ImageOps.exif_transpose(image)
        assert read_picture(path).shape == (40, 20, 3)
    for damaged in (b"garbage!", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"):
        Image.new("RGB", (40, 20)).save(path, exif=b"Exif\0\0" + damaged)
        assert read_picture(path).shape == (20, 40, 3)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(VlkdError, match=r"There is no picture '.*absent.png'"):
        read_picture(tmp_path / "absent.png")


def test_a_name_that_is_no_utf8_can_be_printed(tmp_path):
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(VlkdError, match=r"caf\\xe9.png' cannot be read") as caught:
        read_picture(tmp_path / name)
    str(caught.value).encode()
    assert printable("a\tb\n\ud800é") == "a\\tb\\n\\ud800é"


@pytest.mark.parametrize("content", ["text", "torn"])
def test_an_unreadable_file_is_one_sentence(tmp_path, photograph, content: str):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"not a picture" if content == "text" else photograph.read_bytes()[:500])
    with pytest.raises(VlkdError, match=r"'.*broken.jpg' cannot be read as a picture \(.*\): give a whole PNG"):
        read_picture(path)
