"""The encoder: its size, what may influence what, and that padding is harmless."""

from __future__ import annotations

import pytest
import torch

from vlkd.models import VLConfig, VLForCaptioning, VLForPreTraining, VLForVQA, VLModel, build_config, build_encoder
from vlkd.recipes.schema import Encoder

B, C, T, L = 3, 5, 8, 12


@pytest.fixture
def model(config) -> VLModel:
    torch.manual_seed(0)
    return VLModel(config).eval()


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("width", "ffn", "bare", "with_language_head"),
    [(384, 1536, 34.15, 34.33), (768, 3072, 111.06, 111.68)],
    ids=["student", "teacher"],
)
def test_parameters_at_the_papers_sizes(width: int, ffn: int, bare: float, with_language_head: float) -> None:
    config = VLConfig(hidden_size=width, intermediate_size=ffn)
    with torch.device("meta"):
        model = VLForPreTraining(config)
    assert parameters(model.bert) / 1e6 == pytest.approx(bare, abs=0.005)
    language = parameters(model) - parameters(model.cls.seq_relationship)
    assert language / 1e6 == pytest.approx(with_language_head, abs=0.005)


def test_a_recipe_shapes_the_model() -> None:
    encoder = Encoder(layers=3, width=24, heads=2, ffn=40, dropout=0.3)
    model = build_encoder(encoder, 17, 60, model_class=VLForVQA, num_answers=9)
    assert len(model.bert.encoder.layer) == 3
    assert model.bert.region_embeddings.projection.weight.shape == (24, 17)
    assert model.bert.embeddings.word_embeddings.weight.shape == (60, 24)
    assert model.classifier.weight.shape == (9, 24)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}


def test_initialised_like_bert() -> None:
    """At BERT's width with its 0.02; narrower encoders draw wider, 0.02 √(768 / 64) = 0.0693."""
    assert build_config(Encoder(layers=1, width=768, heads=12, ffn=3072), 30, 500).initializer_range == 0.02
    torch.manual_seed(0)
    model = build_encoder(Encoder(layers=1, width=64, heads=2, ffn=128), 30, 500)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "LayerNorm" in name:
            assert (parameter == 1).all(), name
        elif "token_type" not in name and "seq_relationship" not in name:  # too few numbers to judge by
            assert parameter.std().item() == pytest.approx(0.0693, rel=0.15), name


@torch.no_grad()
def test_region_embeddings_with_and_without_a_layer_norm(config, inputs) -> None:
    regions = inputs["regions"]
    config.layer_norm_eps = 0.5
    for eps, expected in ((None, 0.5), (2.0, 2.0)):
        config.region_layer_norm_eps = eps
        embed = VLModel(config).eval().region_embeddings
        normal = torch.nn.functional.layer_norm(embed.projection(regions), (32,), eps=expected)
        assert torch.equal(embed(regions), normal)
    config.region_layer_norm = False
    embed = VLModel(config).eval().region_embeddings
    assert torch.equal(embed(regions), embed.projection(regions))
    assert set(embed.state_dict()) == {"projection.weight", "projection.bias"}


@torch.no_grad()
def test_what_is_hidden_has_no_influence(model, inputs) -> None:
    before = model(**inputs)
    changed = {name: tensor.clone() for name, tensor in inputs.items()}
    changed["input_ids"][0, [3, 4, 7]] = 6
    changed["regions"][0, 2:] = 1e4
    changed["regions"][1] = -1e4
    changed["input_ids"][1, C:] = 6
    after = model(**changed)
    valid = inputs["attention_mask"][:, 0]
    assert torch.equal(before[valid], after[valid])
    assert not torch.equal(before, after)


@torch.no_grad()
def test_what_is_seen_has_influence(model, inputs) -> None:
    before = model(**inputs)
    for name in ("input_ids", "token_type_ids", "position_ids"):
        changed = inputs[name].clone()
        changed[2, 4] = (changed[2, 4] + 1) % 2
        assert not torch.equal(model(**inputs | {name: changed})[2, 0], before[2, 0]), name
    changed = inputs["regions"].clone()
    changed[2, 3, 0] += 1
    assert not torch.equal(model(**inputs | {"regions": changed})[2, 0], before[2, 0])


@torch.no_grad()
def test_regions_have_neither_order_nor_segment(model, inputs) -> None:
    before = model(**inputs)[2]
    swapped = inputs["regions"].clone()
    swapped[2] = swapped[2].flip(0)
    after = model(**inputs | {"regions": swapped})[2]
    torch.testing.assert_close(after[:T], before[:T])
    torch.testing.assert_close(after[T:], before[T:].flip(0))


@torch.no_grad()
def test_a_caption_sees_only_its_past_and_the_picture_never_sees_it(model, captioning_inputs) -> None:
    before = model(**captioning_inputs)
    changed = captioning_inputs["input_ids"].clone()
    changed[:, 2] = (changed[:, 2] + 1) % 50
    after = model(**captioning_inputs | {"input_ids": changed})
    same = torch.tensor([0, 1, *range(C, L)])
    valid = captioning_inputs["attention_mask"].diagonal(dim1=1, dim2=2)
    assert torch.equal(before[:, same][valid[:, same]], after[:, same][valid[:, same]])
    assert not torch.equal(before[2, 2:C], after[2, 2:C])
    regions = captioning_inputs["regions"].flip(0)
    assert not torch.equal(model(**captioning_inputs | {"regions": regions})[2, :C], before[2, :C])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_see_nothing_give_finite_numbers_and_gradients(config, inputs, dtype) -> None:
    torch.manual_seed(0)
    model = VLModel(config).to(dtype)
    hidden = model(**inputs | {"attention_mask": torch.zeros(B, L, L, dtype=torch.bool)})
    assert hidden.dtype == dtype and hidden.isfinite().all()
    hidden.float().square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


@torch.no_grad()
def test_autocast_is_finite_and_close(model, inputs) -> None:
    exact = model(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(**inputs)
    valid = inputs["attention_mask"][:, 0]
    assert rough.isfinite().all()
    # bfloat16 keeps 8 bits: relative rounding 2^-8 in each of about ten products of numbers near 1.
    torch.testing.assert_close(rough[valid].float(), exact[valid], atol=0.05, rtol=0.05)


@torch.no_grad()
def test_eager_and_fused_attention_agree(model, captioning_inputs) -> None:
    assert model.config._attn_implementation == "sdpa"
    fused = model(**captioning_inputs)
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    torch.testing.assert_close(model(**captioning_inputs), fused)


@pytest.mark.parametrize("kind", [VLForPreTraining, VLForCaptioning])
@torch.no_grad()
def test_logits_of_chosen_positions_are_those_of_all(config, inputs, kind) -> None:
    model = kind(config).eval()
    positions = torch.rand(B, T, generator=torch.Generator().manual_seed(0)) < 0.4
    everything = model(**inputs)
    chosen = model(**inputs, logit_positions=positions)
    assert everything.logits.shape == (B, T, 50)
    assert torch.equal(chosen.hidden, everything.hidden)
    torch.testing.assert_close(chosen.logits, everything.logits[positions])
    assert model(**inputs, logit_positions=torch.zeros_like(positions)).logits.shape == (0, 50)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["pretraining", "captioning", "vqa", "vqa_mask"])
def test_without_all_hidden_states_heads_read_the_same(config, inputs, captioning_inputs, kind, packed) -> None:
    """Logits and gradients are those of a model that gives all hidden states; of these there are the rows that were read."""
    kinds = {"pretraining": VLForPreTraining, "captioning": VLForCaptioning, "vqa": VLForVQA, "vqa_mask": VLForVQA}
    inputs = dict(captioning_inputs if kind == "captioning" else inputs)
    if kind == "vqa_mask":
        config.answer_mask_id = 4
        inputs["input_ids"][:, 2] = 4
    torch.manual_seed(0)
    model = kinds[kind](config).eval()
    valid = inputs["attention_mask"].any(1)
    if packed:
        inputs["token_index"] = valid.flatten().nonzero().flatten()
    read = torch.zeros(B, L, dtype=torch.bool)
    if kind in ("pretraining", "captioning"):
        positions = inputs["logit_positions"] = torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0]] * B).bool() & valid[:, :T]
        read[:, :T] = positions
    if kind in ("pretraining", "vqa"):
        read[:, 0] = True
    if kind == "vqa_mask":
        read[:, 2] = True
    found = []
    for all_hidden in (True, False):
        model.zero_grad()
        output = model(**inputs, all_hidden=all_hidden)
        scores = [x for x in (output.logits, output.matching_logits) if x is not None]
        sum(x.square().sum() for x in scores).backward()
        gradients = [x.grad.clone() for x in model.parameters() if x.grad is not None]
        found.append((output.hidden.detach(), [x.detach() for x in scores], gradients))
    (hidden, *whole), (rows, *chosen) = found
    assert rows.shape == hidden.shape and not rows[~read].any() and hidden[~read].any()
    torch.testing.assert_close(rows[read], hidden[read], rtol=0, atol=2e-6)  # states of order 1
    for one, other in zip([*whole[0], *whole[1]], [*chosen[0], *chosen[1]], strict=True):
        assert (one - other).abs().max() <= 2e-6 * max(1.0, one.abs().max())


@torch.no_grad()
def test_outputs_of_each_head(config, inputs) -> None:
    pretraining, vqa = VLForPreTraining(config).eval(), VLForVQA(config).eval()
    output = pretraining(**inputs)
    assert output.matching_logits.shape == (B, 2) and output.hidden.shape == (B, L, 32)
    pooled = torch.tanh(pretraining.bert.pooler.dense(output.hidden[:, 0]))
    assert torch.equal(output.matching_logits, pretraining.cls.seq_relationship(pooled))
    assert vqa(**inputs).logits.shape == (B, 7) and vqa(**inputs).matching_logits is None
    with pytest.raises(ValueError, match="has no pooler"):
        VLForCaptioning(config).bert.pool(output.hidden)


def test_the_decoder_is_tied_and_every_parameter_learns(config, inputs) -> None:
    for kind in (VLForPreTraining, VLForCaptioning, VLForVQA):
        model = kind(config)
        output = model(**inputs)
        loss = output.logits.square().sum()
        if output.matching_logits is not None:
            loss = loss + output.matching_logits.square().sum()
        loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
        if kind is not VLForVQA:
            assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_every_parameter_learns_where_the_decoder_is_not_tied(config, inputs, tmp_path) -> None:
    config.tie_word_embeddings = False
    VLForCaptioning(config).save_pretrained(tmp_path)
    model = VLForCaptioning.from_pretrained(tmp_path)
    assert model.cls.predictions.decoder.weight is not model.bert.embeddings.word_embeddings.weight
    model(**inputs).logits.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_dropout_works_while_training(config, inputs) -> None:
    model = VLModel(config).train()
    with torch.no_grad():
        assert not torch.equal(model(**inputs), model(**inputs))


def test_vqa_needs_answers() -> None:
    with pytest.raises(ValueError, match="num_answers >= 1"):
        VLForVQA(VLConfig(hidden_size=32, num_attention_heads=2))
