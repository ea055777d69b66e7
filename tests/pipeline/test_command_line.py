"""The other commands, on good and on bad input."""

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photograph():
    """An ordinary photograph of a person, which matplotlib ships."""
    from matplotlib import cbook

    return cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)


@pytest.fixture(scope="module")
def unseen_picture(tmp_path_factory, vlkd):
    folder = tmp_path_factory.mktemp("rendered")
    made = vlkd("render", folder, "--count", 1, "--seed", 77)
    assert made.returncode == 0
    return made.stdout.strip()


@pytest.mark.parametrize("model", ["student", "distilled", "teacher"])
def test_a_picture_that_training_never_saw_gets_a_caption_and_an_answer(quick_run, vlkd, unseen_picture, model):
    caption = vlkd("caption", unseen_picture, "--run", quick_run.folder, "--model", model)
    assert caption.returncode == 0, caption.stderr
    assert len(caption.stdout.splitlines()) == 1
    question = "is there a star ?"
    answer = vlkd("answer", unseen_picture, question, "--run", quick_run.folder, "--model", model)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()


def test_a_photograph_gets_a_caption_and_an_answer(quick_run, vlkd, photograph):
    caption = vlkd("caption", photograph, "--run", quick_run.folder)
    assert caption.returncode == 0, caption.stderr
    answer = vlkd("answer", photograph, "what colour is her hat ?", "--run", quick_run.folder)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()


def test_help_teaches(vlkd):
    for command in ((), ("demo",), ("caption",), ("answer",), ("render",), ("doctor",)):
        shown = vlkd(*command, "--help")
        assert shown.returncode == 0
        assert len(shown.stdout) > 300


def test_the_doctor_says_which_backend_each_operator_uses(vlkd):
    shown = vlkd("doctor")
    assert shown.returncode == 0, shown.stderr
    for operator in ("attention_mse", "token_nce", "ring_queue"):
        assert operator in shown.stdout
    assert "torch" in shown.stdout and "GPU" in shown.stdout
    assert "8, ., 0" not in shown.stdout


@pytest.mark.parametrize(
    "built", [{"cuda_architectures": "9.0;10.0+PTX"}, {"without_cuda": "no CUDA toolkit was found"}]
)
def test_the_doctor_says_what_the_extension_was_built_for(monkeypatch, built):
    from vlkd import doctor
    from vlkd_kernels import extension

    info = {"compiler": "gcc 12", "torch": "2.14.1", "instruction_set": "AVX2", **built}
    monkeypatch.setattr(extension, "load", lambda: extension)
    monkeypatch.setattr(extension, "build_info", lambda: info)
    findings = {finding.subject: finding for finding in doctor._extension()}
    assert findings["C++ kernels compute with"].state == "AVX2"
    told = "for 9.0, 10.0+PTX" if "cuda_architectures" in built else "none: no CUDA toolkit was found"
    assert findings["compiled CUDA kernels"].state == told


@pytest.mark.parametrize(("reason", "state"), [(None, "computed"), ("it needs a thing", "left out")])
def test_the_doctor_says_why_a_metric_is_left_out(monkeypatch, reason, state):
    from vlkd import doctor
    from vlkd.evaluation import java_metrics

    monkeypatch.setattr(java_metrics, "why_not", lambda name: reason if name == "SPICE" else None)
    findings = {finding.subject: finding for finding in doctor.examine()}
    assert findings["SPICE of captions"].state == state
    assert findings["SPICE of captions"].advice == (reason or "")
    assert findings["METEOR of captions"].state == "computed"


@pytest.fixture
def mistakes(quick_run, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG not really")
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    good = tmp_path / "good.png"
    Image.fromarray(np.zeros((40, 60, 3), dtype=np.uint8)).save(good)
    run = ("--run", quick_run.folder)
    return {
        "an unreadable picture": (("caption", broken, *run), "cannot be read as a picture"),
        "no picture": (("caption", text, *run), "cannot be read as a picture"),
        "a missing picture": (("answer", tmp_path / "none.png", "why ?", *run), "no picture"),
        "a missing run": (("caption", good, "--run", tmp_path / "nowhere"), "no run folder"),
        "an empty question": (("answer", good, " ", *run), "question is empty"),
        "an unknown setting": (("demo", "students.width=3", "--out", tmp_path / "a"), "unknown key 'students'"),
        "a foreign folder": (("demo", "--out", tmp_path), "holds no run"),
    }


@pytest.mark.parametrize(
    "mistake",
    [
        "an unreadable picture", "no picture", "a missing picture", "a missing run", "an empty question",
        "an unknown setting", "a foreign folder",
    ],
)  # fmt: skip
def test_a_mistake_gets_one_sentence_and_no_traceback(mistakes, vlkd, tmp_path, mistake):
    arguments, sentence = mistakes[mistake]
    before = sorted(path.name for path in tmp_path.rglob("*"))
    refused = vlkd(*arguments)
    assert refused.returncode == 2
    assert sentence in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert refused.stderr.startswith("vlkd: ")
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
