"""Files damaged at random are refused by one sentence, or read to finite numbers; `validate` and an import agree on which."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from oscar_files import KEYS, write_features, write_tags
from other_forms import CLASSES, bottom_up_row, lxmert_row, of_own, write_arrays, write_rows

from vlkd.data.oscar import Sources, import_oscar, validate, write_lineidx
from vlkd.errors import VlkdError

PIECES = (
    b"\n", b"\t", b"\r\n", b"\x00", b"\xff", b"\xef\xbb\xbf", b"null", b"NaN", b"-1", b"1e999", b"true", b"[]", b"{}", b'"', b"\\",
    b"=", b" ", b"e\xcc\x81", b"0", b"99999999999999999999", b"\xe9", b"-", b"_", b"+",
)  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to three bytes, pieces or lines changed, taken out, put in, or exchanged."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(max(len(data), 1))
        end = at + rng.choice((1, 1, 2, 4, 20, 200))
        lines = data.split(b"\n")
        rng.shuffle(lines)
        data = rng.choice(
            (
                data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
                data[:at] + data[end:],
                data[:at] + rng.choice(PIECES) + data[at:],
                data[:at] + rng.choice(PIECES) + data[end:],
                data[:end] + data[at:],
                data[:at],
                b"\n".join(lines),
                b"\n".join([*lines, lines[0]]),
            )
        )
    return data


def lxmert(folder: Path) -> tuple[Sources, Path]:
    (folder / "names.txt").write_text("\n".join(CLASSES))
    path = write_rows(folder / "own.tsv", [lxmert_row(key) for key in KEYS])
    return Sources(own=path, own_classes=folder / "names.txt"), path


def bottom_up(folder: Path) -> tuple[Sources, Path]:
    path = write_rows(folder / "own.tsv", [bottom_up_row(key) for key in KEYS])
    return Sources(own=path), path


def tags(folder: Path) -> tuple[Sources, Path]:
    path = write_tags(folder / "own.label.tsv")
    return Sources(own=write_features(folder / "own.tsv", of_own()), own_tags=path), path


def index(folder: Path) -> tuple[Sources, Path]:
    path = write_features(folder / "own.tsv", of_own())
    return Sources(own=path), write_lineidx(path)


def of_form(form: str) -> Callable[[Path], tuple[Sources, Path]]:
    def make(folder: Path) -> tuple[Sources, Path]:
        if form.startswith("."):
            path = write_arrays(folder / f"own{form}", of_own())
        else:
            path = write_features(folder / "own.tsv", of_own(), form)
        return Sources(own=path), path

    return make


FORMS = {form: of_form(form) for form in ("captioning", "pre-training", "extractor", ".npz", ".safetensors", ".pt")}
FORMS |= {"LXMERT": lxmert, "bottom-up": bottom_up, "tags": tags, "index": index}


@pytest.mark.parametrize("form", FORMS)
def test_damaged_files(form: str, tmp_path: Path) -> None:
    for seed in range(12):
        rng = random.Random(f"{form} {seed}")
        folder = tmp_path / str(seed)
        folder.mkdir()
        sources, path = FORMS[form](folder)
        path.write_bytes(damaged(path.read_bytes(), rng))
        problems = [finding.problem for finding in validate(sources) if finding.fatal]
        assert all(len(problem) < 800 and "\n" not in problem for problem in problems)
        if problems:
            with pytest.raises(VlkdError) as caught:
                import_oscar(sources, folder / "data")
            assert str(caught.value) in problems
            assert not (folder / "data").exists() or not list((folder / "data").iterdir())
        else:
            store = import_oscar(sources, folder / "data").store
            assert all(np.isfinite(one.features).all() for one in store.read(store.keys, "own"))  # type: ignore[union-attr]
