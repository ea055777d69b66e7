"""One's own pictures through two detectors: what the store holds, broken files, resuming after a kill, sharding."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import fresh_process
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from typer.testing import CliRunner

from vlkd.cli import app
from vlkd.data import RegionStore
from vlkd.errors import VlkdError
from vlkd.pipeline.exported import ExportedModel
from vlkd.pipeline.own_pictures import Extracted, extract_pictures
from vlkd.pipeline.shards import Shard
from vlkd.pipeline.two_detectors import TwoDetectors
from vlkd.recipes import Detectors
from vlkd.regions import extract, load_packaged_detectors
from vlkd.regions.picture_folder import PictureFile, find_pictures
from vlkd.regions.two_stage import UNNAMED, TwoStageDetector
from vlkd.regions.zoo import coco_classes, detector_names, load_detector
from vlkd.scenes import CLASSES, Picture, make_picture

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
CLASS_NAMES = ("cat", UNNAMED, "dog")
PART = 3
Small = tuple[TwoStageDetector, TwoStageDetector]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As in the processes below, so that bits can be compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scenes() -> list[Picture]:
    return [make_picture(5, "test", index) for index in range(7)]


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


def demo(**options) -> TwoDetectors:
    student, teacher = load_detector("demo-student"), load_detector("demo-teacher")
    return TwoDetectors(student, teacher, device=CPU, **options)


def extract_folder(images: Path, out: Path, pair: TwoDetectors, **options) -> Extracted | None:
    return extract_pictures(find_pictures(images), out, pair, **options)


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    """The store of an uninterrupted run."""
    extracted = extract_folder(images, tmp_path_factory.mktemp("whole"), demo(), pictures_a_part=PART)
    assert extracted is not None
    return extracted


def small_detector(seed: int) -> TwoStageDetector:
    """A random ResNet-18 FPN on inputs of 96 to 160 pixels."""
    torch.manual_seed(seed)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    sizes = {"min_size": 96, "max_size": 160, "rpn_post_nms_top_n_test": 20}
    return TwoStageDetector(FasterRCNN(backbone, len(CLASS_NAMES) + 1, **sizes), CLASS_NAMES)


@pytest.fixture(scope="module")
def small() -> Small:
    """For tests that leave them as they are."""
    return small_detector(0), small_detector(1)


def records_of(pair: TwoDetectors, *pictures: np.ndarray) -> list:
    files = [PictureFile(Path(), f"{number}.png") for number in range(len(pictures))]
    return list(pair.records(zip(files, pictures, strict=True)))


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


def refuses(match: str, call, *arguments, **options) -> None:
    with pytest.raises(VlkdError, match=match) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)


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


def test_the_demos_detectors_give_what_the_demo_extracts(scenes: list[Picture]) -> None:
    """Two implementations: the demo's own, and this one for any detector."""
    pair = demo(max_regions=12)
    for scene, record in zip(scenes, records_of(pair, *(scene.pixels for scene in scenes)), strict=True):
        (expected,) = extract([scene], *load_packaged_detectors(Detectors()), 12, 0.2, batch=1)
        for name, value in vars(expected).items():
            if name != "key":
                np.testing.assert_array_equal(value, getattr(record, name), err_msg=name)


def test_features_are_the_box_heads_own_of_the_students_boxes(small: Small) -> None:
    """Called part by part on the resized picture, without the code under test."""
    student, teacher = small
    pixels = np.random.default_rng(0).integers(0, 256, (75, 110, 3), dtype=np.uint8)
    (record,) = records_of(TwoDetectors(student, teacher, device=CPU, score_threshold=0.0), pixels)
    assert 1 < len(record.student_boxes) <= 21
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    cases = [
        (student, record.student_boxes, record.student_features),
        (teacher, record.student_boxes, record.teacher_features),
        (teacher, record.own_boxes, record.own_features),
    ]
    for detector, boxes, features in cases:
        model = detector.model
        with torch.inference_mode():
            inputs, _ = model.transform([image])
            height, width = inputs.image_sizes[0]
            assert (height, width) != tuple(inputs.tensors.shape[-2:]) != (75, 110)  # resized, then padded
            scaled = torch.from_numpy(boxes) * torch.tensor([width / 110, height / 75] * 2)
            pooled = model.roi_heads.box_roi_pool(
                model.backbone(inputs.tensors), [scaled], [tuple(inputs.tensors.shape[-2:])]
            )
            expected = model.roi_heads.box_head(pooled).numpy()
        # Boxes are scaled in another order of operations; the features are of size 1.
        np.testing.assert_allclose(features[:, :-6], expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
        assert features.shape[1] == 1024 + 6 and expected.std() > 0
    assert np.abs(record.teacher_features[:, :-6] - record.student_features[:, :-6]).max() > 1e-3


def test_boxes_are_the_detectors_own_in_original_pixels(small: Small) -> None:
    """Every box is one of torchvision's, which has them per class and without the whole picture."""
    detector = small_detector(0)
    pixels = np.random.default_rng(1).integers(0, 256, (240, 360, 3), dtype=np.uint8)
    (record,) = records_of(TwoDetectors(detector, small[1], device=CPU, score_threshold=0.0), pixels)
    roi_heads = detector.model.roi_heads
    roi_heads.score_thresh, roi_heads.nms_thresh, roi_heads.detections_per_img = 0.0, 1.0, 1000
    with torch.inference_mode():
        (found,) = detector.model([torch.from_numpy(pixels).permute(2, 0, 1).float() / 255])
    distance = np.abs(record.student_boxes[:, None] - found["boxes"].numpy()).max(axis=-1).min(axis=1)  # [n]
    assert (distance < 0.01).sum() >= len(distance) - 1  # all but the one that started as the whole picture
    assert record.student_boxes[:, 2].max() > 160 and (record.student_boxes <= [360.01, 240.01, 360.01, 240.01]).all()
    assert UNNAMED not in record.tags


def test_a_blank_picture_keeps_one_region_and_the_limit_holds(small: Small) -> None:
    pair = TwoDetectors(*small, device=CPU, score_threshold=1.0)
    (record,) = records_of(pair, np.full((60, 90, 3), 255, dtype=np.uint8))
    assert len(record.student_boxes) == len(record.own_boxes) == len(record.tags) == 1
    pair.score_threshold, pair.max_regions = 0.0, 4
    (record,) = records_of(pair, np.random.default_rng(2).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    assert len(record.student_boxes) <= 4


def test_a_detector_without_proposals_gives_the_whole_picture() -> None:
    detectors = small_detector(0), small_detector(1)
    for detector in detectors:
        detector.model.rpn.score_thresh = 2.0
        torch.nn.init.zeros_(detector.model.roi_heads.box_predictor.bbox_pred.weight)
        torch.nn.init.zeros_(detector.model.roi_heads.box_predictor.bbox_pred.bias)
    (record,) = records_of(TwoDetectors(*detectors, device=CPU), np.zeros((60, 90, 3), dtype=np.uint8))
    for boxes in (record.student_boxes, record.own_boxes):
        np.testing.assert_allclose(boxes, [[0, 0, 90, 60]], atol=1e-3)


def test_a_picture_too_thin_for_an_exported_models_detector_is_named(small: Small) -> None:
    model = ExportedModel(Path(), None, small[0], 0.2, 5)  # type: ignore[arg-type]  # the card is not asked
    refuses(
        "'thin.png' cannot be looked at: 4000 x 1 pixels are too thin",
        model._regions,
        "thin.png",
        np.zeros((1, 4000, 3), np.uint8),
    )
    record = model._regions("dot.png", np.zeros((1, 1, 3), np.uint8))
    record.check()


def test_bits_do_not_depend_on_the_batch_and_its_company(scenes: list[Picture], small: Small) -> None:
    shapes = [(128, 128), (40, 128), (128, 128), (128, 60)]
    pixels = [scene.pixels[:height, :width] for scene, (height, width) in zip(scenes, shapes, strict=False)]
    together = records_of(TwoDetectors(*small, device=CPU, batch=4), *pixels)
    for number, one in enumerate(pixels):
        (alone,) = records_of(TwoDetectors(*small, device=CPU, batch=1), one)
        for name, value in vars(alone).items():
            if name != "key":
                np.testing.assert_array_equal(value, getattr(together[number], name), err_msg=name)


def test_batches_of_one_size_change_only_rounding(scenes: list[Picture], small: Small) -> None:
    """As on a GPU: batches of pictures of one input size, in whatever order they fill."""
    shapes = [(128, 128), (40, 128), (128, 128), (128, 60), (128, 128)]
    pixels = [scene.pixels[:height, :width] for scene, (height, width) in zip(scenes, shapes, strict=False)]
    pair = TwoDetectors(*small, device=CPU)
    alone = records_of(pair, *pixels)
    pair.batch = 2
    batched = records_of(pair, *pixels)
    assert [record.key for record in batched] == ["0", "2", "1", "3", "4"]  # the first full pair, then what is left
    for record in batched:
        expected = alone[int(record.key)]
        np.testing.assert_allclose(record.student_boxes, expected.student_boxes, rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(record.teacher_features, expected.teacher_features, rtol=1e-3, atol=1e-3)


def test_below_fp32_boxes_are_still_exact(scenes: list[Picture]) -> None:
    """The GPU's way, in the CPU's autocast: bfloat16 has 8 bits, too few for the pixels of a box."""
    pair = TwoDetectors(small_detector(0), small_detector(1), device=CPU, score_threshold=0.0)
    (exact,) = records_of(pair, scenes[0].pixels)
    for detector in (pair.student, pair.teacher):
        detector._half = torch.bfloat16
    (mixed,) = records_of(pair, scenes[0].pixels)
    with torch.autocast("cpu", torch.bfloat16):
        scores, offsets = pair.student.model.rpn.head([torch.rand(1, 256, 4, 4)])
    assert scores[0].dtype == offsets[0].dtype == torch.float32
    rounded = torch.from_numpy(mixed.student_boxes).bfloat16().float().numpy()
    assert mixed.student_boxes.dtype == np.float32 and (rounded != mixed.student_boxes).mean() > 0.5
    # Random detectors' scores are close together, so boxes are compared as sets: within a pixel of one of the exact.
    distance = np.abs(mixed.own_boxes[:, None] - exact.own_boxes).max(axis=-1).min(axis=1)
    assert np.median(distance) < 1.0
    differing = np.abs(mixed.own_features[:, :-6].mean() / exact.own_features[:, :-6].mean() - 1)
    assert 0 < differing < 0.1


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


def test_weights_come_from_files_without_running_them(tmp_path: Path) -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "one.txt").write_text("cat\n\n")
    classes = tmp_path / "classes.txt"
    made = load_detector(name, "random", classes)
    assert made.classes == ("cat", "dog") and made.feature_dim == 1024
    tensors = {key: tensor.clone() for key, tensor in made.model.state_dict().items()}
    torch.nn.init.constant_(tensors["roi_heads.box_predictor.cls_score.bias"], 3.0)
    save_file(tensors, tmp_path / "own.safetensors")
    torch.save({"model": tensors, "epoch": 3}, tmp_path / "own.pth")
    loaded = [load_detector(name, tmp_path / file, classes) for file in ("own.safetensors", "own.pth")]
    assert loaded[0].fingerprint() == loaded[1].fingerprint() != made.fingerprint()
    assert load_detector(name, "random", classes).fingerprint() == made.fingerprint()

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": tensors, "x": Evil()}, tmp_path / "evil.pth")
    refuses("hold more than tensors", load_detector, name, tmp_path / "evil.pth", classes)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "torn.safetensors").write_bytes(b"0123456789")
    refuses("damaged", load_detector, name, tmp_path / "torn.safetensors", classes)
    refuses("tells 2 classes apart, but 90 names", load_detector, name, tmp_path / "own.pth")
    refuses("line 2 is blank", load_detector, name, "random", tmp_path / "one.txt")
    refuses("are no weights of", load_detector, "fasterrcnn_resnet50_fpn_v2", tmp_path / "own.pth", classes)
    refuses("There are no detector weights", load_detector, name, tmp_path / "none.pth", classes)
    refuses("give the weights of", load_detector, name, None, classes)


def test_names_and_their_weights() -> None:
    names = detector_names()
    assert {"demo-student", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_resnet101_fpn"} <= set(names)
    assert len(coco_classes()) == 90 and coco_classes()[0] == "person"
    refuses("choose one of demo-student", load_detector, "yolo")
    refuses("no published weights", load_detector, "fasterrcnn_efficientnet_b0_fpn")
    refuses("its own weights", load_detector, "demo-student", "random")


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **options: object) -> None:
        assert options["weights_only"] and options["check_hash"]
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    refuses(rf"'{name}' cannot be fetched from https://.*no network", load_detector, name)


def test_the_light_detector_gives_regions(scenes: list[Picture]) -> None:
    detector = load_detector("fasterrcnn_efficientnet_b0_fpn", "random")
    detector.model.transform.min_size = (128,)
    (record,) = records_of(TwoDetectors(detector, detector, device=CPU, score_threshold=0.0), scenes[0].pixels)
    assert record.student_features.shape[1] == 1024 + 6
    np.testing.assert_array_equal(record.student_features, record.teacher_features)
    weights = sum(parameter.numel() for parameter in detector.model.parameters())
    assert weights < 10e6  # torchvision's lightest has 19 million


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
