"""Layers that compute real tokens alone give what layers over whole batches give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlkd.models import VLForPreTraining, VLModel, build_encoder, capture_attention
from vlkd.models.packing import Packing
from vlkd.recipes import Encoder
from vlkd.training.options import checkpoint_activations, compile_layers

B, T, R, F = 3, 7, 4, 6
L = T + R
LENGTHS = (11, 6, 8)


@pytest.fixture
def model() -> VLModel:
    torch.manual_seed(0)
    model = build_encoder(
        Encoder(layers=2, width=16, heads=2, ffn=32, dropout=0.0), F, 40, model_class=VLForPreTraining
    )
    with torch.no_grad():  # BERT's initialisation attends almost uniformly
        for name, weight in model.named_parameters():
            if "query" in name or "key" in name:
                weight.mul_(10)
    return model.bert


@pytest.fixture
def valid() -> Tensor:
    return torch.arange(L) < torch.tensor(LENGTHS)[:, None]


@pytest.fixture
def inputs(valid: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(1, 40, (B, T), generator=generator),
        "token_type_ids": torch.zeros(B, T, dtype=torch.int64),
        "position_ids": torch.arange(T).repeat(B, 1),
        "regions": torch.randn(B, R, F, generator=generator),
        "attention_mask": valid[:, None, :],
    }


@pytest.fixture
def tokens(valid: Tensor) -> Tensor:
    return valid.flatten().nonzero().flatten()


def seen_by_layers(model: VLModel) -> list[torch.Size]:
    """The shapes that the layers read, as they come."""
    shapes: list[torch.Size] = []
    for layer in model.encoder.layer:
        layer.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    return shapes


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_states_and_gradients_are_those_of_the_whole_batch(model, inputs, valid, tokens, implementation) -> None:
    model.set_attn_implementation(implementation)
    shapes = seen_by_layers(model)
    found = []
    torch.manual_seed(2)
    weights = torch.randn(int(valid.sum()), 16)
    for index in (None, tokens):
        model.zero_grad()
        hidden = model(**inputs, token_index=index)
        assert hidden.shape == (B, L, 16) and hidden.isfinite().all()
        (hidden[valid] * weights).sum().backward()
        found.append((hidden[valid].detach(), [x.grad.clone() for x in model.parameters() if x.grad is not None]))
    assert shapes == [(B, L, 16)] * 2 + [(1, sum(LENGTHS), 16)] * 2
    (whole, whole_gradients), (packed, packed_gradients) = found
    torch.testing.assert_close(packed, whole, rtol=0, atol=2e-6)  # states of order 1
    assert len(whole_gradients) == len(packed_gradients)
    for one, other in zip(whole_gradients, packed_gradients, strict=True):
        assert (one - other).abs().max() <= 2e-6 * max(1.0, one.abs().max())


def test_captured_queries_and_keys_are_laid_out_as_in_the_whole_batch(model, inputs, valid, tokens) -> None:
    records = []
    for index in (None, tokens):
        with capture_attention(model, (0, -1)) as captured:
            model(**inputs, token_index=index)
        records.append((captured[0], captured[-1]))
    for whole, packed in zip(*records, strict=True):
        assert packed.query.shape == (B, 2, L, 8) and packed.scale == whole.scale
        for name in ("query", "key"):
            ours, theirs = (getattr(record, name).transpose(1, 2)[valid] for record in (packed, whole))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"  # as it was


def test_dropout_acts_on_packed_tokens(model, inputs, tokens) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    first, second = (model(**inputs, token_index=tokens) for _ in range(2))
    assert not torch.equal(first, second)


def test_the_attention_function_comes_back_after_an_error(model, inputs, tokens) -> None:
    model.encoder.layer[1].register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**inputs, token_index=tokens)
    assert model.config._attn_implementation == "sdpa"


def test_recomputed_activations_are_those_of_the_whole_batch(model, inputs, valid, tokens) -> None:
    """In the backward the layers run again, where nothing tells them of the packing."""
    model.train()
    shapes = seen_by_layers(model)
    found = []
    for _ in range(2):
        model.zero_grad()
        model(**inputs, token_index=tokens)[valid].square().sum().backward()
        found.append([x.grad.clone() for x in model.parameters() if x.grad is not None])
        checkpoint_activations(model)
    assert shapes[0] == (1, sum(LENGTHS), 16) and shapes[-1] == (B, L, 16)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_compiled_layers_read_whole_batches(model, inputs, tokens) -> None:
    """Every number of tokens would be compiled anew."""
    assert model._packs(torch.device("cpu"))
    compile_layers(model)
    assert not model._packs(torch.device("cpu"))
    assert not model._packs(torch.device("cuda"))


def read_by_last(model: VLModel) -> list[torch.Size]:
    """The shapes that the last layer's feed-forward part reads, as they come."""
    shapes: list[torch.Size] = []
    model.encoder.layer[-1].output.register_forward_pre_hook(lambda module, args: shapes.append(args[1].shape))
    return shapes


@pytest.mark.parametrize("mask", ["keys", "pairs"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("counts", "repeated"), [((1, 1, 1), 0), ((5, 0, 2), 1), ((0, 1, 0), 0)])
def test_the_last_layer_computes_what_is_read(
    model, inputs, valid, tokens, implementation, mask, counts, repeated
) -> None:
    """States, and the gradients of every weight and of the layer's input, are those of a layer that computes everything.

    In float64, whose sums in another order differ by far less than anything forgotten would.
    """
    model.double()
    model.set_attn_implementation(implementation)
    if mask == "pairs":
        inputs["attention_mask"] = valid[:, None, :] & valid[:, :, None] & torch.ones(L, L, dtype=torch.bool).tril()
    # From behind, so that they are not the first of a sequence, and in no order.
    places = [L * row + LENGTHS[row] - 1 - number for row, count in enumerate(counts) for number in range(count)]
    read = torch.tensor(places[1::2] + places[::2] + repeated * places[:1])
    torch.manual_seed(2)
    weights = torch.randn(len(read), 16, dtype=torch.float64)
    shapes, entered, found = read_by_last(model), [], []
    model.encoder.layer[-1].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    for index in (None, tokens):
        model.zero_grad()
        states = model(**inputs, token_index=index, read=read)
        entered[-1].retain_grad()
        (states * weights).sum().backward()
        gradients = [x.grad.clone() for x in model.parameters() if x.grad is not None]
        of_input = entered[-1].grad[valid] if index is None else entered[-1].grad[0]
        found.append((states.detach(), [*gradients, of_input]))
    assert shapes == [(B, L, 16), (1, sum(counts), 16)]
    (whole, whole_gradients), (chosen, chosen_gradients) = found
    torch.testing.assert_close(chosen, whole, rtol=0, atol=1e-12)  # states of order 1
    for one, other in zip(whole_gradients, chosen_gradients, strict=True):
        assert (one - other).abs().max() <= 1e-12 * max(1.0, one.abs().max())


def test_a_last_layer_whose_attention_is_captured_computes_everything(model, inputs, tokens) -> None:
    read = torch.tensor([2, L + 2, 2 * L + 2])
    shapes = read_by_last(model)
    with capture_attention(model) as captured:
        states = model(**inputs, token_index=tokens, read=read)
    with capture_attention(model) as expected:
        hidden = model(**inputs, token_index=tokens)
    assert torch.equal(states, hidden[:, 2]) and torch.equal(captured[-1].query, expected[-1].query)
    model(**inputs, token_index=tokens, read=read)
    assert shapes == [(1, sum(LENGTHS), 16)] * 2 + [(1, B, 16)]


def test_nothing_is_read(model, inputs, tokens) -> None:
    states = model(**inputs, token_index=tokens, read=torch.zeros(0, dtype=torch.int64))
    assert states.shape == (0, 16)
    states.sum().backward()


def test_dropout_acts_on_what_is_read(model, inputs, tokens) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.encoder.layer[-1].attention.self.dropout.p = 0.5
    model.train()
    first, second = (model(**inputs, token_index=tokens, read=tokens) for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    first, second = (model(**inputs, token_index=tokens, read=tokens) for _ in range(2))
    assert torch.equal(first, second)


def test_packing_and_back() -> None:
    rows = torch.arange(1.0, 13).view(2, 3, 2)
    packing = Packing.of(torch.tensor([0, 1, 3]), 2, 3)
    packed = packing.pack(rows)
    assert packed.tolist() == [[[1, 2], [3, 4], [7, 8]]]
    assert packing.spread(packed).tolist() == [[[1, 2], [3, 4], [1, 2]], [[7, 8], [1, 2], [1, 2]]]


def test_padding_gives_no_gradient() -> None:
    """No loss may read it, so whatever comes back from there is nobody's, such as the first token's."""
    packing = Packing.of(torch.tensor([0, 1, 3]), 2, 3)
    rows = torch.randn(1, 3, 2, requires_grad=True)
    gradient = torch.arange(1.0, 13).view(2, 3, 2)
    packing.spread(rows).backward(gradient)
    assert rows.grad is not None and torch.equal(rows.grad, packing.pack(gradient))
