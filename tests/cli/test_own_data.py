"""From files of Oscar to a distilled student that captions and answers, by commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from oscar_files import ANSWERS, KEYS, encoded, write_all
from other_forms import CLASSES, lxmert_row, write_rows
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer
from typer.testing import CliRunner

from vlkd.cli import app
from vlkd.data import Corpus, RegionStore
from vlkd.errors import VlkdError
from vlkd.models import VLForCaptioning, VLForVQA, load_model, read_card
from vlkd.pipeline.imported import open_imported
from vlkd.pipeline.workers import few_threads
from vlkd.recipes import load_recipe

pytestmark = pytest.mark.slow

TINY = [
    "quick", "text.vocabulary=120", "text.answer_from=cls", "distillation.queue_size=32", "evaluation.beam=2",
    *(f"schedules.{stage}={{steps: 2, batch: 2, lr: 1.0e-3}}" for stage in (
        "teacher", "adapt", "student", "teacher_captioning", "teacher_vqa", "student_captioning", "student_vqa"
    )),
]  # fmt: skip


def vlkd(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Imported data in `data`, and every stage of the method."""
    folder = tmp_path_factory.mktemp("own")
    sources = write_all(folder, "extractor")
    files = [
        "--student",
        sources.student,
        "--teacher",
        sources.teacher,
        "--own",
        sources.own,
        "--captions",
        sources.captions,
    ]
    questions = ["--questions", sources.questions, "--answers", sources.answers]
    assert "0 errors" in vlkd("data", "validate", *files, *questions)
    told = vlkd("data", "import", folder / "data", *files, *questions)
    assert "3 pictures" in told and "4 captions and 2 questions about 3 pictures" in told
    vlkd("data", "texts", folder / "data", "--split", "test", "--captions", sources.captions, *questions)

    def stage(name: str, out: str, *options: object) -> Path:
        vlkd(name, *TINY, "--data", folder / "data", "--out", folder / out, *options)
        return folder / out / "model"

    with few_threads():  # as many as `vlkd run` takes, so that it trains the same bits
        teacher = stage("pretrain", "teacher")
        adapted = stage("adapt", "adapted", "--start", teacher)
        distilled = stage("distill", "distilled", "--teacher", adapted)
        for task in ("captioning", "vqa"):
            tuned = stage("finetune", f"adapted-{task}", "--task", task, "--start", adapted)
            stage("finetune", f"distilled-{task}", "--task", task, "--start", distilled, "--teacher", tuned)
            evaluate(folder, task)
    return folder


def evaluate(folder: Path, task: str, *options: object) -> str:
    model = folder / f"distilled-{task}" / "model"
    out = folder / f"evaluated-{task}"
    return vlkd("evaluate", model, "--data", folder / "data", "--out", out, *options)


def test_captions_are_scored_and_written_as_coco_takes_them(folder: Path) -> None:
    results = json.loads((folder / "evaluated-captioning" / "results.json").read_text())
    assert {"CIDEr", "BLEU-4", "ROUGE-L"} <= results["captioning"]["picture"]["scores"].keys()
    captions = json.loads((folder / "evaluated-captioning" / "captions.json").read_text())
    assert sorted(row["image_id"] for row in captions) == sorted(map(int, KEYS))
    assert all(isinstance(row["caption"], str) for row in captions)


def test_answers_are_scored_softly_and_written_as_the_server_takes_them(folder: Path) -> None:
    answers = json.loads((folder / "evaluated-vqa" / "vqa_answers.json").read_text())
    assert [row["question_id"] for row in answers] == [420, 70]
    assert all(row["answer"] in ANSWERS for row in answers)
    results = json.loads((folder / "evaluated-vqa" / "results.json").read_text())
    scores = {"yes": 0.3, "red": 1.0}
    expected = (scores.get(answers[0]["answer"], 0.0) + 0.0) / 2
    assert results["vqa"]["picture"]["scores"]["all"] == pytest.approx(expected)


def test_questions_that_nobody_answered_are_counted_and_not_scored(folder: Path, tmp_path: Path) -> None:
    data, model = tmp_path / "data", folder / "distilled-vqa" / "model"
    shutil.copytree(folder / "data", data)
    row = {"q": "is it ?", "an": [0], "s": [1], "img_id": 42}
    unknown = {"an": None, "s": None}
    for split, rows, line, note in (
        (
            "some",
            [row, row | unknown],
            "picture  all ",
            "Not scored: 1 of the 2 questions, to which nobody's answer is known.",
        ),
        (
            "none",
            [row | unknown],
            "picture  not scored",
            "Not scored: nobody's answer to any of the 1 questions is known.",
        ),
    ):
        questions = tmp_path / f"{split}.json"
        questions.write_text(json.dumps([one | {"q_id": number} for number, one in enumerate(rows)]))
        answers = folder / "trainval_ans2label.pkl"
        vlkd("data", "texts", data, "--split", split, "--questions", questions, "--answers", answers)
        out = tmp_path / f"evaluated-{split}"
        told = vlkd("evaluate", model, "--data", data, "--out", out, "--split", split)
        assert line in told and note in told
        assert len(json.loads((out / "vqa_answers.json").read_text())) == len(rows)  # the server scores all of them


def test_a_finished_evaluation_is_read_again(folder: Path) -> None:
    path = folder / "evaluated-vqa" / "results.json"
    before = path.stat().st_mtime_ns
    assert "all" in evaluate(folder, "vqa")
    assert path.stat().st_mtime_ns == before
    with pytest.raises(VlkdError, match="controls = False"):
        evaluate(folder, "vqa", "--controls")


def test_a_stage_may_have_a_dropout_of_its_own(folder: Path, tmp_path: Path) -> None:
    start = folder / "distilled" / "model"
    options = ("--data", folder / "data", "--out", tmp_path / "run", "--task", "captioning", "--start", start)
    vlkd("finetune", *TINY, "schedules.student_captioning.dropout=0.3", *options)
    tuned, before = (json.loads((at / "config.json").read_text()) for at in (tmp_path / "run" / "model", start))
    assert (tuned["hidden_dropout_prob"], tuned["attention_probs_dropout_prob"]) == (0.3, 0.3)
    assert before["hidden_dropout_prob"] == 0.1
    with pytest.raises(VlkdError, match="dropout"):
        vlkd("finetune", *TINY, "schedules.student_captioning.dropout=0.2", *options)


def test_the_student_stands_alone(folder: Path) -> None:
    model = load_model(VLForCaptioning, folder / "distilled-captioning" / "model")
    assert model.config.region_dim == 11
    names = {name for name, _ in model.named_parameters()}
    assert not [
        name for name in names if "queue" in name or "projection" in name.replace("region_embeddings.projection", "")
    ]
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_exported_student_loads_and_answers_by_itself(folder: Path, tmp_path: Path, precision: str) -> None:
    model, out = folder / "distilled-vqa" / "model", tmp_path / "student"
    command = ("export", model, "--data", folder / "data", "--out", out, "--precision", precision)
    vlkd(*command)
    student, tokenizer = VLForVQA.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    answers, card = json.loads((out / "answers.json").read_text()), read_card(out)
    assert student.config.num_answers == len(answers) == len(ANSWERS) and card.region_dim == 11
    assert card == read_card(model) and (card.role, card.task, card.boxes) == ("student", "vqa", None)
    assert {path.name for path in out.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert all("teacher" not in path.read_text() for path in out.glob("*.json"))
    question = tokenizer("how many ?", return_tensors="pt")["input_ids"]
    length = question.shape[1] + 2
    logits = student(
        question, torch.zeros_like(question), torch.arange(question.shape[1])[None],
        torch.zeros(1, 2, 11, dtype=student.dtype), torch.ones(1, 1, length, dtype=torch.bool),
    ).logits  # fmt: skip
    assert logits.shape == (1, 3) and logits.isfinite().all()
    with pytest.raises(VlkdError, match="exists already"):
        vlkd(*command)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """`vlkd run` on the same data, in one process."""
    vlkd("run", *TINY, "--data", folder / "data", "--out", folder / "whole", "--jobs", 1)
    return folder / "whole"


def test_one_command_trains_what_the_stages_train(folder: Path, whole: Path) -> None:
    for stage, alone in (
        ("adapted/adapt", "adapted"),
        ("distilled/distill", "distilled"),
        ("distilled/vqa", "distilled-vqa"),
    ):
        expected, found = (load_file(at / "model" / "model.safetensors") for at in (folder / alone, whole / stage))
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), stage


def test_one_command_compares_all_models_on_both_tasks(folder: Path, whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    models = ["teacher", "teacher, not adapted", "adapted teacher", "student", "distilled student"]
    assert [row["model"] for row in results["rows"]] == models
    assert all(row["captioning"].keys() == row["vqa"].keys() == {"picture", "none", "other"} for row in results["rows"])
    scores = json.loads((folder / "evaluated-captioning" / "results.json").read_text())["captioning"]["picture"][
        "scores"
    ]
    assert results["rows"][-1]["captioning"]["picture"] == pytest.approx(scores)
    assert results["validation"] == [] and results["detectors_ap50"] == {}
    page = (whole / "report.html").read_text()
    assert "3 of which the models saw in training" in page
    assert "The student’s detector saw: " in page and "Where teacher and student look" not in page


def test_a_finished_run_is_told_again_and_guarded(folder: Path, whole: Path, tmp_path: Path) -> None:
    before = (whole / "results.json").stat().st_mtime_ns
    assert "distilled student" in vlkd("run", *TINY, "--data", folder / "data", "--out", whole)
    assert (whole / "results.json").stat().st_mtime_ns == before
    with pytest.raises(VlkdError, match=r"student\.layers"):
        vlkd("run", *TINY, "student.layers=1", "--data", folder / "data", "--out", whole)
    with pytest.raises(VlkdError, match="is of imported regions: `vlkd export` its models"):
        vlkd("caption", tmp_path / "a.png", "--run", whole)


def test_one_command_starts_from_a_teacher_and_needs_no_regions_of_its_own(folder: Path, tmp_path: Path) -> None:
    sources = write_all(tmp_path)
    data = tmp_path / "data"
    vlkd(
        "data",
        "import",
        data,
        "--student",
        sources.student,
        "--teacher",
        sources.teacher,
        "--captions",
        sources.captions,
    )
    shutil.copytree(folder / "data" / "tokenizer", data / "tokenizer")
    command = ("run", *TINY, "--data", data, "--out", tmp_path / "run", "--start", folder / "teacher" / "model")
    with pytest.raises(VlkdError, match=r"no test split.*`vlkd data texts … --split test`"):
        vlkd(*command)
    assert not (tmp_path / "run").exists()
    vlkd("data", "texts", data, "--split", "test", "--captions", sources.captions)
    told = vlkd(*command, "--jobs", 1)
    assert "VQA" not in told and "teacher, not adapted" not in told
    test = Corpus.load(data / "test.json")
    Corpus("test", test.keys[:2], test.captions[:2], test.questions[:2]).save(data / "test.json")
    with pytest.raises(VlkdError, match="data_fingerprint"):  # not the scores of the texts before
        vlkd(*command)
    stages = {path.parent.relative_to(tmp_path / "run").as_posix() for path in tmp_path.glob("run/*/*/settings.yaml")}
    pretrained = {"adapted/adapt", "student/pretrain", "distilled/distill"}
    assert stages - {"evaluation/test"} == pretrained | {
        f"{model}/captioning" for model in ("adapted", "student", "distilled")
    }


def test_the_page_shows_the_pictures_of_a_folder(folder: Path, tmp_path: Path) -> None:
    """Two of the three are there, one of them in another size than its boxes are in. What cannot be shown says why."""
    store = RegionStore.open(folder / "data" / "store")
    for key, more in zip(KEYS[:2], (0, 1), strict=True):
        (regions,) = store.read([key], "paired")
        noise = np.random.default_rng(0).integers(0, 256, (regions.height, regions.width + more, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{key}.png")
    prepared = open_imported(load_recipe("quick", ["text.vocabulary=120"]), folder / "data", tmp_path)
    first, second, third = (prepared.pixels(regions) for regions in store.read(KEYS, "paired"))
    assert isinstance(first, np.ndarray)
    assert isinstance(second, str) and f"{KEYS[1]}.png' has" in second and "but its boxes are of" in second
    assert third == f"There is no picture '{KEYS[2]}' in '{tmp_path}'."
    (tmp_path / f"{KEYS[0]}.png").write_bytes(b"no picture")
    assert "cannot be read as a picture" in str(prepared.pixels(store.read(KEYS, "paired")[0]))
    gone = open_imported(load_recipe("quick", ["text.vocabulary=120"]), folder / "data", tmp_path / "gone")
    assert "There is no folder" in str(gone.pixels(store.read(KEYS, "paired")[0]))


def test_a_folder_of_other_pictures_is_refused_before_any_training(folder: Path, tmp_path: Path) -> None:
    command = ("run", *TINY, "--data", folder / "data", "--out", tmp_path / "run", "--images", tmp_path / "images")
    with pytest.raises(VlkdError, match="There is no folder"):
        vlkd(*command)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "another.png").touch()
    with pytest.raises(VlkdError, match=rf"none of the .* such as '{KEYS[0]}', in the folder such as 'another'"):
        vlkd(*command)
    assert not (tmp_path / "run").exists()


def test_mistakes_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    def fails(match: str, *arguments: object) -> None:
        with pytest.raises(VlkdError, match=match) as caught:
            vlkd(*arguments)
        assert "\n" not in str(caught.value)

    data, out = ("--data", folder / "data"), ("--out", tmp_path / "run")
    model = folder / "distilled-vqa" / "model"
    fails("holds no feature store", "pretrain", *TINY, "--data", tmp_path, *out)
    fails("There is no split 'dev': the data have test, train", "evaluate", model, *data, *out, "--split", "dev")
    fails("There is no model in", "evaluate", tmp_path, *data, *out)
    fails("go with imported data", "run", *TINY, *out, "--images", tmp_path)
    fails("There is no model in", "adapt", *TINY, *data, *out, "--start", tmp_path / "nowhere")
    fails("There are no texts", "data", "texts", folder / "data", "--split", "dev")
    fails("holds no Oscar checkpoint", "checkpoint", tmp_path, tmp_path / "model")


def test_validation_that_fails_has_status_1(tmp_path: Path) -> None:
    sources = write_all(tmp_path)
    assert sources.own is not None
    sources.own.write_text(sources.own.read_text()[:-40])
    result = CliRunner().invoke(app, ["data", "validate", "--own", str(sources.own)])
    assert result.exit_code == 1 and "error: " in result.output and "1 errors" in result.output
    assert CliRunner().invoke(app, ["data", "index", str(sources.own)]).output.strip().endswith("own.feature.lineidx")


def test_lxmert_files_by_commands(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "own.tsv", [lxmert_row(key) for key in KEYS])
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    files = ["--own", path, "--own-classes", tmp_path / "names.txt"]
    assert "0 errors, 1 notes" in vlkd("data", "validate", *files)
    assert "3 pictures" in vlkd("data", "import", tmp_path / "data", *files)
    rows = path.read_text().replace(lxmert_row("7")["features"], encoded(np.full((5, 7), 7e4)))
    path.write_text(rows)
    with pytest.raises(
        VlkdError, match=r"line 2, key '7': number 0 of region 0 .* is 70000, beyond float16's 65504.*--dtype"
    ):
        vlkd("data", "import", tmp_path / "other", *files)
    result = CliRunner().invoke(app, ["data", "validate", *map(str, files)])
    assert result.exit_code == 1 and "is 70000, beyond float16" in result.output
    assert "0 errors" in vlkd("data", "validate", *files, "--dtype", "float32")
    assert "3 pictures" in vlkd("data", "import", tmp_path / "other", *files, "--dtype", "float32")


def test_result_files_are_scored_as_coco_and_vqa_do() -> None:
    fixtures = Path(__file__).parents[1] / "evaluation" / "fixtures"
    files = [fixtures / f"vqa_{name}.json" for name in ("results", "annotations", "questions")]
    expected = json.loads((fixtures / "vqa_expected.json").read_text())["rounded"]["overall"]
    assert f"all      {expected:6.2f}" in vlkd("score", "vqa", *files)
    shown = vlkd("score", "captions", fixtures / "coco_results.json", fixtures / "coco_annotations.json")
    assert "CIDEr" in shown and "Tokenisation: " in shown


def test_the_papers_recipe_has_the_papers_parameters() -> None:
    shown = vlkd("recipe", "show", "paper/distillvlm")
    for number in ("111.06", "111.68", "34.15", "34.33", "= 120", "250,000"):
        assert number in shown
    assert "paper/distillvlm" in vlkd("recipe", "list")
    assert "beta: 0.25" in vlkd("recipe", "show", "demo", "distillation.beta=0.25")


@pytest.mark.parametrize(
    "command",
    [
        "data import",
        "data validate",
        "data texts",
        "data index",
        "checkpoint",
        "pretrain",
        "adapt",
        "distill",
        "finetune",
        "evaluate",
        "export",
        "card",
        "recipe show",
    ],
)
def test_help_teaches(command: str) -> None:
    assert len(vlkd(*command.split(), "--help")) > 300
