"""Detector weights on disk: one safetensors file a detector, and ``weights.json`` that says what they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from vlkd.errors import VlkdError
from vlkd.recipes import Detector, Detectors
from vlkd.regions.detectors import FasterRCNNWithAttributes, build_detector
from vlkd.runs import write_atomically
from vlkd.scenes import ATTRIBUTES, CLASSES

ROLES = ("student", "teacher")
_ARCHITECTURE = ("backbone", "input_size", "feature_dim")  # the other settings say how to train
_HINT = "run `vlkd demo --from-scratch` to train detectors for these settings"


def packaged_folder() -> Path:
    """The folder of the weights that ship with the package."""
    return Path(__file__).parent / "weights"


def load_packaged_detectors(
    settings: Detectors,
) -> tuple[FasterRCNNWithAttributes, FasterRCNNWithAttributes]:
    """(student, teacher) from the shipped weights, in eval mode on the CPU.

    Raises:
        VlkdError: the recipe's detectors, or the scenes' vocabulary, are not the ones they were trained for.
    """
    return load_detectors(packaged_folder(), settings)


def load_detectors(folder: Path, settings: Detectors) -> tuple[FasterRCNNWithAttributes, FasterRCNNWithAttributes]:
    """(student, teacher) from a folder that :func:`vlkd.regions.fit_detectors` wrote."""
    return _load(folder, "student", settings.student), _load(folder, "teacher", settings.teacher)


def weights_facts(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """Role → how its weights were made: settings, seed, AP50, vocabulary fingerprint."""
    path = (folder or packaged_folder()) / "weights.json"
    if not path.is_file():
        raise VlkdError(f"There are no detector weights in '{path.parent}': {_HINT}.")
    return json.loads(path.read_text(encoding="utf-8"))


def vocabulary_fingerprint() -> str:
    """Changes when the detectors' classes or attributes do."""
    words = json.dumps([CLASSES, ATTRIBUTES], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def save_detector(
    folder: Path, role: str, detector: FasterRCNNWithAttributes, *, ap50: float, seed: int, picture_size: int
) -> None:
    """Write ``role``.safetensors (matrices in fp16, the rest in fp32) and its entry in weights.json."""
    from safetensors.torch import save

    tensors = {name: _stored(tensor) for name, tensor in detector.state_dict().items()}
    write_atomically(folder / f"{role}.safetensors", save(tensors))
    path = folder / "weights.json"
    facts = weights_facts(folder) if path.is_file() else {}
    facts[role] = {
        "settings": detector.settings.model_dump(),
        "vocabulary": vocabulary_fingerprint(),
        "ap50": round(ap50, 4),
        "seed": seed,
        "picture_size": picture_size,
    }
    write_atomically(path, json.dumps(facts, indent=2, sort_keys=True) + "\n")


def _load(folder: Path, role: str, settings: Detector) -> FasterRCNNWithAttributes:
    from safetensors.torch import load_file

    facts = weights_facts(folder).get(role)
    path = folder / f"{role}.safetensors"
    if facts is None or not path.is_file():
        raise VlkdError(f"There are no weights of the {role}'s detector in '{folder}': {_HINT}.")
    for name in _ARCHITECTURE:
        value = getattr(settings, name)
        if facts["settings"].get(name) != value:
            raise VlkdError(
                f"The {role}'s detector weights in '{folder}' were trained with {name} = "
                f"{facts['settings'].get(name)}, but the recipe says {value}: {_HINT}, or restore the setting."
            )
    if facts["vocabulary"] != vocabulary_fingerprint():
        raise VlkdError(
            f"The {role}'s detector weights in '{folder}' were trained for other classes or attributes "
            f"(fingerprint {facts['vocabulary']}, the scenes' is {vocabulary_fingerprint()}): {_HINT}."
        )
    detector = build_detector(settings)
    detector.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return detector.eval()


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    # Norm statistics and biases are few and may leave fp16's range; matrices are what fills the file.
    tensor = tensor.detach().cpu().contiguous()
    return tensor.half() if tensor.is_floating_point() and tensor.dim() > 1 else tensor
