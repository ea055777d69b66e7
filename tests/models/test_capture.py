"""Captured queries and keys are those of the attention that ran, and capturing leaves no trace."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel

from vlkd.errors import VlkdError
from vlkd.models import VLConfig, VLForPreTraining, VLModel, capture_attention

LAYERS = (0, -1)


@pytest.fixture
def model(config) -> VLForPreTraining:
    torch.manual_seed(0)
    return VLForPreTraining(config)


def attention_of(model: VLModel, layer: int, query, key, scale, value, mask) -> torch.Tensor:
    """softmax(QK^T * scale) V of one layer, recomputed, [B, L, D]."""
    scores = (query @ key.transpose(-1, -2) * scale).masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


@torch.no_grad()
def test_captured_queries_and_keys_explain_the_attention_output(model, captioning_inputs) -> None:
    model.eval()
    seen = {}
    layers = [layer.attention.self for layer in model.bert.encoder.layer]
    hooks = [
        module.register_forward_hook(lambda module, args, output: seen.update({module.layer_idx: (args[0], output[0])}))
        for module in layers
    ]
    with capture_attention(model, LAYERS) as captured:
        model(**captioning_inputs)
    for hook in hooks:
        hook.remove()
    mask = captioning_inputs["attention_mask"] | torch.eye(12, dtype=torch.bool)
    for asked, index in ((0, 0), (-1, 1)):
        hidden, output = seen[index]
        value = layers[index].value(hidden).unflatten(-1, (4, 8)).transpose(1, 2)
        expected = attention_of(model.bert, index, *captured[asked], value, mask[:, None])
        torch.testing.assert_close(output, expected)
        assert captured[asked].query.shape == captured[asked].key.shape == (3, 4, 12, 8)
        assert captured[asked].scale == 8**-0.5


@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_gradients_are_bit_for_bit_those_without_capture(model, inputs, training) -> None:
    model.train(training)

    def run() -> tuple[torch.Tensor, ...]:
        torch.manual_seed(7)  # the same dropout
        output = model(**inputs)
        weight = model.bert.encoder.layer[0].attention.self.query.weight
        return output.hidden, output.logits, torch.autograd.grad(output.hidden.square().sum(), weight)[0]

    plain = run()
    with capture_attention(model, LAYERS):
        captured = run()
    assert all(torch.equal(left, right) for left, right in zip(plain, captured, strict=True))
    assert all(torch.equal(left, right) for left, right in zip(plain, run(), strict=True))


def test_the_implementation_is_put_back_even_after_an_error(model) -> None:
    with pytest.raises(KeyError), capture_attention(model):
        raise KeyError
    assert model.config._attn_implementation == "sdpa"


def test_gradients_flow_through_what_was_captured(model, inputs) -> None:
    with capture_attention(model) as captured:
        model(**inputs)
    query, key, _ = captured[-1]
    (query.square().sum() + key.square().sum()).backward()
    last = model.bert.encoder.layer[-1].attention.self
    assert last.query.weight.grad.any() and last.key.weight.grad.any() and last.value.weight.grad is None
    assert model.bert.region_embeddings.projection.weight.grad.any()


def test_teacher_and_student_together(config, inputs) -> None:
    torch.manual_seed(0)
    student = VLModel(config)
    wide = VLConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, region_dim=10
    )
    teacher = VLModel(wide).eval()
    with capture_attention(teacher) as of_teacher, capture_attention(student) as of_student:
        with torch.no_grad():
            teacher(**inputs)
        student(**inputs)
    assert of_teacher[-1].query.shape == (3, 4, 12, 16) and not of_teacher[-1].query.requires_grad
    assert of_student[-1].query.shape == (3, 4, 12, 8) and of_student[-1].query.requires_grad
    assert teacher.config._attn_implementation == student.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_captures_of_one_model_nest(model, inputs) -> None:
    with capture_attention(model, (0,)) as outer:
        with capture_attention(model, (1,)) as inner:
            model.eval()(**inputs)
        first = outer[0].query
        assert list(outer) == [0] and list(inner) == [1]
        model(**inputs | {"regions": inputs["regions"] + 1})
        assert not torch.equal(outer[0].query, first)
    kept = inner[1].query
    model(**inputs)
    assert inner[1].query is kept
    assert model.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_nothing_is_there_before_the_first_forward_pass(model, inputs) -> None:
    with capture_attention(model) as captured:
        assert list(captured) == [] and -1 not in captured
        model(**inputs)
        assert list(captured) == [-1] and -1 in captured


@torch.no_grad()
def test_a_model_of_transformers_keeps_its_padding_mask() -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    for implementation in ("sdpa", "eager"):
        model = BertModel._from_config(BertConfig(vocab_size=50, **shape), attn_implementation=implementation).eval()
        inputs = {
            "input_ids": torch.arange(12).view(2, 6),
            "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]]),
        }
        plain = model(**inputs).last_hidden_state
        with capture_attention(model) as captured:
            assert torch.equal(model(**inputs).last_hidden_state, plain)
        assert captured[-1].query.shape == (2, 4, 6, 8)


def test_a_wrapped_model(model, inputs) -> None:
    wrapped = torch.nn.Sequential(model)
    with capture_attention(wrapped) as captured:
        wrapped[0](**inputs)
    assert -1 in captured


@pytest.mark.parametrize("layer", [2, -3])
def test_a_layer_that_is_not_there(model, layer) -> None:
    with (
        pytest.raises(VlkdError, match=f"has 2 self-attention layers, but layer {layer}"),
        capture_attention(model, (layer,)),
    ):
        pass
