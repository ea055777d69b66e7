"""A student taught by a teacher that reads other tokens: what each receives, what is compared, and one step of each task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_store import OWN_TAGS, STUDENT_DIM, TAGS, TEACHER_DIM, make_data, make_recipe
from torch import Tensor

from vlkd.data import PretrainingSet, RegionStore, write_store
from vlkd.errors import VlkdError
from vlkd.models import QueryKey, VLModel
from vlkd.recipes import Distillation, Recipe
from vlkd.regions import RegionRecord
from vlkd.training import Stage, StageData, distill, finetune, pretrain, train_stage
from vlkd.training.method import Method
from vlkd.training.trained import Forward

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StageData:
    return make_data(tmp_path_factory.mktemp("regions") / "store", pictures=8)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return make_recipe()


@pytest.fixture(scope="module")
def models(data: StageData, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher that was never adapted, pre-trained and fine-tuned on its own regions, and a student."""
    folder = tmp_path_factory.mktemp("models")
    found = {"pretraining": train_stage(folder / "teacher", recipe, pretrain(recipe, "teacher"), data)}
    found["student"] = train_stage(folder / "student", recipe, pretrain(recipe, "student"), data)
    for task in ("captioning", "vqa"):
        stage = finetune(recipe, task, "teacher", found["pretraining"], view="own")
        found[task] = train_stage(folder / task, recipe, stage, data)
    return found


@pytest.fixture
def misaligned(recipe: Recipe, models: dict[str, Path]) -> Callable[[str], Stage]:
    """The stage of a task."""

    def stage(task: str) -> Stage:
        if task == "pretraining":
            return distill(recipe, models[task], view="misaligned")
        return finetune(recipe, task, "student", models["student"], view="misaligned", teacher=models[task])

    return stage


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[tuple[Tensor, ...]]]:
    """Region width → the (token ids, token types, regions, attention mask) of every pass of an encoder that reads such regions."""
    passes: dict[int, list[tuple[Tensor, ...]]] = {STUDENT_DIM: [], TEACHER_DIM: []}
    forward = VLModel.forward

    def spied(self, input_ids, token_type_ids, position_ids, regions, attention_mask, *index, **named):
        passes[regions.shape[-1]].append((input_ids, token_type_ids, regions, attention_mask))
        return forward(self, input_ids, token_type_ids, position_ids, regions, attention_mask, *index, **named)

    monkeypatch.setattr(VLModel, "forward", spied)
    return passes


def _rows(regions: Tensor) -> set[bytes]:
    """The regions that are no padding."""
    return {row.numpy().tobytes() for row in regions.flatten(0, -2) if row.any()}


def _stored(store: RegionStore, view: str, features: str) -> set[bytes]:
    return {row.tobytes() for item in store.read(store.keys, view) for row in getattr(item, features)}


def _tags(data: StageData, ids: Tensor) -> tuple[str, ...]:
    return tuple(data.tokenizer.decode(ids, skip_special_tokens=True).split())


@pytest.mark.parametrize("task", ["pretraining", "captioning", "vqa"])
def test_each_model_receives_its_own_tags_and_regions(
    data: StageData, recipe: Recipe, misaligned: Callable[[str], Stage], seen: dict, tmp_path: Path, task: str
) -> None:
    train_stage(tmp_path / "run", recipe, misaligned(task), data)
    student, teacher = seen[STUDENT_DIM], seen[TEACHER_DIM]
    assert len(student) == len(teacher) == 2  # a pass a step
    for (ids_s, types, regions_s, mask_s), (ids_t, types_t, regions_t, mask_t) in zip(student, teacher, strict=True):
        assert _rows(regions_s) == _stored(data.store, "paired", "student_features")
        assert _rows(regions_t) == _stored(data.store, "own", "features")
        assert torch.equal(types, types_t) and torch.equal(ids_s[types == 0], ids_t[types == 0])
        if task != "pretraining":  # where nothing is masked
            tags_s, tags_t = (
                [_tags(data, of[tags == 1]) for of, tags in zip(ids, types, strict=True)] for ids in (ids_s, ids_t)
            )
            assert set(tags_t) == {OWN_TAGS}
            assert set(tags_s) == {TAGS, TAGS[:1]}
        assert mask_s.shape == mask_t.shape and not torch.equal(mask_s, mask_t)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    terms = {"attention", "hidden"} | ({"classes"} if task != "pretraining" else set())
    assert all(np.isfinite(row[f"raw/{term}"]) and row[f"raw/{term}"] > 0 for term in terms)


def test_attention_is_compared_over_the_keys_that_both_have(data: StageData, recipe: Recipe) -> None:
    samples = PretrainingSet(data.corpora["train"], data.store, data.tokenizer, recipe.text, "misaligned")
    batch = samples.collator([samples[index] for index in range(8)])
    both = batch["compared_attention_mask"][:, 0]  # [8, L]
    method = Method({"attention": 1.0}, 2, Distillation())
    torch.manual_seed(0)
    student, teacher = (
        [torch.randn(8, 2, both.shape[1], width) for _ in range(2)] for width in (4, 8)
    )  # query and key of each

    def term(batch: dict[str, Tensor], keys_of_student: Tensor, keys_of_teacher: Tensor) -> Tensor:
        passes = (
            Forward(torch.empty(0), QueryKey(query, key, 0.5))
            for query, key in ((student[0], keys_of_student), (teacher[0], keys_of_teacher))
        )
        found = method.terms(*passes, batch)["attention"]
        assert found.count == method.rows_counted(batch).item() == 2 * batch["distill_mask"].sum()
        return found.sum

    expected = term(batch, student[1], teacher[1])
    of_one = ~both[:, None, :, None] * torch.tensor(3.0)  # keys that at most one of the two has
    assert of_one.any()
    torch.testing.assert_close(term(batch, student[1] + of_one, teacher[1] - of_one), expected)
    aligned = {name: tensor for name, tensor in batch.items() if name != "compared_attention_mask"}
    assert not torch.isclose(term(aligned, student[1], teacher[1]), expected)


def test_only_a_student_with_a_teacher_can_be_misaligned(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(VlkdError, match="trains a student without a teacher: choose the view"):
        finetune(recipe, "vqa", "student", tmp_path, view="misaligned")
    with pytest.raises(VlkdError, match="trains a teacher with a teacher: choose the view"):
        finetune(recipe, "vqa", "teacher", tmp_path, view="misaligned", teacher=tmp_path)


def test_a_store_without_own_regions_cannot_be_misaligned(
    data: StageData, recipe: Recipe, misaligned: Callable[[str], Stage], tmp_path: Path
) -> None:
    nothing = np.empty((0, 4), np.float32), np.empty((0, TEACHER_DIM), np.float32), ()
    records = [
        RegionRecord(r.key, 64, 64, r.boxes, r.student_features, r.teacher_features, r.tags, *nothing)
        for r in data.store.read(data.store.keys, "paired")
    ]
    paired = StageData(write_store(tmp_path / "store", records), data.corpora, data.tokenizer, seed=0)
    with pytest.raises(VlkdError, match="does not hold the teacher's own regions"):
        train_stage(tmp_path / "run", recipe, misaligned("captioning"), paired)
    assert not (tmp_path / "run").exists()
