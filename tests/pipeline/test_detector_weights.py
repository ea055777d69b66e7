"""Detectors by name, and weights from files and from the network."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detector_pairs import CPU, records_of, refuses
from safetensors.torch import save_file

from vlkd.pipeline.two_detectors import TwoDetectors
from vlkd.regions.zoo import coco_classes, detector_names, load_detector
from vlkd.scenes import Picture

pytestmark = pytest.mark.slow


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
