"""`vlkd checkpoint`: an Oscar folder becomes a model that the stages go on from."""

from __future__ import annotations

from pathlib import Path

import pytest
from oscar_files import write_all
from oscar_formulas import WORDS, F, V, oscar_tensors, write
from typer.testing import CliRunner

from vlkd.cli import app
from vlkd.data import load_tokenizer
from vlkd.errors import VlkdError
from vlkd.models import VLForPreTraining, load_model


def run(*arguments: object) -> str:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False).output


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write(folder, oscar_tensors("pretraining", region_norm=True), use_img_layernorm=1)
    words = [*WORDS, *(f"word{number}" for number in range(V - len(WORDS)))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


def test_a_checkpoint_becomes_a_model_with_its_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    told = run("checkpoint", checkpoint, tmp_path / "teacher", "--data", tmp_path / "data")
    assert "matched" in told and "bert.region_embeddings.projection.weight <- bert.img_embedding.weight" in told
    assert load_model(VLForPreTraining, tmp_path / "teacher").config.region_dim == F
    for folder in (tmp_path / "teacher" / "tokenizer", tmp_path / "data" / "tokenizer"):
        assert len(load_tokenizer(folder)) == V
    with pytest.raises(VlkdError, match="exists already"):
        run("checkpoint", checkpoint, tmp_path / "other", "--data", tmp_path / "data")
    assert not (checkpoint / "ran").exists()  # what lies around there was not unpickled


def test_a_checkpoint_for_other_data_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    sources = write_all(tmp_path)
    run("data", "import", tmp_path / "data", "--own", sources.own, "--captions", sources.captions)
    run("checkpoint", checkpoint, tmp_path / "teacher")
    config = load_model(VLForPreTraining, tmp_path / "teacher").config
    own = {
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "ffn": "intermediate_size",
    }
    sizes = [*(f"teacher.{name}={getattr(config, theirs)}" for name, theirs in own.items()), "student.heads=4"]
    stage = (
        "pretrain",
        "quick",
        *sizes,
        "--data",
        tmp_path / "data",
        "--start",
        tmp_path / "teacher",
        "--out",
        tmp_path / "run",
    )
    with pytest.raises(VlkdError, match=r"with a tokenizer of 50 tokens .* another one, of 47"):
        run(*stage)
    run("checkpoint", checkpoint, tmp_path / "again")
    (tmp_path / "data" / "tokenizer").rename(tmp_path / "away")
    (tmp_path / "again" / "tokenizer").rename(tmp_path / "data" / "tokenizer")
    with pytest.raises(VlkdError, match="reads regions of 10 numbers, but the data have 13"):
        run(*stage[:-1], tmp_path / "other")


def test_a_part_may_start_afresh_as_the_error_says(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(VlkdError, match=r"name what may start afresh or go unused \(--may-differ NAME\."):
        run("checkpoint", checkpoint, tmp_path / "model", "--task", "captioning")
    told = run(
        "checkpoint", checkpoint, tmp_path / "model", "--task", "captioning", "--may-differ", "cls.seq_relationship."
    )
    assert "matched" in told and (tmp_path / "model" / "model.safetensors").is_file()
