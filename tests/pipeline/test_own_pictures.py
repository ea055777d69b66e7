"""One's own pictures through two detectors: what the store holds, broken files, resuming after a kill, sharding."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import fresh_process
import pytest
import torch
from detector_pairs import CPU, Small, demo, refuses, small_detector
from PIL import Image
from typer.testing import CliRunner

from vlkd.cli import app
from vlkd.data import RegionStore
from vlkd.pipeline.own_pictures import Extracted, extract_pictures
from vlkd.pipeline.shards import Shard
from vlkd.pipeline.two_detectors import TwoDetectors
from vlkd.regions.picture_folder import find_pictures
from vlkd.scenes import CLASSES, Picture

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

PART = 3


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, scenes: list[Picture]) -> Path:
    """Seven rendered pictures of three shapes in two folders, and a broken file in the middle."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "b" / "c").mkdir(parents=True)
    crops = [(128, 128), (96, 128), (128, 100)]
    for number, scene in enumerate(scenes):
        height, width = crops[number % 3]
        place = folder / ("b/c" if number > 3 else "b" if number > 1 else "")
        Image.fromarray(scene.pixels[:height, :width]).save(place / f"{number}.png")
    (folder / "b" / "broken.jpg").write_bytes(b"no picture")
    return folder


def extract_folder(images: Path, out: Path, pair: TwoDetectors, **options) -> Extracted | None:
    return extract_pictures(find_pictures(images), out, pair, **options)


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    """The store of an uninterrupted run."""
    extracted = extract_folder(images, tmp_path_factory.mktemp("whole"), demo(), pictures_a_part=PART)
    assert extracted is not None
    return extracted


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, hidden files too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def process(images: Path, out: Path, killed_at: str = "") -> None:
    """Extracts in a process of its own, which dies before the last step of a part."""
    torch.set_num_threads(1)
    rename = Path.rename

    def rename_or_die(path: Path, target: Path) -> Path:
        if Path(target).name == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, target)

    Path.rename = rename_or_die
    extract_folder(images, out, demo(), shard=Shard.from_environment(), pictures_a_part=PART)


def test_the_store_holds_both_views_under_the_paths_without_suffix(whole: Extracted) -> None:
    store = whole.store
    assert store.keys == ("0", "1", "b/2", "b/3", "b/c/4", "b/c/5", "b/c/6")
    assert store.views == ("paired", "own") and store.dtype == "float16"
    assert (store.student_dim, store.teacher_dim) == (128 + 6, 256 + 6)
    assert store.detectors == demo().identities() and store.detectors["student"].max_regions == 50
    for view in store.views:
        assert len(store.read(store.keys, view)) == 7  # verified against the geometry
        for tags in store.tags(store.keys, view):
            assert tags and set(tags) <= set(CLASSES)


def test_the_store_has_the_order_of_the_files(images: Path, whole: Extracted, tmp_path: Path, small: Small) -> None:
    pair = TwoDetectors(*small, device=CPU)
    pair.batch = 2
    extracted = extract_folder(images, tmp_path, pair)
    assert extracted is not None and extracted.store.keys == whole.store.keys


def test_broken_and_odd_files(tmp_path: Path, scenes: list[Picture], small: Small) -> None:
    images = tmp_path / "images"
    images.mkdir()
    photograph = Image.fromarray(scenes[0].pixels[:80, :128])
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    photograph.save(images / "turned.jpg", exif=turned)
    photograph.convert("L").save(images / "grey.bmp")
    photograph.convert("P").save(images / "palette.PNG")
    photograph.convert("CMYK").save(images / "print.jpeg")
    photograph.save(images / "modern.webp")
    data = (images / "turned.jpg").read_bytes()
    (images / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (images / "empty.png").touch()
    (images / "._turned.jpg").write_bytes(b"what other systems leave behind")
    Image.new("RGB", (4000, 1)).save(images / "thin.png")
    pair = TwoDetectors(*small, device=CPU)
    extracted = extract_folder(images, tmp_path / "out", pair)
    assert extracted is not None and extracted.broken is not None and extracted.broken_count == 3
    lines = [line.split("\t") for line in extracted.broken.read_text().splitlines()]
    assert [name for name, _ in lines] == ["empty.png", "thin.png", "truncated.jpg"]
    assert "too thin" in lines[1][1] and "cannot be read" in lines[2][1]
    store = extracted.store
    assert store.keys == ("grey", "modern", "palette", "print", "turned")
    sizes = [(regions.width, regions.height) for regions in store.read(store.keys, "own")]
    assert sizes == [(128, 80)] * 4 + [(80, 128)]


def test_a_killed_process_loses_and_doubles_nothing(images: Path, whole: Extracted, tmp_path: Path) -> None:
    """Killed with the second part written and not yet in its place."""
    killed = fresh_process.start(process, images, tmp_path, "part-00001.arrow")
    assert killed.end().returncode == -signal.SIGKILL
    parts = tmp_path / ".store.unfinished"
    left = [path.name for path in sorted(parts.iterdir())]
    assert left == [f".part-00001.arrow.{killed.process.pid}", "part-00000.arrow"]
    first = (parts / "part-00000.arrow").stat().st_mtime_ns
    other = demo(score_threshold=0.4)
    refuses("threshold = 0.2, but this one has 0.4", extract_folder, images, tmp_path, other, pictures_a_part=PART)
    extract_folder(images, tmp_path, demo(), pictures_a_part=PART)
    assert (tmp_path / "store" / "part-00000.arrow").stat().st_mtime_ns == first
    assert contents(tmp_path) == contents(whole.store.folder.parent)


@pytest.mark.parametrize("place", ["own_pictures.finish_store", "rounds.Places.forget"])
def test_stopped_while_it_finishes(
    place: str, images: Path, whole: Extracted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the store is in its place, and after that."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"vlkd.pipeline.{place}", stop)
        extract_folder(images, tmp_path, demo(), pictures_a_part=PART)
    assert (tmp_path / ".regions").exists()
    done = extract_folder(images, tmp_path, demo(), pictures_a_part=PART)
    assert done is not None and done.broken_count == 1
    assert contents(tmp_path) == contents(whole.store.folder.parent)


def test_two_processes_write_the_bytes_of_one(images: Path, whole: Extracted, tmp_path: Path) -> None:
    environments = [{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)} for rank in range(2)]
    for started in [fresh_process.start(process, images, tmp_path, **environment) for environment in environments]:
        finished = started.end()
        assert finished.returncode == 0, finished.stderr
    assert contents(tmp_path) == contents(whole.store.folder.parent)


def test_a_process_takes_its_own_parts_only(images: Path, tmp_path: Path) -> None:
    assert extract_folder(images, tmp_path, demo(), shard=Shard(1, 2), pictures_a_part=PART) is None
    assert [path.name for path in (tmp_path / ".store.unfinished").iterdir()] == ["part-00001.arrow"]
    # Another number of processes goes on.
    done = extract_folder(images, tmp_path, demo(), pictures_a_part=PART)
    assert done is not None and len(done.store) == 7


def test_a_finished_store_is_taken_as_it_is_and_another_refused(images: Path, whole: Extracted) -> None:
    out = whole.store.folder.parent
    before = contents(out)
    again = extract_folder(images, out, demo(), pictures_a_part=PART)
    assert again is not None and again.broken_count == whole.broken_count == 1
    assert contents(out) == before
    assert again.computed == 0 and whole.computed == 8
    match = "regions made with max-regions = 50, but this one has 2: "
    refuses(match, extract_folder, images, out, demo(max_regions=2))


def test_other_pictures_do_not_go_into_an_unfinished_store(tmp_path: Path, images: Path) -> None:
    extract_folder(images, tmp_path, demo(), shard=Shard(1, 2), pictures_a_part=PART)
    picture = images / "0.png"
    stat = picture.stat()
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    try:
        refuses(
            "have changed since .* was begun: '0.png': ", extract_folder, images, tmp_path, demo(), pictures_a_part=PART
        )
    finally:
        os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_mistakes_in_the_folder_are_one_sentence(tmp_path: Path) -> None:
    refuses("no folder", find_pictures, tmp_path / "none")
    refuses("no picture in", find_pictures, tmp_path)
    (tmp_path / "a").mkdir()
    for name in ("a/x.jpg", "a/x.PNG"):
        (tmp_path / name).write_bytes(b"no picture")
    refuses("'a/x.PNG' and 'a/x.jpg' would both have the key 'a/x'", find_pictures, tmp_path)
    (tmp_path / "a" / "x.PNG").unlink()
    refuses("None of 1 pictures gave regions.*cannot be read", extract_folder, tmp_path, tmp_path / "out", demo())
    assert "a/x.jpg" in (tmp_path / "out" / "broken.txt").read_text()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["broken.txt"]


def test_detectors_whose_features_no_store_can_hold_are_told_early(images: Path, tmp_path: Path, monkeypatch) -> None:
    student, teacher = small_detector(0), small_detector(1)
    torch.nn.init.constant_(teacher.model.roi_heads.box_head.fc7.bias, 1e5)
    pair = TwoDetectors(student, teacher, device=CPU)
    refuses(
        "None of 8 pictures gave regions.*beyond float16's 65504.*take float32", extract_folder, images, tmp_path, pair
    )
    monkeypatch.setattr("vlkd.pipeline.own_pictures._ENOUGH", 2)
    match = "None of the first 2 pictures' features can be stored: Picture '1': .*beyond float16's 65504.*take float32"
    refuses(match, extract_folder, images, tmp_path / "again", pair)
    assert not list((tmp_path / "again").iterdir())  # the same folder can be taken with float32
    torch.nn.init.constant_(teacher.model.roi_heads.box_head.fc7.bias, float("nan"))
    refuses("nan, but finite numbers are expected", extract_folder, images, tmp_path / "nan", pair)


def test_one_picture_without_finite_features_is_a_broken_one(
    images: Path, tmp_path: Path, small: Small, monkeypatch
) -> None:
    pair = TwoDetectors(*small, device=CPU)
    features, calls = pair.teacher.features, iter(range(100))

    def sometimes_infinite(maps, boxes):
        (found,) = features(maps, boxes)
        return [found * float("inf") if next(calls) == 3 else found]

    monkeypatch.setattr(pair.teacher, "features", sometimes_infinite)
    extracted = extract_folder(images, tmp_path, pair)
    assert extracted is not None and extracted.broken is not None and extracted.broken_count == 2
    lines = extracted.broken.read_text().splitlines()
    assert lines[0].startswith("1.png\tPicture '1': features: number ") and "finite numbers are expected" in lines[0]
    assert extracted.store.keys == ("0", "b/2", "b/3", "b/c/4", "b/c/5", "b/c/6")


def test_the_environment_tells_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Shard.from_environment() == Shard(0, 1, 0)
    monkeypatch.setenv("RANK", "2")
    refuses("RANK=2, WORLD_SIZE=1", Shard.from_environment)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Shard.from_environment() == Shard(2, 4, 0)
    refuses("no device 'tpu9x'", Shard().device, "tpu9x")
    refuses("there are .* GPUs", Shard().device, "cuda:99")
    refuses("needs a GPU", demo, precision="bf16")
    assert Shard().device("cpu") == CPU


def test_the_command_makes_data_that_a_teacher_is_trained_on(images: Path, tmp_path: Path) -> None:
    def vlkd(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    out = tmp_path / "data"
    detectors = ("--student", "demo-student", "--teacher", "demo-teacher", "--device", "cpu")
    told = vlkd("regions", "--images", images, *detectors, "--out", out)
    assert "7 pictures" in told and "134 (student) and 262 (teacher)" in told and "without regions: 1; " in told
    store = RegionStore.open(out / "store")
    captions = [{"image_id": key, "caption": f"a picture of a {number}"} for number, key in enumerate(store.keys)]
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    vlkd("data", "texts", out, "--split", "train", "--captions", tmp_path / "captions.json")
    tiny = ("quick", "text.vocabulary=120", "schedules.teacher={steps: 1, batch: 2, lr: 1.0e-3}")
    for view in (("--role", "teacher"), ("--role", "student")):
        vlkd("pretrain", *tiny, "schedules.student={steps: 1, batch: 2, lr: 1.0e-3}", *view, "--data", out,
             "--out", tmp_path / view[1])  # fmt: skip
        assert (tmp_path / view[1] / "model" / "model.safetensors").is_file()
