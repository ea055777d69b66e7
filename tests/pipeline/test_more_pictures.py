"""An extraction that goes on: in pieces after a kill, and with pictures that come to the folder later."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vlkd.cli import app
from vlkd.cli.os_errors import sentence
from vlkd.data import RegionStore
from vlkd.errors import VlkdError
from vlkd.pipeline import own_pictures, pieces
from vlkd.pipeline.own_pictures import Extracted, extract_pictures
from vlkd.pipeline.shards import Shard
from vlkd.pipeline.two_detectors import TwoDetectors
from vlkd.regions.extraction import with_geometry
from vlkd.regions.paired import RegionRecord
from vlkd.regions.picture_folder import find_pictures
from vlkd.regions.zoo import load_detector

pytestmark = pytest.mark.slow

PART = 4


class QuickDetectors(TwoDetectors):
    """One region a picture, with its mean colours as features: what a store does with them is the question here."""

    infinite = False

    def _records(self, pictures):
        records = []
        for file, pixels in pictures:
            height, width = pixels.shape[:2]
            boxes = torch.tensor([[0.0, 0.0, width, height]])
            colours = torch.from_numpy(pixels.mean(axis=(0, 1), dtype=np.float64)).float()[None] / (
                0 if self.infinite else 7
            )
            rows, tags = with_geometry(colours, boxes, width, height), ("thing",)
            box = boxes.numpy()
            records.append(RegionRecord(file.key, width, height, box, rows, rows, tags, box, rows, tags))
        return records


@pytest.fixture(scope="module")
def pair() -> TwoDetectors:
    student, teacher = load_detector("demo-student"), load_detector("demo-teacher")
    return QuickDetectors(student, teacher, device=torch.device("cpu"), max_regions=4)


def draw(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(sum(name.encode())).integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        os.utime(folder / name, ns=(10**18, 10**18))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six pictures and a broken one: two parts."""
    folder = tmp_path / "images"
    draw(folder, *(f"{letter}.png" for letter in "abcdef"))
    (folder / "broken.jpg").write_bytes(b"no picture")
    os.utime(folder / "broken.jpg", ns=(10**18, 10**18))
    return folder


def extracted(images: Path, out: Path, pair: TwoDetectors, **options) -> Extracted:
    result = extract_pictures(find_pictures(images), out, pair, pictures_a_part=PART, **options)
    assert result is not None
    return result


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, hidden files too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_regions(one: RegionStore, other: RegionStore, keys: list[str]) -> None:
    for view in ("paired", "own"):
        for left, right in zip(one.read(keys, view), other.read(keys, view), strict=True):
            for name, value in vars(left).items():
                np.testing.assert_array_equal(value, getattr(right, name))


class Stopped(BaseException):
    """As a kill: nothing handles it."""


def stop_at(monkeypatch: pytest.MonkeyPatch, pair: TwoDetectors, picture: int) -> list[str]:
    """The detectors stop before that picture (from 0); the names of those that came through."""
    seen: list[str] = []
    batch = pair._batch

    def count(pictures):
        if len(seen) == picture:
            raise Stopped
        seen.extend(file.name for file, _ in pictures)
        return batch(pictures)

    monkeypatch.setattr(pair, "_batch", count)
    return seen


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_pieces_of_a_part_survive_a_kill_and_change_no_byte(
    images: Path, tmp_path: Path, pair: TwoDetectors, dtype
) -> None:
    """Killed before every single picture in turn; each goes through the detectors once."""
    whole = extracted(images, tmp_path / "whole", pair, dtype=dtype)
    assert whole.store.keys == tuple("abcdef") and whole.computed == 7
    seen: list[str] = []
    for _ in range(5):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
            one = stop_at(patch, pair, 1)
            extracted(images, tmp_path / "pieces", pair, dtype=dtype, seconds_a_piece=0)
        seen += one
    with pytest.MonkeyPatch.context() as patch:
        one = stop_at(patch, pair, 100)
        extracted(images, tmp_path / "pieces", pair, dtype=dtype, seconds_a_piece=0)
    assert sorted(seen + one) == [f"{letter}.png" for letter in "abcdef"]
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole")


def test_a_piece_that_was_half_written_is_done_again(images: Path, tmp_path: Path, pair: TwoDetectors) -> None:
    """Killed between a piece's records and the file that says they are there."""
    extracted(images, tmp_path / "whole", pair)

    def stop(path: Path, content: str) -> None:
        if path.name.startswith("piece"):
            raise Stopped
        write(path, content)

    write = pieces.write_atomically
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(pieces, "write_atomically", stop)
        extracted(images, tmp_path / "out", pair, seconds_a_piece=0)
    assert (tmp_path / "out" / ".regions" / "piece-00000-0000.arrow").exists()
    extracted(images, tmp_path / "out", pair, seconds_a_piece=0)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_added_pictures_join_a_finished_store(images: Path, tmp_path: Path, pair: TwoDetectors) -> None:
    before = extracted(images, tmp_path / "out", pair)
    first = before.store.fingerprint
    kept = contents(tmp_path / "out" / "store")
    draw(images, "aa.png", "sub/g.png", "sub/h.png", "sub/i.png", "sub/j.png")
    with pytest.MonkeyPatch.context() as patch:
        seen = stop_at(patch, pair, 100)
        after = extracted(images, tmp_path / "out", pair)
    assert seen == ["aa.png", "sub/g.png", "sub/h.png", "sub/i.png", "sub/j.png"] and after.computed == 5
    assert after.store.keys == (*"abcdef", "aa", "sub/g", "sub/h", "sub/i", "sub/j")
    assert after.broken_count == 1 and after.gone == () and after.waiting == 0
    now = contents(tmp_path / "out" / "store")
    for name, content in kept.items():
        assert now[name] == content or not name.startswith("part")
    fresh = extracted(images, tmp_path / "fresh", pair)
    same_regions(after.store, fresh.store, list(fresh.store.keys))
    assert after.store.fingerprint == fresh.store.fingerprint != first
    assert after.store.detectors == fresh.store.detectors != {}
    assert after.broken is not None and after.broken.read_text() == (tmp_path / "fresh" / "broken.txt").read_text()
    again = extracted(images, tmp_path / "out", pair)
    assert again.computed == 0 and contents(tmp_path / "out" / "store") == now
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["broken.txt", "store"]


@pytest.mark.parametrize("place", ["write_part", "read_store", "ledger", "forget"])
def test_an_extension_can_be_stopped_anywhere(images: Path, tmp_path: Path, pair: TwoDetectors, place: str) -> None:
    """In the middle; with its parts in the store that does not know them yet; with an old ledger; before it cleans up."""
    for out in ("out", "through"):
        extracted(images, tmp_path / out, pair)
    draw(images, *(f"more/{letter}.png" for letter in "ghijk"))
    extracted(images, tmp_path / "through", pair)

    def stop(*_: object) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        if place == "write_part":
            stop_at(patch, pair, 4)
        elif place == "read_store":
            patch.setattr("vlkd.data.store.write._summary", stop)
        elif place == "ledger":
            patch.setattr("vlkd.pipeline.ledger.Ledger.write", stop)
        else:
            patch.setattr("vlkd.pipeline.rounds.Places.forget", stop)
        extracted(images, tmp_path / "out", pair)
    assert set(RegionStore.open(tmp_path / "out" / "store").keys) >= set("abcdef")  # readable all the time
    extracted(images, tmp_path / "out", pair)
    assert contents(tmp_path / "out") == contents(tmp_path / "through")


def test_two_processes_extend_a_store_as_one_does(images: Path, tmp_path: Path, pair: TwoDetectors) -> None:
    for out in ("one", "two"):
        extracted(images, tmp_path / out, pair)
    draw(images, *(f"more/{letter}.png" for letter in "ghijk"))
    extracted(images, tmp_path / "one", pair)
    found = find_pictures(images)
    assert extract_pictures(found, tmp_path / "two", pair, pictures_a_part=PART, shard=Shard(1, 2)) is None
    assert (tmp_path / "two" / ".store.unfinished" / "part-00003.arrow").exists()
    extract_pictures(found, tmp_path / "two", pair, pictures_a_part=PART, shard=Shard(0, 2))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_pictures_that_come_during_an_extraction_are_done_after_it(
    images: Path, tmp_path: Path, pair: TwoDetectors
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, pair, 5)
        extracted(images, tmp_path / "out", pair)
    draw(images, "aa.png")
    after = extracted(images, tmp_path / "out", pair)
    assert after.store.keys == (*"abcdef", "aa") and after.computed == 8 and after.waiting == 0


def test_repaired_pictures_are_tried_again_and_removed_ones_told(
    images: Path, tmp_path: Path, pair: TwoDetectors
) -> None:
    (images / "torn.png").write_bytes((images / "a.png").read_bytes()[:200])
    assert extracted(images, tmp_path / "out", pair).broken_count == 2
    draw(images, "torn.png")
    after = extracted(images, tmp_path / "out", pair)
    assert after.computed == 1 and after.store.keys == (*"abcdef", "torn") and after.broken_count == 1
    (images / "b.png").unlink()
    (images / "broken.jpg").unlink()
    last = extracted(images, tmp_path / "out", pair)
    assert last.gone == ("b.png",) and "b" in last.store.keys and last.computed == 0
    assert last.broken is None and not (tmp_path / "out" / "broken.txt").exists()


def test_what_does_not_go_with_a_finished_store_is_refused_before_detection(
    images: Path, tmp_path: Path, pair: TwoDetectors
) -> None:
    def refuses(match: str, **options) -> None:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(VlkdError, match=match):
            stop_at(patch, pair, 0)
            extracted(images, tmp_path / "out", pair, **options)

    extracted(images, tmp_path / "out", pair)
    refuses("regions made with dtype = float16, but this one has float32", dtype="float32")
    (images / "a.png").rename(images / "a.gif")
    refuses(r"'a.gif' would have the key 'a', which '.*store' has of 'a.png'")
    (images / "a.gif").rename(images / "a.png")
    os.utime(images / "a.png", ns=(1, 1))
    os.utime(images / "c.png", ns=(1, 1))
    refuses("changed since their regions were made: 'a.png' and 1 more pictures: ")
    (tmp_path / "out" / "store" / "pictures.json").unlink()
    refuses("not one that this version's `vlkd regions` made")


def test_parts_without_their_notes_are_not_trusted(images: Path, tmp_path: Path, pair: TwoDetectors) -> None:
    """Whoever deletes .regions has parts of nobody knows which pictures."""
    whole = contents(extracted(images, tmp_path / "whole", pair).store.folder)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, pair, 5)
        extracted(images, tmp_path / "out", pair)
    shutil.rmtree(tmp_path / "out" / ".regions")
    part = tmp_path / "out" / ".store.unfinished" / "part-00000.arrow"
    part.write_bytes(b"of something else")
    assert contents(extracted(images, tmp_path / "out", pair).store.folder) == whole


def test_a_store_that_is_deleted_while_it_is_extended_is_made_anew(
    images: Path, tmp_path: Path, pair: TwoDetectors
) -> None:
    extracted(images, tmp_path / "out", pair)
    draw(images, *(f"more/{letter}.png" for letter in "ghijk"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, pair, 4)
        extracted(images, tmp_path / "out", pair)
    shutil.rmtree(tmp_path / "out" / "store")
    again = extracted(images, tmp_path / "out", pair)
    fresh = extracted(images, tmp_path / "fresh", pair)
    assert sorted(again.store.keys) == sorted(fresh.store.keys) and again.broken_count == 1
    same_regions(again.store, fresh.store, list(fresh.store.keys))


def test_added_pictures_of_an_odd_kind_do_not_stop_a_sound_detector(
    images: Path, tmp_path: Path, pair: TwoDetectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_pictures, "_ENOUGH", 1)
    extracted(images, tmp_path / "out", pair)
    draw(images, "g.png")
    monkeypatch.setattr(pair, "infinite", True)
    assert extracted(images, tmp_path / "out", pair).broken_count == 2


def test_a_full_disk_names_the_folder_and_the_call_goes_on(images: Path, tmp_path: Path, pair: TwoDetectors) -> None:
    """Arrow's error knows no path."""

    def full(*_: object) -> None:
        raise OSError(28, "Error writing bytes to file")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_pictures, "write_part", full)
        with pytest.raises(OSError, match="Errno 28") as caught:
            extracted(images, tmp_path / "out", pair)
    assert sentence(caught.value).startswith(f"'{tmp_path / 'out'}': no space left on device: free some space there")
    assert extracted(images, tmp_path / "out", pair).store.keys == tuple("abcdef")


def test_a_gpu_that_is_too_small_says_what_to_change(images: Path, tmp_path: Path, pair: TwoDetectors) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair, "_records", full)
        with pytest.raises(
            VlkdError, match=r"1 pictures at once, such as 'a.png' of 40 x 32 pixels: give a smaller --batch"
        ):
            extracted(images, tmp_path / "out", pair)


@pytest.mark.parametrize("out", ["file", "file/deeper"])
def test_a_file_in_the_place_of_out_is_told_before_any_detector_is_loaded(
    images: Path, tmp_path: Path, out: str
) -> None:
    (tmp_path / "file").write_text("")
    arguments = ("--images", str(images), "--out", str(tmp_path / out), "--student", "no such", "--teacher", "detector")
    with pytest.raises(OSError, match="file") as caught:
        CliRunner().invoke(app, ["regions", *arguments], catch_exceptions=False)
    assert "a file stands where a folder is needed" in sentence(caught.value)


def test_the_command_says_what_is_left_out_new_and_gone(images: Path, tmp_path: Path) -> None:
    def regions() -> str:
        detectors = ("--student", "demo-student", "--teacher", "demo-teacher", "--device", "cpu", "--max-regions", "3")
        arguments = ("regions", "--images", str(images), "--out", str(tmp_path / "out"), *detectors)
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    (images / "notes.txt").touch()
    told = regions()
    assert "1 .txt (such as 'notes.txt')" in told and "6 pictures in " in told and "without regions: 1; " in told
    draw(images, "g.png")
    (images / "a.png").unlink()
    told = regions()
    assert "7 pictures in " in told and "1 pictures were new or tried again; the others were there already" in told
    assert "kept in the store: 1 pictures, such as 'a.png'" in told
    assert "Nothing was left to do" in regions()


def test_colliding_keys_are_told_before_any_detector_is_looked_for(images: Path, tmp_path: Path) -> None:
    draw(images, "a.gif", "b.gif")
    arguments = ("--images", str(images), "--out", str(tmp_path), "--student", "no such", "--teacher", "detector")
    with pytest.raises(VlkdError, match=r"'a.gif' and 'a.png' would both have the key 'a'; 'b.gif' and 'b.png'"):
        CliRunner().invoke(app, ["regions", *arguments], catch_exceptions=False)
