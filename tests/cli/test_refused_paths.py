"""Paths that cannot be written: every command ends with one sentence and status 1, at once, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from oscar_files import write_all
from safetensors import SafetensorError

from vlkd.cli import main
from vlkd.cli.os_errors import sentence
from vlkd.data import train_tokenizer
from vlkd.data.oscar import import_oscar
from vlkd.models import Layout, ModelCard, build_encoder
from vlkd.recipes import Encoder, load_recipe
from vlkd.training import StageData

pytestmark = pytest.mark.slow

# Only what comes before the first write is reached, so nothing here is ever trained.
TRAINS = {
    "pretrain": ("pretrain", "quick"),
    "adapt": ("adapt", "quick", "--start", "TEACHER"),
    "distill": ("distill", "quick", "--teacher", "TEACHER"),
    "finetune": ("finetune", "quick", "--task", "captioning", "--start", "STUDENT"),
    "evaluate": ("evaluate", "CAPTIONER"),
    "run": ("run", "quick"),
}
COMMANDS = {
    **{name: (*command, "--data", "DATA", "--out", "OUT") for name, command in TRAINS.items()},
    "export": ("export", "CAPTIONER", "--data", "DATA", "--out", "OUT"),
    "demo": ("demo", "--quick", "--out", "OUT"),
    "study": ("study", "ablations", "--rows", "student", "--seeds", "1", "--out", "OUT"),
    "render": ("render", "OUT", "--count", "1"),
    "checkpoint": ("checkpoint", "STUDENT", "OUT"),
    "data import": ("data", "import", "OUT", "--student", "FILES/student.feature.tsv", "--teacher", "FILES/teacher.feature.tsv"),
    "regions": (
        "regions", "--images", "PICTURES", "--student", "demo-student", "--teacher", "demo-teacher", "--out", "OUT",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Imported data, models that nobody trained, files to import, and a picture."""
    folder = tmp_path_factory.mktemp("there")
    (folder / "files").mkdir()
    sources = write_all(folder / "files", "extractor")
    import_oscar(sources, folder / "data", split="train")
    (folder / "data" / "test.json").write_bytes((folder / "data" / "train.json").read_bytes())
    recipe = load_recipe("quick")
    StageData.open(folder / "data", recipe)  # whose tokenizer is made the first time
    layout = Layout(caption=24, question=20, tags=16, answer_from="cls")
    for name, task in (("teacher", "pretraining"), ("student", "pretraining"), ("captioner", "captioning")):
        role = "teacher" if name == "teacher" else "student"
        model = build_encoder(getattr(recipe, role), 11, 100)
        facts = {"task": task, "role": role, "view": "paired", "stage": "by hand", "region_dim": 11}
        model.config.card = ModelCard(**facts, layout=layout if task == "captioning" else None).entry()
        model.save_pretrained(folder / name)
    call(["render", str(folder / "pictures"), "--count", "1"])
    return {
        "DATA": folder / "data", "FILES": folder / "files", "PICTURES": folder / "pictures",
        **{name.upper(): folder / name for name in ("teacher", "student", "captioner")},
    }  # fmt: skip


def call(arguments: list[str]) -> int:
    """The command in this process; its status."""
    before = sys.argv
    sys.argv = ["vlkd", *arguments]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = before
    return 0


def filled(name: str, there: dict[str, Path], out: Path) -> list[str]:
    arguments = []
    for word in COMMANDS[name]:
        head, _, rest = word.partition("/")
        place = out if head == "OUT" else there.get(head)
        arguments.append(word if place is None else str(place / rest))
    return arguments


def listing(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*"))


def told(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("vlkd: ")]
    assert len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_where_the_folder_should_be(name: str, there, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("precious")
    data_before = listing(there["DATA"].parent)
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        status = call(filled(name, there, out))
        line = told(capsys)
        if "exists already" in line:  # what must not be there in any case
            assert name in ("export", "checkpoint") and out == tmp_path / "file" and status == 2
        else:
            assert status == 1 and "a file stands where a folder is needed" in line and str(tmp_path / "file") in line
    assert (tmp_path / "file").read_text() == "precious" and listing(tmp_path) == [tmp_path / "file"]
    assert listing(there["DATA"].parent) == data_before


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """refusing(folder, number): from now on nothing can be made in the folder. Tests run as root, whom permissions do not bind."""

    def refuse(folder: Path, number: int) -> None:
        for name in ("open", "mkdir"):
            real = getattr(os, name)

            def wrapped(path, *args, real=real, **kwargs):
                writes = (
                    real is os.mkdir or real.__name__ == "mkdir" or (args[:1] and args[0] & (os.O_CREAT | os.O_WRONLY))
                )
                if writes and str(path).startswith(str(folder)):
                    raise OSError(number, os.strerror(number), str(path))
                return real(path, *args, **kwargs)

            monkeypatch.setattr(os, name, wrapped)

    return refuse


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("number", "advice"), [(errno.EROFS, "choose a place that can be written"), (errno.EACCES, "ask for permission")]
)
def test_a_place_that_cannot_be_written(
    name: str, number: int, advice: str, there, tmp_path: Path, capsys, refusing
) -> None:
    refusing(tmp_path, number)
    assert call(filled(name, there, tmp_path / "out")) == 1
    line = told(capsys)
    assert advice in line and os.strerror(number).lower() in line.lower() and str(tmp_path) in line
    assert listing(tmp_path) == []


@pytest.mark.parametrize("name", ["export", "checkpoint"])
def test_a_disk_that_fills_up_while_a_model_is_written(name: str, there, tmp_path: Path, capsys, monkeypatch) -> None:
    def full(*_, **__) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    monkeypatch.setattr(
        "vlkd.models.load_oscar",
        lambda *_, **__: (build_encoder(Encoder(layers=1, width=8, heads=1, ffn=8), 11, 100), ""),
    )
    monkeypatch.setattr("vlkd.models.load_oscar_tokenizer", lambda *_: train_tokenizer(["a star"], 64))
    monkeypatch.setattr(
        "vlkd.evaluation.export.load_model",
        lambda *_, **__: build_encoder(Encoder(layers=1, width=8, heads=1, ffn=8), 11, 100),
    )
    assert call(filled(name, there, tmp_path / "out")) == 1
    assert "no space left on device: free some space there" in told(capsys)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "x", "/a/b"), "'/a/b': no space left on device: free some space there, and give the same command again."),
        (OSError(13, "x", "/a/.b.1", None, "/a/b"), "'/a/b': permission denied: ask for permission, or choose another path."),
        (OSError(21, "x", "/a"), "'/a': is a directory: a folder stands where a file is needed, so give the path of a file."),
        (OSError(2, "x", b"/a\xff"), "'/a\udcff': no such file or directory: check the path."),
        (OSError(95, "x", "/a"), "'/a': operation not supported."),
        (OSError("<urlopen error [Errno -3]\nTemporary failure>"), "<urlopen error [Errno -3] Temporary failure>."),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device."),
        (OSError(), "OSError."),
    ],
)  # fmt: skip
def test_the_sentence_says_which_path_what_happened_and_what_to_do(error: OSError, line: str) -> None:
    assert sentence(error) == line


def test_a_reader_that_stops_reading_is_no_error(monkeypatch, capsys) -> None:
    """`vlkd recipe list | head -1`."""

    def closed(*_, **__) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("typer.echo", closed)
    assert call(["recipe", "list"]) == 1
    assert capsys.readouterr().err == ""
