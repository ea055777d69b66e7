"""Files that are given for a detector's weights: what is in them, whatever they are called, and each mistake by its name."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vlkd.errors import VlkdError
from vlkd.regions import zoo
from vlkd.regions.weight_files import read_weights
from vlkd.regions.zoo import read_classes

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "safetensors"])
def test_what_a_file_holds_does_not_depend_on_its_suffix(tmp_path: Path, suffix: str) -> None:
    save_file(TENSORS, tmp_path / "made")
    os.replace(tmp_path / "made", tmp_path / f"a.{suffix}")
    torch.save(TENSORS, tmp_path / f"b.{suffix}")
    torch.save(TENSORS, tmp_path / f"c.{suffix}", _use_new_zipfile_serialization=False)
    assert all(same(read_weights(tmp_path / f"{name}.{suffix}")) for name in "abc")


def test_the_tensors_inside_a_checkpoint_are_found(tmp_path: Path) -> None:
    for number, content in enumerate(
        (
            {"model": TENSORS, "epoch": 3},
            {"state_dict": TENSORS, "optimizer": {"lr": 0.1}},
            {"module." + name: tensor for name, tensor in TENSORS.items()},
        )
    ):
        torch.save(content, tmp_path / f"{number}.pth")
        assert same(read_weights(tmp_path / f"{number}.pth"))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is empty"),
        (POINTER, "pointer of Git LFS, so fetch the file itself with `git lfs pull`"),
        (b"\n<!DOCTYPE html>\n<html></html>", "it is a web page"),
        (b'{"message": "Not Found"}', "it is JSON"),
        (random.Random(0).randbytes(3000), "no file of safetensors or of torch.save, or a damaged one"),
        (pickle.dumps({"a": np.zeros(3)}), "GLOBAL|numpy|no file of safetensors"),
        (b"\x1f\x8b" + bytes(99), "no file of safetensors or of torch.save"),
        (b"\x40\0\0\0\0\0\0\0{}", "are damaged"),
    ],
    ids=["empty", "lfs", "html", "json", "noise", "numpy", "gzip", "torn"],
)
def test_what_is_no_file_of_weights_says_what_it_is(tmp_path: Path, suffix: str, content: bytes, told: str) -> None:
    path = tmp_path / f"own.{suffix}"
    path.write_bytes(content)
    with pytest.raises(VlkdError, match=told) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value) and "own." in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (torch.nn.Linear(2, 2), r"more than tensors, which is not executed \(torch.nn.modules.linear.Linear\)"),
        (TENSORS["a.bias"], "hold no tensors by name, but a Tensor"),
        ({}, "hold no tensors by name"),
        ({**TENSORS, "epoch": 3}, r"something else \(int\) under 'epoch'"),
        ({1: TENSORS["a.bias"]}, r"something else \(Tensor\) under 1"),
        ({"a": TENSORS["a.weight"].to_sparse()}, "a is sparse, complex"),
        ({"a": TENSORS["a.weight"].to(torch.complex64)}, "a is sparse, complex"),
        ({"a": TENSORS["a.weight"].to("meta")}, "a is sparse, complex"),
    ],
    ids=["model", "tensor", "nothing", "number", "int-name", "sparse", "complex", "meta"],
)
def test_what_is_not_tensors_by_name_says_what_it_is(tmp_path: Path, content: object, told: str) -> None:
    torch.save(content, tmp_path / "own.pth")
    with pytest.raises(VlkdError, match=told) as caught:
        read_weights(tmp_path / "own.pth")
    assert "\n" not in str(caught.value)


def test_damaged_files_never_end_in_a_traceback(tmp_path: Path) -> None:
    draw, path = random.Random(1), tmp_path / "own.pth"
    torch.save(TENSORS, path)
    sound = path.read_bytes()
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    for content in (sound, path.read_bytes(), pickle.dumps({"a": 1, "b": [1, 2.5, "x"]})):
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(VlkdError):
            read_weights(path)
        for _ in range(60):
            damaged = bytearray(content)
            for _ in range(draw.randrange(1, 6)):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
            path.write_bytes(damaged)
            try:  # some damage leaves tensors, of other numbers
                read_weights(path)
            except VlkdError as error:
                assert "own.pth" in str(error)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "hello")
    with pytest.raises(VlkdError, match=r"no file of safetensors or of torch.save"):
        read_weights(path)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = torch.nn.Linear(3, 2)
    tensors = {"weight": torch.full((2, 3), float("nan")), "bias": torch.ones(2)}
    with pytest.raises(VlkdError, match=r"'own.pth': weight has numbers that are not finite"):
        zoo._load(model, tensors, "name", "own.pth", ("cat",))
    assert model.weight.isfinite().all()


def test_class_names_of_windows_have_no_mark_of_their_encoding(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    assert read_classes(tmp_path / "classes.txt") == ("cat", "dog")
