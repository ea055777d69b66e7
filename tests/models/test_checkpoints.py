"""Models in folders: complete ones come back bit for bit, other tasks take over what they share."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlkd.errors import VlkdError
from vlkd.models import VLForCaptioning, VLForPreTraining, VLForVQA, VLModel, load_model, start_from


@pytest.fixture
def pretrained(config, tmp_path):
    """A pre-training model and the folder it was saved in."""
    torch.manual_seed(0)
    model = VLForPreTraining(config).eval()
    model.save_pretrained(tmp_path)
    return model, tmp_path


@pytest.fixture
def folder(pretrained):
    return pretrained[1]


@pytest.mark.parametrize("kind", [VLModel, VLForPreTraining, VLForCaptioning, VLForVQA])
@torch.no_grad()
def test_round_trip_is_bit_exact(kind, config, inputs, tmp_path) -> None:
    torch.manual_seed(0)
    model = kind(config).eval()
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    loaded = load_model(kind, tmp_path)
    assert not loaded.training and loaded.config.region_dim == 10
    weights = loaded.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    before, after = model(**inputs), loaded(**inputs)
    if kind is VLModel:
        assert torch.equal(before, after)
    else:
        assert all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
def test_captioning_starts_from_pretraining(pretrained, inputs) -> None:
    model, folder = pretrained
    captioning = start_from(VLForCaptioning, folder)
    assert torch.equal(captioning(**inputs).logits, model(**inputs).logits)
    assert captioning.cls.predictions.decoder.weight is captioning.bert.embeddings.word_embeddings.weight


@torch.no_grad()
def test_vqa_starts_from_pretraining_with_a_new_classifier(pretrained, inputs) -> None:
    model, folder = pretrained
    torch.manual_seed(3)
    vqa = start_from(VLForVQA, folder, num_answers=9)
    assert vqa.config.num_answers == 9 and vqa(**inputs).logits.shape == (3, 9)
    assert torch.equal(vqa(**inputs).hidden, model(**inputs).hidden)
    assert vqa.classifier.weight.std() == pytest.approx(0.02, rel=0.3) and not vqa.classifier.bias.any()
    torch.manual_seed(3)
    assert torch.equal(start_from(VLForVQA, folder, num_answers=9).classifier.weight, vqa.classifier.weight)


@torch.no_grad()
def test_vqa_from_the_mask_starts_as_the_masked_language_model(pretrained, inputs) -> None:
    """With words for answers, the answers' logits are those of the language head less its bias, at the last [MASK]."""
    model, folder = pretrained
    mask, places = 4, torch.tensor([1, 2, 4])
    inputs["input_ids"][torch.arange(3), places] = mask
    inputs["input_ids"][2, 1] = mask  # a user's own; the last one answers
    vqa = start_from(VLForVQA, folder, num_answers=3, answer_mask_id=mask)
    assert vqa.bert.pooler is None
    log_odds = torch.tensor([0.5, -1.0, 2.0])
    vqa.start_answers(log_odds, [[7], [9, 11], [20]])
    language = model(**inputs).logits - model.cls.predictions.bias
    at_mask = language[torch.arange(3), places]  # [3, V]
    expected = torch.stack((at_mask[:, 7], at_mask[:, [9, 11]].mean(dim=1), at_mask[:, 20]), dim=1) + log_odds
    assert torch.allclose(vqa(**inputs).logits, expected, atol=1e-5)


@torch.no_grad()
def test_answers_from_cls_keep_their_random_weights(pretrained) -> None:
    vqa = start_from(VLForVQA, pretrained[1], num_answers=2)
    before = vqa.classifier.weight.clone()
    vqa.start_answers(torch.tensor([0.5, -1.0]), [[7], [9]])
    assert torch.equal(vqa.classifier.weight, before)
    assert vqa.classifier.bias.tolist() == [0.5, -1.0]


def test_loading_is_silent(pretrained, capfd) -> None:
    start_from(VLForCaptioning, pretrained[1])
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_no_model_there(tmp_path) -> None:
    with pytest.raises(VlkdError, match="holds no model"):
        load_model(VLForVQA, tmp_path / "nowhere")


def test_a_model_of_another_kind_is_refused(folder) -> None:
    with pytest.raises(
        VlkdError, match=r"has, beyond what is expected, 4 tensors of a VLForCaptioning, first 'bert\.pooler"
    ):
        load_model(VLForCaptioning, folder)
    with pytest.raises(VlkdError, match=r"lacks 2 tensors of a VLForVQA, first 'classifier\.bias'"):
        load_model(VLForVQA, folder)


def test_an_encoder_that_lacks_a_tensor_is_refused(folder) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VlkdError, match=r"lacks 1 tensors .* first 'bert\.encoder\.layer\.1\.output\.dense\.weight'"):
        start_from(VLForCaptioning, folder)


def test_weights_of_another_shape_are_refused(folder) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"region_dim": 11}))
    with pytest.raises(VlkdError, match="cannot be read as a VLForPreTraining"):
        load_model(VLForPreTraining, folder)


def test_a_cut_file_is_refused(folder) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(VlkdError, match="cannot be read as a VLForPreTraining"):
        load_model(VLForPreTraining, folder)
    weights.unlink()
    with pytest.raises(VlkdError, match="cannot be read as a VLForPreTraining"):
        load_model(VLForPreTraining, folder)


def test_pickles_are_not_loaded(pretrained, folder) -> None:
    torch.save(pretrained[0].state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(VlkdError, match="cannot be read"):
        load_model(VLForPreTraining, folder)
