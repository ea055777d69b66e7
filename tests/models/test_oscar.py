"""Oscar's folders as our models: the same numbers as Oscar's formulas, every tensor accounted for, no pickle run."""

from __future__ import annotations

import pickle

import pytest
import torch
from oscar_formulas import (
    EPS,
    PLACES,
    REGION_EPS,
    A,
    D,
    F,
    Poison,
    V,
    linear,
    oscar_hidden,
    oscar_logits,
    oscar_tensors,
    write,
)
from torch import Tensor

from vlkd.errors import VlkdError
from vlkd.models import VLConfig, VLForCaptioning, VLForPreTraining, VLForVQA, load_model, start_from
from vlkd.models.oscar import load_oscar

TASKS = {"pretraining": VLForPreTraining, "captioning": VLForCaptioning, "vqa": VLForVQA}


def assert_is_oscars(model, tensors: dict[str, Tensor], task: str, inputs: dict, region_norm: bool = False) -> None:
    """Hidden states and logits of ``model`` are those of the formulas wherever a token is no padding."""
    weights = {name: tensor.double() for name, tensor in tensors.items()}
    hidden = oscar_hidden(weights, inputs, region_norm)
    expected = {"hidden": hidden, **oscar_logits(weights, hidden, task)}
    with torch.no_grad():
        output = model.double()(**inputs | {"regions": inputs["regions"].double()})
    assert set(output) == set(expected)
    mask = inputs["attention_mask"]
    valid = mask.diagonal(dim1=1, dim2=2) if mask.shape[1] > 1 else mask[:, 0]  # [B, L]
    for name, tensor in expected.items():
        rows = valid[:, : tensor.shape[1]] if tensor.dim() == 3 else slice(None)
        # float64 on both sides: rounding alone, 2^-53 in each of a few hundred sums of numbers near 1.
        torch.testing.assert_close(output[name][rows], tensor[rows], atol=1e-11, rtol=1e-11)


def test_numbers_are_oscars_in_float32_too(tmp_path, inputs) -> None:
    tensors = oscar_tensors("pretraining", True)
    model, _ = load_oscar(write(tmp_path, tensors, use_img_layernorm=1), "pretraining")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32} and not model.training
    weights = {name: tensor.double() for name, tensor in tensors.items()}
    valid = inputs["attention_mask"][:, 0]
    with torch.no_grad():
        hidden = model(**inputs).hidden
    expected = oscar_hidden(weights, inputs, True).float()
    # float32 rounding, 2^-24, in each of a few hundred sums of numbers near 1.
    torch.testing.assert_close(hidden[valid], expected[valid], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["bin", "bin before torch 1.6", "safetensors"])
@pytest.mark.parametrize("region_norm", [False, True])
@pytest.mark.parametrize("task", list(TASKS))
def test_numbers_are_oscars(task, region_norm, form, tmp_path, inputs, captioning_inputs) -> None:
    tensors = oscar_tensors(task, region_norm)
    model, report = load_oscar(write(tmp_path, tensors, form, use_img_layernorm=int(region_norm)), task)
    assert type(model) is TASKS[task]
    assert_is_oscars(model, tensors, task, captioning_inputs if task == "captioning" else inputs, region_norm)
    assert_accounts_for_all(report, model, tensors)
    assert not (tmp_path / "ran").exists()


def assert_accounts_for_all(report, model, tensors: dict[str, Tensor]) -> None:
    used, unused = set(report.matched.values()), set(report.unexpected)
    assert used | unused == set(tensors) and not used & unused
    ours = {*report.matched, *report.tied, *report.zero, *report.missing}
    assert ours == set(model.state_dict())


def older(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize("rename", [older, "module.{}".format, lambda name: "module." + older(name)])
@pytest.mark.parametrize("task", list(TASKS))
def test_other_names_of_the_same_tensors(task, rename, tmp_path, inputs) -> None:
    tensors = oscar_tensors(task, True)
    renamed = {rename(name): tensor for name, tensor in tensors.items()}
    model, report = load_oscar(write(tmp_path, renamed, use_img_layernorm=1), task)
    assert_accounts_for_all(report, model, renamed)
    assert_is_oscars(model, tensors, task, inputs, True)


def test_the_decoder_is_tied_where_it_was(tmp_path) -> None:
    tensors = oscar_tensors("pretraining", False)
    model, report = load_oscar(write(tmp_path, tensors), "pretraining")
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert report.tied == {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    del tensors["cls.predictions.decoder.weight"]  # as files do that keep a shared tensor once
    _, report = load_oscar(write(tmp_path, tensors), "pretraining")
    assert "cls.predictions.decoder.weight" in report.tied and "cls.predictions.decoder.weight" not in report.matched


def test_a_decoder_of_its_own_stays_so(tmp_path, captioning_inputs) -> None:
    """Oscar's captioning ties the decoder on request only."""
    tensors = oscar_tensors("captioning", False)
    tensors["cls.predictions.decoder.weight"] = torch.randn(V, D) / D**0.5
    model, report = load_oscar(write(tmp_path, tensors), "captioning")
    assert report.tied == {} and report.matched["cls.predictions.decoder.bias"] == "cls.predictions.bias"
    assert_accounts_for_all(report, model, tensors)
    both = tensors | {"cls.predictions.decoder.bias": tensors["cls.predictions.bias"] + 1}
    other, report = load_oscar(write(tmp_path, both), "captioning")
    assert torch.equal(other.cls.predictions.decoder.bias, both["cls.predictions.decoder.bias"])
    assert_accounts_for_all(report, other, both)
    model.float().save_pretrained(tmp_path / "ours")
    assert_is_oscars(load_model(VLForCaptioning, tmp_path / "ours"), tensors, "captioning", captioning_inputs)


def test_captioning_of_the_first_release(tmp_path, captioning_inputs) -> None:
    tensors = oscar_tensors("captioning", False) | {"cls.predictions.decoder.weight": torch.randn(V, D) / D**0.5}
    del tensors["cls.predictions.bias"]
    first = {name.removeprefix("cls.predictions."): tensor for name, tensor in tensors.items()}
    assert {"transform.dense.weight", "decoder.weight"} < set(first)
    model, report = load_oscar(write(tmp_path, first), "captioning")
    assert report.zero == ("cls.predictions.decoder.bias",) and report.missing == ()
    assert_accounts_for_all(report, model, first)
    assert_is_oscars(model, {**tensors, "cls.predictions.bias": torch.zeros(V)}, "captioning", captioning_inputs)
    with pytest.raises(
        VlkdError, match=r"lacks 1 tensors of a VLForCaptioning, first 'cls\.predictions\.decoder\.bias'"
    ):
        load_oscar(write(tmp_path, tensors), "captioning")  # with today's names the bias must be there


def test_half_precision_is_read_as_single(tmp_path) -> None:
    tensors = oscar_tensors("vqa", False)
    model, _ = load_oscar(write(tmp_path, {name: tensor.half() for name, tensor in tensors.items()}), "vqa")
    assert model.classifier.weight.dtype == torch.float32
    assert torch.equal(model.classifier.weight, tensors["classifier.weight"].half().float())


@pytest.mark.parametrize("region_norm", [False, True])
def test_what_was_loaded_is_saved_and_loaded_as_ours(region_norm, tmp_path, inputs) -> None:
    tensors = oscar_tensors("pretraining", region_norm)
    model, _ = load_oscar(write(tmp_path, tensors, use_img_layernorm=region_norm), "pretraining")
    model.save_pretrained(tmp_path / "ours")
    loaded = load_model(VLForPreTraining, tmp_path / "ours")
    assert loaded.config.region_layer_norm == region_norm
    assert_is_oscars(loaded, tensors, "pretraining", inputs, region_norm)
    captioning = start_from(VLForCaptioning, tmp_path / "ours")
    assert torch.equal(captioning.bert.region_embeddings.projection.weight, tensors["bert.img_embedding.weight"])


def test_settings_of_the_model(tmp_path) -> None:
    config = load_oscar(write(tmp_path, oscar_tensors("vqa", True), use_img_layernorm=1), "vqa")[0].config
    assert (config.region_dim, config.num_answers, config.hidden_dropout_prob) == (F, A, 0.3)
    assert (config.region_layer_norm, config.region_layer_norm_eps, config.layer_norm_eps) == (True, REGION_EPS, EPS)
    config = load_oscar(write(tmp_path, oscar_tensors("vqa", False)), "vqa", hidden_dropout_prob=0.0)[0].config
    assert (config.region_layer_norm, config.region_layer_norm_eps, config.hidden_dropout_prob) == (False, None, 0)


def test_a_pretrained_checkpoint_for_other_tasks(tmp_path) -> None:
    tensors = oscar_tensors("pretraining", False)
    folder = write(tmp_path, tensors)
    with pytest.raises(
        VlkdError,
        match=r"lacks 2 tensors of a VLForVQA, first 'classifier\.weight' and has 8 tensors that a VLForVQA has not, "
        r"first 'cls\.predictions\.bias'",
    ):
        load_oscar(folder, "vqa")
    torch.manual_seed(3)
    model, report = load_oscar(folder, "vqa", may_differ=("cls.", "classifier."), num_answers=3)
    assert set(report.missing) == {"classifier.weight", "classifier.bias"}
    assert set(report.unexpected) == {name for name in tensors if name.startswith("cls.")}
    assert_accounts_for_all(report, model, tensors)
    torch.manual_seed(3)
    assert torch.equal(
        load_oscar(folder, "vqa", may_differ=["cl"], num_answers=3)[0].classifier.weight, model.classifier.weight
    )
    with pytest.raises(VlkdError, match="has 8 tensors that a VLForVQA has not"):
        load_oscar(folder, "vqa", may_differ="classifier.", num_answers=3)
    _, report = load_oscar(folder, "captioning", may_differ="cls.seq_relationship.")
    assert set(report.unexpected) == {
        *("cls.seq_relationship.weight", "cls.seq_relationship.bias", "bert.pooler.dense.weight"),
        "bert.pooler.dense.bias",
    }


def test_a_matching_head_of_three_classes_starts_afresh_on_request(tmp_path) -> None:
    tensors = oscar_tensors("pretraining", False) | linear("cls.seq_relationship", 3, D)
    folder = write(tmp_path, tensors, num_contrast_classes=3)
    with pytest.raises(
        VlkdError,
        match=r"'cls\.seq_relationship\.weight' in .* is float32 \[3, 32\], but a VLForPreTraining of the config\.json "
        r"beside it has float32 \[2, 32\]: .* start that part afresh \(--may-differ cls\.seq_relationship\.",
    ):
        load_oscar(folder, "pretraining")
    model, report = load_oscar(folder, "pretraining", may_differ=("cls.seq_relationship.",))
    assert set(report.missing) == set(report.unexpected) == {"cls.seq_relationship.weight", "cls.seq_relationship.bias"}
    assert report.reversed_rows == () and not model.cls.seq_relationship.bias.any()
    assert_accounts_for_all(report, model, tensors)


def test_a_classifier_of_several_layers_is_refused(tmp_path) -> None:
    tensors = oscar_tensors("pretraining", False)
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("bert.")}
    tensors |= linear("classifier.0", 2 * D, D) | linear("classifier.2", A, 2 * D)
    folder = write(tmp_path, tensors, classifier="mlp")
    with pytest.raises(VlkdError, match=r"has a classifier of several layers \('classifier\.0\.weight', from Oscar's"):
        load_oscar(folder, "vqa")
    _, report = load_oscar(folder, "vqa", may_differ=("classifier.",))
    assert len(report.unexpected) == 4 and len(report.missing) == 2


def test_a_buffer_of_positions_is_not_used_but_named(tmp_path) -> None:
    tensors = oscar_tensors("vqa", False) | {"bert.embeddings.position_ids": torch.arange(PLACES)[None]}
    _, report = load_oscar(write(tmp_path, tensors), "vqa")
    assert report.unexpected == ("bert.embeddings.position_ids",)


def test_the_report_reads_as_a_summary(tmp_path) -> None:
    tensors = oscar_tensors("pretraining", True)
    _, report = load_oscar(write(tmp_path, tensors, use_img_layernorm=1), "pretraining")
    assert str(report).splitlines() == [
        f"{tmp_path}/pytorch_model.bin -> VLForPreTraining",
        f"  matched    {len(tensors):5}  4 of them under another name",
        "  tied           2  one parameter under two names",
        "  zero           0  not in Oscar's architecture",
        "  missing        0  not in the file, started afresh",
        "  unexpected     0  in the file, not used",
        "  reversed       2  rows in reverse: Oscar's class 0 is a match, ours class 1",
        "renamed",
        "  bert.region_embeddings.projection.weight <- bert.img_embedding.weight",
        "  bert.region_embeddings.projection.bias <- bert.img_embedding.bias",
        "  bert.region_embeddings.LayerNorm.weight <- bert.LayerNorm.weight",
        "  bert.region_embeddings.LayerNorm.bias <- bert.LayerNorm.bias",
        "tied",
        "  cls.predictions.decoder.weight = bert.embeddings.word_embeddings.weight",
        "  cls.predictions.decoder.bias = cls.predictions.bias",
        "reversed",
        "  cls.seq_relationship.weight",
        "  cls.seq_relationship.bias",
    ]
    _, report = load_oscar(tmp_path, "vqa", may_differ=("cls.", "classifier."))
    assert "missing\n  classifier.weight\n  classifier.bias\nunexpected\n  cls.predictions.bias\n" in str(report)


@pytest.mark.parametrize("form", ["archive", "before torch 1.6", "pickle"])
def test_no_pickle_is_run(form, tmp_path) -> None:
    folder = write(tmp_path, oscar_tensors("vqa", False))
    weights, ran = folder / "pytorch_model.bin", folder / "ran"
    if form == "pickle":
        weights.write_bytes(pickle.dumps({"bert.pooler.dense.bias": Poison(ran)}, protocol=2))
        pickle.loads(weights.read_bytes())
    else:
        torch.save({"a": Poison(ran)}, weights, _use_new_zipfile_serialization=form == "archive")
        torch.load(weights, weights_only=False)
    assert ran.exists()  # the poison works
    ran.unlink()
    with pytest.raises(VlkdError, match=r"cannot be read as tensors .* nothing else in it was run"):
        load_oscar(folder, "vqa")
    assert not ran.exists()
    (folder / "training_args.bin").replace(folder / "pytorch_model.bin")
    with pytest.raises(VlkdError, match="cannot be read as tensors"):
        load_oscar(folder, "vqa")
    assert not ran.exists()


@pytest.mark.parametrize("form", ["bin", "bin before torch 1.6", "safetensors"])
def test_files_that_are_cut_or_something_else(form, tmp_path) -> None:
    folder = write(tmp_path, {"a": torch.zeros(3), "b": torch.zeros(2, 2)}, form)
    weights = folder / ("model.safetensors" if form == "safetensors" else "pytorch_model.bin")
    content = weights.read_bytes()
    step = 1 if form == "bin before torch 1.6" else 32  # archives and safetensors find out before anything is unpickled
    page, pointer = b"<!DOCTYPE html><html>404</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    for damaged in (page, pointer, *(content[:length] for length in range(0, len(content), step))):
        weights.write_bytes(damaged)
        with pytest.raises(VlkdError, match=f"{weights.name}' cannot be read as tensors .* download the file again"):
            load_oscar(folder, "vqa")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([torch.zeros(2)], "holds a list, but a state dict"),
        ({"model": {"a": torch.zeros(2)}, "step": 3}, "holds a dict under 'model'"),
        ({3: torch.zeros(2)}, "holds a Tensor under 3"),
    ],
)
def test_tensors_in_another_arrangement(content, sentence, tmp_path) -> None:
    folder = write(tmp_path, {})
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(VlkdError, match=sentence):
        load_oscar(folder, "vqa")


def test_what_does_not_fit_is_named(tmp_path) -> None:
    whole = oscar_tensors("vqa", True)

    def refusal(tensors: dict[str, Tensor], sentence: str, **changes: object) -> None:
        with pytest.raises(VlkdError, match=sentence):
            load_oscar(write(tmp_path, tensors, **{"use_img_layernorm": 1, **changes}), "vqa")

    name = "bert.encoder.layer.1.output.dense.weight"
    lacking = {key: tensor for key, tensor in whole.items() if key != name}
    refusal(lacking, f"pytorch_model.bin' lacks 1 tensors of a VLForVQA, first '{name}': ")
    refusal(whole | {"bert.tail": torch.zeros(1)}, "has 1 tensors that a VLForVQA has not, first 'bert.tail': ")
    refusal(whole, r"has 2 tensors that a VLForVQA has not, first 'bert\.LayerNorm\.weight'", use_img_layernorm=0)
    refusal(oscar_tensors("vqa", False), r"lacks 2 tensors .* first 'bert\.region_embeddings\.LayerNorm\.weight'")
    refusal(
        whole, r"'bert\.img_embedding\.weight' .* is float32 \[32, 10\], .* has float32 \[32, 11\]", img_feature_dim=11
    )
    refusal(whole, r"'bert\.embeddings\.word_embeddings\.weight' .* \[50, 32\], .* \[51, 32\]", vocab_size=51)
    refusal(whole | {name: whole[name].long()}, r"is int64 \[32, 64\], but .* has float32 \[32, 64\]")
    refusal(whole | {f"module.{name}": whole[name]}, f"holds '{name}' and 'module.{name}', which are both our '{name}'")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"img_feature_dim": -1}, "config.json' has -1 as 'img_feature_dim', but Oscar's has a whole number above 0"),
        ({"hidden_size": "32"}, "has '32' as 'hidden_size'"),
        ({"num_labels": None}, "has None as 'num_labels'"),
        ({"hidden_size": 30}, "has 30 as 'hidden_size', but Oscar's has a multiple of its 4 attention heads"),
        ({"hidden_act": "tangent"}, "has 'tangent' as 'hidden_act'"),
        ({"layer_norm_eps": "tiny"}, "has 'tiny' as 'layer_norm_eps'"),
        ({"img_feature_type": "dis_code_t"}, "has 'dis_code_t' as 'img_feature_type', but Oscar's has 'faster_r-cnn'"),
        ({"use_img_layernorm": 1, "img_layer_norm_eps": None}, "has None as 'img_layer_norm_eps'"),
    ],
)
def test_other_configurations(changes, sentence, tmp_path) -> None:
    folder = write(tmp_path, oscar_tensors("vqa", False), **changes)
    with pytest.raises(VlkdError, match=sentence):
        load_oscar(folder, "vqa")


def test_no_checkpoint_there(tmp_path) -> None:
    with pytest.raises(VlkdError, match=r"holds no Oscar checkpoint \(no config\.json\): give the folder of one"):
        load_oscar(tmp_path, "vqa")
    folder = write(tmp_path, oscar_tensors("vqa", False))
    with pytest.raises(VlkdError, match="No head for the task 'nlvr': name one of pretraining, captioning, vqa"):
        load_oscar(folder, "nlvr")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(VlkdError, match=r"holds no tensors: model\.safetensors or pytorch_model\.bin is expected"):
        load_oscar(folder, "vqa")
    (folder / "config.json").write_text("{")
    with pytest.raises(VlkdError, match=r"config\.json' is no JSON"):
        load_oscar(folder, "vqa")
    (folder / "config.json").write_text("[1]")
    with pytest.raises(VlkdError, match="holds a list, but named entries are expected"):
        load_oscar(folder, "vqa")
    VLConfig().save_pretrained(folder)
    (folder / "pytorch_model.bin").touch()
    torch.save(oscar_tensors("vqa", False), folder / "pytorch_model.bin")
    with pytest.raises(VlkdError, match="has nothing as 'img_feature_dim'"):
        load_oscar(folder, "vqa")


# Without region LayerNorm, as Oscar_B; M is 10^6. Of the published roundings only 111.68 tells something: with a LayerNorm
# *and* the matching head it would be 111.69.
@pytest.mark.parametrize(
    ("width", "ffn", "parts", "bare", "with_language_head"),
    [
        (768, 3072, (23_837_184, 1_578_240, 85_054_464, 590_592), 111_060_480, 111_683_130),
        (384, 1536, (11_918_592, 789_120, 21_293_568, 147_840), 34_149_120, 34_328_250),
    ],
    ids=["teacher", "student"],
)
def test_parameters_at_the_papers_sizes(width, ffn, parts, bare, with_language_head) -> None:
    with torch.device("meta"):
        model = VLForPreTraining(VLConfig(hidden_size=width, intermediate_size=ffn, region_layer_norm=False))
        with_norm = VLForPreTraining(VLConfig(hidden_size=width, intermediate_size=ffn))

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    bert, head = model.bert, model.cls
    assert (count(bert.embeddings), count(bert.region_embeddings), count(bert.encoder), count(bert.pooler)) == parts
    assert count(bert) == sum(parts) == bare
    language = count(head.predictions.transform) + head.predictions.bias.numel()
    assert bare + language == count(model) - count(head.seq_relationship) == with_language_head
    assert count(head.seq_relationship) == 2 * width + 2 and count(with_norm) - count(model) == 2 * width
