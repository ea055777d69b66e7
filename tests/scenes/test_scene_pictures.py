"""The renderer: the same bytes for the same arguments, tight boxes, disjoint splits."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlkd.errors import VlkdError
from vlkd.scenes import ATTRIBUTES, CLASSES, SPLITS, Picture, make_picture, save_pictures
from vlkd.scenes.render import render
from vlkd.scenes.scene import sample_scene
from vlkd.scenes.shapes import coverage

pytestmark = pytest.mark.slow


def fingerprint(picture: Picture) -> str:
    parts = [picture.key.encode(), picture.pixels.tobytes(), picture.boxes.tobytes(), picture.classes.tobytes()]
    parts.append(repr((picture.captions, picture.questions)).encode())
    parts += [picture.attributes[name].tobytes() for name in sorted(picture.attributes)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_same_arguments_give_the_same_bytes_here_and_in_a_fresh_process():
    here = fingerprint(make_picture(3, "validation", 7, size=112))
    assert here == fingerprint(make_picture(3, "validation", 7, size=112))
    code = f"""
from {Path(__file__).stem} import fingerprint, make_picture
print(fingerprint(make_picture(3, "validation", 7, size=112)))"""
    # another hash seed, so that no order of a set can leak into a picture
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "4321"}
    fresh = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == here


def test_other_seeds_splits_and_numbers_give_other_pictures():
    made = [make_picture(seed, split, index, size=64) for seed in (0, 1) for split in SPLITS for index in range(40)]
    assert len({picture.pixels.tobytes() for picture in made}) == len(made)
    assert len({picture.questions for picture in made}) == len(made)
    keys = [picture.key for picture in made[: 4 * 25]]
    assert len(set(keys)) == len(keys)
    assert keys[0] == "detectors-000000"


def test_shapes_types_and_ranges(pictures):
    for picture in pictures:
        count = len(picture.boxes)
        assert 4 <= count <= 9
        assert picture.pixels.shape == (192, 192, 3)
        assert picture.pixels.dtype == np.uint8
        assert picture.boxes.shape == (count, 4)
        assert picture.boxes.dtype == np.float32
        assert picture.classes.dtype == np.int64
        assert picture.classes.min() >= 0
        assert picture.classes.max() < len(CLASSES)
        assert picture.attributes.keys() == ATTRIBUTES.keys()
        for name, values in picture.attributes.items():
            assert values.shape == (count,)
            assert values.dtype == np.int64
            assert values.min() >= 0
            assert values.max() < len(ATTRIBUTES[name])


@pytest.mark.parametrize("size", [64, 112, 192, 256])
def test_boxes_lie_inside_the_picture_and_are_tight(size):
    """Against a second drawing: masks laid over one another from the back to the front."""
    for index in range(40):
        picture = make_picture(2, "train", index, size=size)
        things = scene_of(2, 1, index)
        top = np.full((size, size), -1)
        solo = []
        for i, thing in enumerate(things):
            unit = size / 192
            mask, left, upper = coverage(
                thing.cls, extent=thing.extent * unit, degrees=thing.degrees, x=thing.x * unit, y=thing.y * unit
            )
            rows, columns = np.nonzero(mask >= 128)
            assert rows.min() + upper >= 0
            assert columns.min() + left >= 0
            top[rows + upper, columns + left] = i
            solo.append(len(rows))
        for i, (x1, y1, x2, y2) in enumerate(picture.boxes):
            assert 0 <= x1 < x2 <= size
            assert 0 <= y1 < y2 <= size
            rows, columns = np.nonzero(top == i)
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x1, y1, x2, y2)
            assert len(rows) >= 0.5 * solo[i]  # at least half of every thing is visible


def scene_of(seed: int, split: int, index: int):
    layout = np.random.SeedSequence([seed, split, index]).spawn(4)[0]
    return sample_scene(np.random.default_rng(layout))


def test_repainting_a_thing_changes_the_pixels_in_its_box_and_no_others():
    for index in range(12):
        things = scene_of(4, 1, index)
        before, boxes = render(things, np.random.default_rng(index), 192)
        for i, thing in enumerate(things):
            other = replace(thing, colour=(thing.colour + 4) % len(ATTRIBUTES["colour"]))
            after, _ = render([*things[:i], other, *things[i + 1 :]], np.random.default_rng(index), 192)
            change = np.abs(after.astype(int) - before).max(axis=2)
            # pixels at the rim are mixtures, so they change less, and less clearly at a sharp corner
            rows, columns = np.nonzero(change > 0.25 * change.max())
            changed = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert np.abs(changed - boxes[i]).max() <= 2


def test_size_changes_the_drawing_but_not_the_scene():
    for index in range(20):
        small, large = (make_picture(0, "test", index, size=size) for size in (112, 192))
        assert small.captions == large.captions
        assert small.questions == large.questions
        assert np.array_equal(small.classes, large.classes)
        assert np.abs(small.boxes * 192 / 112 - large.boxes).max() <= 3


def test_classes_colours_sizes_and_numbers_are_spread_evenly(pictures):
    classes = np.bincount(np.concatenate([p.classes for p in pictures]), minlength=len(CLASSES))
    assert classes.min() > 0.5 * classes.mean()
    assert classes.max() < 1.6 * classes.mean()
    colours = np.bincount(np.concatenate([p.attributes["colour"] for p in pictures]))
    assert colours.min() > 0.7 * colours.mean()
    sizes = np.bincount(np.concatenate([p.attributes["size"] for p in pictures]))
    assert sizes.min() > 0.8 * sizes.mean()
    numbers = np.bincount([len(p.boxes) for p in pictures])[4:]
    assert numbers.min() > 0.6 * numbers.mean()


def test_save_pictures_writes_them_under_their_keys(tmp_path):
    paths = save_pictures(tmp_path / "new", 0, "test", [3, 5], size=64)
    assert [path.name for path in paths] == ["test-000003.png", "test-000005.png"]
    assert sorted((tmp_path / "new").iterdir()) == paths
    for path, index in zip(paths, (3, 5), strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), make_picture(0, "test", index, size=64).pixels)


@pytest.mark.parametrize(
    ("arguments", "size", "words"),
    [
        ((0, "dev", 0), 192, "Expected a split out of detectors, train, validation, test, but got 'dev'"),
        ((-1, "test", 0), 192, "seed to be 0 or more, but got -1"),
        ((0, "test", -4), 192, "index to be 0 or more, but got -4"),
        ((0, "test", 0), 20, "at least 64 pixels, but got 20"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(arguments, size, words):
    with pytest.raises(VlkdError, match=words):
        make_picture(*arguments, size=size)


def test_a_picture_takes_milliseconds():
    start = time.process_time()
    for index in range(30):
        make_picture(1, "train", index)
    each = (time.process_time() - start) / 30
    print(f"make_picture: {1000 * each:.1f} ms of processor time a picture")
    assert each < 0.1  # ten times what it takes, so that only a blunder fails it
