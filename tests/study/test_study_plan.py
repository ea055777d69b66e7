"""A study's rows, and which stages they share."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlkd.errors import VlkdError
from vlkd.recipes import load_recipe
from vlkd.study import load_study
from vlkd.study.plan import StudyPlan
from vlkd.study.rows import StudySpec

ROWS = """
name: mine
recipe: quick
seeds: {main: 2, others: 1}
rows:
  - {name: student, group: Models, model: student, main: true}
  - {name: taught, group: Models, model: distilled, main: true, baseline: student}
"""


def plan_of(*names: str, seeds: int = 1) -> StudyPlan:
    spec = load_study("ablations")
    plan = StudyPlan(Path("runs"))
    for row in spec.rows:
        for seed in spec.seeds_of(row, seeds) if row.name in names else ():
            plan.add(row, load_recipe("quick", [*row.changes, f"seed={seed}"]), seed)
    return plan


def stages(plan: StudyPlan) -> list[str]:
    return sorted(name.rpartition("-seed")[0] for name in plan.jobs)


FINETUNED = ("captioning", "vqa")
TEACHER = ["adapted-captioning", "adapted-pretraining", "adapted-vqa", "teacher-pretraining"]
STUDENT = ["student-captioning", "student-pretraining", "student-vqa"]
TAUGHT = ["distilled-captioning", "distilled-pretraining", "distilled-vqa"]


def test_a_row_is_trained_with_all_that_it_stands_on() -> None:
    assert stages(plan_of("student")) == STUDENT
    assert stages(plan_of("distilled student")) == sorted(TEACHER + TAUGHT)
    assert stages(plan_of("teacher", "teacher, not adapted")) == [
        "teacher-captioning",
        "teacher-pretraining",
        "teacher-vqa",
    ]


def test_rows_share_what_does_not_differ() -> None:
    both = ("distilled student", "attention + hidden states")  # which differ in fine-tuning alone
    assert stages(plan_of(*both)) == sorted(TEACHER + TAUGHT + ["distilled-captioning", "distilled-vqa"])
    where = ("student", "distilled student", "in pre-training", "in fine-tuning")
    tuned = ["distilled-captioning", "distilled-vqa"]
    assert stages(plan_of(*where)) == sorted(TEACHER + STUDENT + TAUGHT + 2 * tuned)
    queues = plan_of("distilled student", "queue of 64", "no queue")
    assert stages(queues) == sorted(TEACHER + 3 * TAUGHT)


def test_every_seed_is_trained_by_itself() -> None:
    plan = plan_of("student", seeds=3)
    assert len(plan.jobs) == 9 and [exam.seed for exam in plan.exams] == [0, 1, 2]
    assert {job.recipe.seed for job in plan.jobs.values()} == {0, 1, 2}
    assert {job.recipe.world.seed for job in plan.jobs.values()} == {0}


def test_nothing_comes_before_what_it_reads() -> None:
    plan = plan_of(*(row.name for row in load_study("ablations").rows), seeds=2)
    seen: set[str] = set()
    for name, job in plan.jobs.items():
        assert set(job.after) <= seen, name
        stage = job.job.stage
        assert len(job.after) == len([weights for weights in (stage.start, stage.teacher) if weights])
        seen.add(name)
    assert all(set(exam.after) <= seen for exam in plan.exams)
    assert len(plan.exams) == 2 * len(load_study("ablations").rows)


def test_a_misaligned_student_learns_from_the_teacher_that_was_not_adapted() -> None:
    plan = plan_of("misaligned")
    assert stages(plan) == sorted(["teacher-captioning", "teacher-pretraining", "teacher-vqa", *TAUGHT])
    taught = [job.job.stage for name, job in plan.jobs.items() if name.startswith("distilled")]
    assert {stage.view for stage in taught} == {"misaligned"}
    (exam,) = plan.exams
    assert (exam.trained.role, exam.trained.view) == ("student", "paired")


def test_a_share_is_pre_trained_on_alone() -> None:
    plan = plan_of("distilled student, 1 %")
    shares = {name.rpartition("-seed")[0]: job.job.stage.share for name, job in plan.jobs.items()}
    assert {name for name, share in shares.items() if share == 0.01} == {"distilled-pretraining"}


def test_chosen_rows_bring_what_they_are_compared_with() -> None:
    spec = load_study("ablations")
    assert [row.name for row in spec.only(["queue of 64"])] == ["student", "queue of 64"]
    assert spec.only([]) == spec.rows
    with pytest.raises(VlkdError, match="There is no row 'queue of 65': the rows are teacher, "):
        spec.only(["queue of 65"])


def test_a_study_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(ROWS)
    spec = load_study(str(tmp_path / "mine.yaml"))
    assert isinstance(spec, StudySpec) and [len(spec.seeds_of(row)) for row in spec.rows] == [2, 2]
    assert len(spec.seeds_of(spec.rows[0], 1)) == 1


@pytest.mark.parametrize(
    ("found", "given", "sentence"),
    [
        ("baseline: student", "baseline: nobody", "'taught' is compared with 'nobody', which is no row"),
        ("name: taught", "name: student", "two rows are called 'student'"),
        ("model: student,", "model: pupil,", r"rows\.0\.model: Input should be"),
        ("model: student,", "model: student, aligned: false,", "'aligned' and 'taught_in' are for distilled students"),
        ("model: distilled,", "model: distilled, taught_in: [],", "names no stage"),
        ("model: distilled,", "model: adapted, share: 0.1,", "'share' is for students"),
        ("model: distilled,", "model: distilled, changes: [distillation.bta=0],", "did you mean 'beta'"),
        (
            "model: distilled,",
            "model: distilled, changes: [world.train=50],",
            "row 'taught' changes the world, the detectors",
        ),
        ("seeds: {", "sedes: {", "sedes: Extra inputs"),
        (
            "rows:",
            "claims: [{text: so, first: student, second: nobody}]\nrows:",
            "'so' names 'nobody', which is no row",
        ),
        ("rows:", "rows: [", "is not valid YAML"),
    ],
)
def test_mistakes_are_one_sentence(found: str, given: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(ROWS.replace(found, given))
    with pytest.raises(VlkdError, match=sentence) as caught:
        load_study(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(caught.value)
    with pytest.raises(VlkdError, match=r"There is no study 'mine': name one of \['ablations'\]"):
        load_study("mine")
