"""Training a detector: it learns, it resumes to the same bits, its AP50 is COCO's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vlkd.errors import VlkdError
from vlkd.recipes import Detector, Detectors
from vlkd.regions import ap50, ap50_by_class, build_detector, fit_detector, fit_detectors, load_detectors
from vlkd.regions.detectors import Detections
from vlkd.regions.fit import targets_of
from vlkd.scenes import ATTRIBUTES, CLASSES, make_picture

pytestmark = pytest.mark.slow

TINY = Detector(backbone="shufflenet", input_size=64, feature_dim=32, steps=6, batch=2)


class Oracle(torch.nn.Module):
    """Stands in for a detector: answers with the annotations, changed by ``change``."""

    def __init__(self, pictures, change=lambda boxes, classes: (boxes, classes)):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self._answers = iter([change(torch.from_numpy(p.boxes), torch.from_numpy(p.classes)) for p in pictures])

    def maps(self, images):
        return len(images)

    def detections(self, maps, limit, threshold):
        answers = [next(self._answers) for _ in range(maps)]
        return [Detections(boxes, classes, torch.linspace(0.9, 0.5, len(boxes))) for boxes, classes in answers]


@pytest.fixture(scope="module")
def pictures():
    return [make_picture(1, "validation", index) for index in range(10)]


def test_ap50_of_the_annotations_themselves_is_one(pictures):
    assert ap50(Oracle(pictures), pictures) == pytest.approx(1.0)
    assert set(ap50_by_class(Oracle(pictures), pictures)) == {CLASSES[c] for p in pictures for c in p.classes}


@pytest.mark.parametrize(("shift", "expected"), [(0.2, 1.0), (0.45, 0.0)])
def test_ap50_asks_for_an_overlap_of_half(pictures, shift: float, expected: float):
    # A box moved by the share s of its width overlaps by (1 - s) / (1 + s): 0.67 and 0.38.
    def moved(boxes, classes):
        step = torch.zeros_like(boxes)
        step[:, ::2] = shift * (boxes[:, 2:3] - boxes[:, :1])
        return boxes + step, classes

    apart = [replace(p, boxes=p.boxes[:1], classes=p.classes[:1]) for p in pictures]
    assert ap50(Oracle(apart, moved), apart) == pytest.approx(expected)


def test_ap50_of_wrong_classes_is_zero(pictures):
    apart = [replace(p, boxes=p.boxes[:1], classes=p.classes[:1]) for p in pictures]
    wrong = Oracle(apart, lambda boxes, classes: (boxes, (classes + 1) % len(CLASSES)))
    assert ap50(wrong, apart) == 0.0


def test_a_training_step_learns_every_head_from_annotations():
    torch.manual_seed(0)
    detector = build_detector(TINY).train()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    pictures = [make_picture(0, "detectors", index) for index in range(2)]
    images = [torch.from_numpy(p.pixels).permute(2, 0, 1) / 255 for p in pictures]
    targets = [targets_of(p, torch.device("cpu")) for p in pictures]
    history = []
    for _ in range(25):
        losses = detector(images, targets)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        history.append({name: float(loss.detach()) for name, loss in losses.items()})
    assert {f"loss_{name}" for name in ATTRIBUTES} <= set(history[0])
    for name in ("loss_classifier", "loss_objectness", *(f"loss_{name}" for name in ATTRIBUTES)):
        assert history[-1][name] < 0.8 * history[0][name], name


def test_a_picture_without_objects_trains_without_nan():
    picture = make_picture(0, "detectors", 0)
    empty = replace(
        picture,
        boxes=picture.boxes[:0],
        classes=picture.classes[:0],
        attributes={name: values[:0] for name, values in picture.attributes.items()},
    )
    detector = build_detector(TINY).train()
    images = [torch.from_numpy(picture.pixels).permute(2, 0, 1) / 255] * 2
    losses = detector(images, [targets_of(empty, torch.device("cpu"))] * 2)
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(float(losses[f"loss_{name}"].detach()) == 0 for name in ATTRIBUTES)


def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, monkeypatch):
    whole = fit_detector(TINY, 3, validation=1).detector.state_dict()
    path = tmp_path / "checkpoint.pt"
    rendered = 0

    def breaking(*arguments, **options):
        nonlocal rendered
        rendered += 1
        if rendered > 4 * TINY.batch:
            raise KeyboardInterrupt
        return make_picture(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("vlkd.regions.fit.make_picture", breaking)
        fit_detector(TINY, 3, validation=1, checkpoint=path, checkpoint_every=2)
    assert torch.load(path, weights_only=True)["steps"] == 4
    resumed = fit_detector(TINY, 3, validation=1, checkpoint=path).detector.state_dict()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    with pytest.raises(VlkdError, match=r"made with seed = 3, but the recipe says 4"):
        fit_detector(TINY, 4, validation=1, checkpoint=path)


def test_training_does_not_touch_the_callers_generator():
    state = torch.random.get_rng_state()
    fit_detector(TINY.model_copy(update={"steps": 1}), 0, validation=1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_trained_detectors_are_saved_and_read_back(tmp_path):
    settings = Detectors(student=TINY, teacher=TINY.model_copy(update={"feature_dim": 48}))
    fitted = fit_detectors(tmp_path, settings, seed=0, validation=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "student.safetensors",
        "teacher.safetensors",
        "weights.json",
    ]
    for role, detector in zip(("student", "teacher"), load_detectors(tmp_path, settings), strict=True):
        for name, tensor in fitted[role].detector.state_dict().items():
            # Matrices are stored in fp16, which keeps 11 bits.
            np.testing.assert_allclose(detector.state_dict()[name].numpy(), tensor.numpy(), rtol=2**-11, atol=1e-6)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(VlkdError, match=r"no detector weights.*--from-scratch"):
        load_detectors(tmp_path, Detectors())
