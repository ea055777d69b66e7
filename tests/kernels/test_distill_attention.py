"""`distill_attention` on every backend that runs here, against float64 autograd of its reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_truth import BACKENDS, DEVICE, assert_as_good, backends_here, need
from test_attention_mse import MASKS, make, mask
from torch import Tensor
from torch.nn import functional as F

from vlkd_kernels import attention_mse, distill_attention
from vlkd_kernels.attention_mse import reference as loss_reference
from vlkd_kernels.distill_attention import reference

OP = "distill_attention"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STUDENT = ("q_s", "k_s", "v_s")
LOSS_WEIGHT = 17.0  # the loss is small beside the output, and both should show in the gradients


def inputs(*shape: int, width_v: int = 12, heads_s: int | None = None, **options: Any) -> dict[str, Tensor]:
    """Queries and keys of both sides, and the student's values."""
    tensors = make(*shape, heads_s=heads_s, **options)
    batch, heads, keys = tensors["k_s"].shape[:3]
    generator = torch.Generator().manual_seed(options.get("seed", 0) + 1000)
    values = torch.randn(batch, heads, keys, width_v, generator=generator)
    return {**tensors, "v_s": values.to(DEVICE, tensors["k_s"].dtype)}


def results(call: Any, tensors: dict[str, Tensor], wanted: tuple[str, ...] = STUDENT) -> dict[str, Tensor]:
    """Output, loss and the gradients of a weighted sum of both, by name."""
    leaves = {name: x.detach().clone().requires_grad_(name in wanted) for name, x in tensors.items()}
    out, loss = call(**leaves)[:2]
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out)
    total = (out * weights).sum().double() - LOSS_WEIGHT * loss.double()
    total.backward()
    gradients = {name: leaves[name].grad for name in wanted}
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.dtype == tensors[name].dtype
    return {"out": out.detach(), "loss": loss.detach(), **gradients}


def plain(
    dtype: torch.dtype, tensors: dict[str, Tensor], keep: Tensor | None, options: dict[str, Any]
) -> dict[str, Tensor]:
    """The reference formulas in a dtype, differentiated by autograd."""
    options = dict(options)
    reduction = options.pop("reduction", "mean")
    scale_s = options.pop("scale_s", None) or tensors["q_s"].shape[-1] ** -0.5
    scale_t = options.pop("scale_t", None) or tensors["q_t"].shape[-1] ** -0.5
    of_out = {name: options[name] for name in ("attn_mask", "is_causal") if name in options}

    def call(q_s: Tensor, k_s: Tensor, v_s: Tensor, q_t: Tensor, k_t: Tensor) -> tuple[Tensor, Tensor]:
        out, _ = reference.attend(q_s, k_s, v_s, scale=scale_s, keep=None if keep is None else keep.to(dtype), **of_out)
        loss, count = loss_reference.loss(q_s, k_s, q_t, k_t, scale_s=scale_s, scale_t=scale_t, **options)
        return out, loss / count.clamp(min=1) if reduction == "mean" else loss

    return results(call, {name: x.to(dtype) for name, x in tensors.items()})


def check(backend: str, tensors: dict[str, Tensor], keep: Tensor | None = None, **options: Any) -> None:
    dtype = tensors["q_s"].dtype
    need(OP, backend, dtype)
    more = {name: options.pop(name) for name in ("dropout_p", "lse_t") if name in options}
    got = results(lambda **x: distill_attention(**x, backend=backend, **options, **more), tensors)
    truth, yardstick = plain(torch.float64, tensors, keep, options), plain(dtype, tensors, keep, options)
    cancelled = before_cancellation(tensors, options)
    for name, value in truth.items():
        size = value.abs().max().item() if value.numel() else 0.0
        times = cancelled[name] / size if name in cancelled and size > 0 else 1.0
        more = torch.finfo(dtype).eps * max(0.0, times - 1)  # roundings are of the terms, not of their sum
        assert_as_good(name, got[name], value, yardstick[name], dtype, more)


def before_cancellation(tensors: dict[str, Tensor], options: dict[str, Any]) -> dict[str, float]:
    """How large out = p v and the gradients p (G v - D + c (p - t - δ)) k and q would be if all terms had one sign."""
    wide = {name: x.detach().double() for name, x in tensors.items()}

    def of_heads(x: Tensor) -> Tensor:
        return x.repeat_interleave(wide["q_s"].shape[1] // x.shape[1], dim=1)

    def probabilities(side: str) -> Tensor:
        scale = options.get("scale_" + side) or wide["q_" + side].shape[-1] ** -0.5
        logits = wide["q_" + side] @ of_heads(wide["k_" + side]).mT * scale
        visible = torch.ones_like(logits, dtype=torch.bool) & options.get(
            "attn_mask", torch.tensor(True, device=DEVICE)
        )
        visible = visible.tril() if options.get("is_causal") else visible
        return logits.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0)

    p, t = probabilities("s"), probabilities("t")
    rows = p.shape[:3].numel() if options.get("reduction", "mean") == "mean" else 1
    weights = torch.randn(*p.shape[:3], tensors["v_s"].shape[3], generator=torch.Generator().manual_seed(7)).to(p)
    factor = LOSS_WEIGHT / rows
    along = weights.abs() @ of_heads(wide["v_s"]).abs().mT + (factor if options.get("distance") == "kl" else 0)
    if options.get("distance") != "kl":
        along = along + 2 * factor / p.shape[3] * (p - t).abs()
    terms = p * (along + (p * along).sum(-1, keepdim=True)) + (factor * t if options.get("distance") == "kl" else 0)
    scale = options.get("scale_s") or wide["q_s"].shape[-1] ** -0.5
    sizes = {
        "out": p @ of_heads(wide["v_s"]).abs(),
        "q_s": scale * terms @ of_heads(wide["k_s"]).abs(),
        "k_s": scale * terms.mT @ wide["q_s"].abs(),
    }
    return {name: size.max().item() if size.numel() else 0.0 for name, size in sizes.items()}


@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_with_masks_and_grouped_heads(backend: str, masks: str, distance: str) -> None:
    tensors = inputs(2, 2, 21, 19, 8, 24, heads_s=1 if distance == "mse" else 2, heads_t=1)
    check(backend, tensors, distance=distance, scale_s=0.5, scale_t=0.2, **MASKS[masks])


@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes(backend: str, dtype: torch.dtype, distance: str) -> None:
    check(backend, inputs(1, 2, 20, 19, 40, 16, dtype=dtype, width_v=24), distance=distance, attn_mask=mask(20, 19))


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_tiles(backend: str) -> None:
    check(backend, inputs(1, 1, 70, 130, 20, 70, width_v=40, dtype=torch.bfloat16), reduction="sum")


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_drawn_shapes(data: st.DataObject) -> None:
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups, heads, queries, keys = draw(1, 3), draw(1, 2), draw(1, 20), draw(1, 20)
    tensors = inputs(
        draw(1, 2), groups * heads, queries, keys, draw(1, 20), draw(1, 20), width_v=draw(1, 20), heads_s=heads,
        dtype=data.draw(st.sampled_from(DTYPES)), seed=draw(0, 99),
    )  # fmt: skip
    options: dict[str, Any] = {
        "distance": data.draw(st.sampled_from(["mse", "kl"])),
        "is_causal": data.draw(st.booleans()),
        "reduction": data.draw(st.sampled_from(["mean", "sum"])),
    }
    if data.draw(st.booleans()):
        options["attn_mask"] = mask(1, 1, data.draw(st.sampled_from([1, queries])), keys, seed=draw(0, 99))
    for backend in backends_here(OP, tensors["q_s"].dtype):
        check(backend, tensors, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_and_expanded_inputs(backend: str) -> None:
    need(OP, backend)
    tensors = inputs(2, 2, 9, 7)
    others = {
        "q_s": tensors["q_s"].transpose(1, 2).contiguous().transpose(1, 2),
        "k_s": torch.stack([tensors["k_s"]] * 2, dim=-1)[..., 0],
        "v_s": tensors["v_s"][:, :1].expand_as(tensors["v_s"]),
    }
    expected = results(
        lambda **x: distill_attention(**x, backend=backend), {**tensors, "v_s": others["v_s"].contiguous()}
    )
    leaves = {name: x.requires_grad_() for name, x in others.items()}
    out, loss = distill_attention(**{**tensors, **leaves}, backend=backend)
    torch.testing.assert_close(out, expected["out"])
    torch.testing.assert_close(loss, expected["loss"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_acts_on_the_output_alone(backend: str) -> None:
    """Values that are the unit vectors show which entries of the map were kept."""
    need(OP, backend)
    tensors = inputs(2, 2, 40, 32, width_v=32)
    tensors["v_s"] = torch.eye(32, device=DEVICE).expand_as(tensors["v_s"]).contiguous()
    p = 0.3

    def call(**x: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(5)
        return distill_attention(**x, dropout_p=p, backend=backend)

    whole, loss = distill_attention(**tensors, backend=backend)
    out, loss_with_dropout = call(**tensors)
    torch.testing.assert_close(loss_with_dropout, loss)
    kept = out != 0
    torch.testing.assert_close(out, kept * whole / (1 - p))
    share = kept.double().mean().item()
    assert abs(share - (1 - p)) < 4 * (p * (1 - p) / kept.numel()) ** 0.5
    assert not torch.equal(kept[0], kept[1]) and not torch.equal(kept[:, 0], kept[:, 1])
    assert torch.equal(call(**tensors)[0], out)  # the generator decides
    assert not torch.equal(distill_attention(**tensors, dropout_p=p, backend=backend)[0], out)
    got = results(call, tensors)
    truth, yardstick = (plain(dtype, tensors, kept / (1 - p), {}) for dtype in (torch.float64, torch.float32))
    for name, value in truth.items():
        assert_as_good(name, got[name], value, yardstick[name], torch.float32)


@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_log_sum_exps_are_those_of_the_scores(backend: str, distance: str) -> None:
    need(OP, backend)
    tensors = inputs(2, 4, 9, 11, heads_s=2, heads_t=1)
    options: dict[str, Any] = {"attn_mask": mask(2, 1, 9, 11, keep=0.3), "is_causal": True, "distance": distance}
    lse = {}
    for side, groups in (("s", 2), ("t", 4)):
        scores = tensors["q_" + side] @ tensors["k_" + side].repeat_interleave(groups, 1).mT * 8**-0.5
        lse[side] = scores.masked_fill(~options["attn_mask"].expand_as(scores).tril(), -torch.inf).logsumexp(-1)
    assert lse["s"].isneginf().any()
    got = distill_attention(**tensors, **options, backend=backend, return_lse=True, return_count=True)
    torch.testing.assert_close(got[2], lse["s"])
    assert got[3].item() == lse["s"].isfinite().sum().item()
    check(backend, tensors, **options, lse_t=lse["t"].transpose(1, 2).contiguous().transpose(1, 2))


def test_the_teachers_log_sum_exp_is_used() -> None:
    """By the backend that saves work with it: a wrong one shows."""
    need(OP, "triton")
    tensors = inputs(1, 1, 5, 6)
    wrong = torch.zeros(1, 1, 5, device=DEVICE)
    losses = [distill_attention(**tensors, backend="triton", lse_t=lse)[1].item() for lse in (None, wrong)]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_see_nothing_and_rows_that_do_not_count(backend: str) -> None:
    need(OP, backend)
    tensors = inputs(1, 2, 5, 6)
    attn_mask = torch.ones(5, 6, dtype=torch.bool, device=DEVICE)
    attn_mask[1] = False
    counted = torch.tensor([[True, True, True, False, True]], device=DEVICE)
    got = distill_attention(**tensors, attn_mask=attn_mask, query_mask=counted, backend=backend, return_count=True)
    everything = distill_attention(**tensors, attn_mask=attn_mask, backend=backend)
    assert got[2].item() == 2 * 3
    assert not got[0][:, :, 1].any() and torch.equal(got[0], everything[0])
    expected = attention_mse(
        *(tensors[n] for n in ("q_s", "k_s", "q_t", "k_t")), attn_mask=attn_mask, query_mask=counted, backend=backend
    )
    torch.testing.assert_close(got[1], expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", ["out", "loss"])
def test_either_result_alone_can_be_differentiated(backend: str, which: str) -> None:
    need(OP, backend)
    tensors = inputs(1, 2, 6, 7)
    x = {name: tensors[name].clone().requires_grad_() for name in STUDENT}
    out, loss = distill_attention(**{**tensors, **x}, backend=backend)
    y = {name: tensors[name].clone().requires_grad_() for name in STUDENT}
    if which == "out":
        got = torch.autograd.grad(out.sum(), list(x.values()))
        expected = torch.autograd.grad(F.scaled_dot_product_attention(*y.values()).sum(), list(y.values()))
    else:
        got = torch.autograd.grad(loss, list(x.values()), allow_unused=True)
        got = tuple(torch.zeros_like(tensors[name]) if g is None else g for name, g in zip(x, got, strict=True))
        loss = attention_mse(y["q_s"], y["k_s"], tensors["q_t"], tensors["k_t"], backend="reference")
        expected = (*torch.autograd.grad(loss, [y["q_s"], y["k_s"]]), torch.zeros_like(tensors["v_s"]))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_student_tensor_alone(backend: str) -> None:
    need(OP, backend)
    tensors = inputs(1, 2, 6, 7)
    everything = results(lambda **x: distill_attention(**x, backend=backend), tensors)
    for name in STUDENT:
        alone = results(lambda **x: distill_attention(**x, backend=backend), tensors, (name,))
        torch.testing.assert_close(alone[name], everything[name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_inputs_give_the_same_bits(backend: str) -> None:
    need(OP, backend)
    tensors = inputs(1, 2, 30, 33)
    first, second = (results(lambda **x: distill_attention(**x, backend=backend), tensors) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_empty_inputs(backend: str, shape: tuple[int, int, int, int]) -> None:
    need(OP, backend)
    x = {name: t.requires_grad_() for name, t in inputs(*shape).items()}
    out, loss, lse, count = distill_attention(**x, backend=backend, return_lse=True, return_count=True)
    (out.sum() + loss).backward()
    assert out.shape == (*shape[:3], 12) and not out.any() and lse.shape == shape[:3]
    assert loss.item() == 0 and count.item() == 0 and not x["q_s"].grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend: str) -> None:
    need(OP, backend, torch.bfloat16)
    tensors = inputs(1, 2, 9, 7)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        got = results(lambda **x: distill_attention(**x, backend=backend), tensors)
    low = results(lambda **x: distill_attention(**x, backend=backend), {k: x.bfloat16() for k, x in tensors.items()})
    assert got["out"].dtype == torch.bfloat16 and got["loss"].dtype == torch.float32
    for name, value in got.items():
        torch.testing.assert_close(value.float(), low[name].float(), rtol=2e-2, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_compiles_whole(backend: str | None) -> None:
    if backend is not None:
        need(OP, backend)
    torch._dynamo.reset()
    tensors = inputs(1, 2, 9, 7)
    attn_mask = mask(9, 7)

    def call(**x: Tensor) -> tuple[Tensor, ...]:
        return distill_attention(**x, attn_mask=attn_mask, distance="kl", backend=backend, return_lse=True)

    got = results(torch.compile(call, fullgraph=True, backend="aot_eager"), tensors)
    expected = results(call, tensors)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)


def test_gradcheck_of_the_reference() -> None:
    tensors = {name: x.double() for name, x in inputs(1, 2, 4, 5, 3, 4, heads_s=1, width_v=3).items()}
    leaves = [tensors[name].requires_grad_() for name in STUDENT]

    def call(q_s: Tensor, k_s: Tensor, v_s: Tensor) -> tuple[Tensor, ...]:
        return distill_attention(q_s, k_s, v_s, tensors["q_t"], tensors["k_t"], is_causal=True, backend="reference")

    assert torch.autograd.gradcheck(call, leaves)


def test_opcheck_of_the_triton_operators() -> None:
    need(OP, "triton")
    from vlkd_kernels.distill_attention.triton import _forward

    tensors = inputs(1, 2, 5, 6)
    student = [tensors[name].requires_grad_() for name in STUDENT]
    seed, lse_t = torch.tensor([3], device=DEVICE), torch.ones(1, 2, 5, device=DEVICE)
    teacher = (tensors["q_t"], tensors["k_t"])
    for arguments in (
        (*student, *teacher, None, None, None, None, 0.3, 0.3, 0.0, False, "mse"),
        (*student, *teacher, lse_t, mask(1, 1, 5, 6), mask(1, 5), seed, 0.3, 0.3, 0.2, True, "kl"),
    ):
        assert set(torch.library.opcheck(_forward, arguments).values()) == {"SUCCESS"}


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"v_s": torch.zeros(2, 4, 7, 8)}, ValueError, r"v_s must have shape .* = \[2, 4, 6, 8\], got \[2, 4, 7, 8\]"),
    ({"v_s": torch.zeros(2, 2, 6, 8)}, ValueError, "v_s must have shape"),
    ({"v_s": torch.zeros(2, 4, 6, 8).half()}, TypeError, "v_s and q_s must have the same dtype"),
    ({"v_s": torch.zeros(2, 4, 6)}, ValueError, "v_s must have 4 dimensions"),
    ({"lse_t": torch.zeros(2, 4, 6)}, ValueError, r"lse_t must have shape \[B, H, L\] = \[2, 4, 5\]"),
    ({"lse_t": torch.zeros(2, 4, 5, dtype=torch.int64)}, TypeError, "lse_t must be a floating-point tensor"),
    ({"dropout_p": 1.0}, ValueError, "dropout_p must be at least 0 and below 1, got 1.0"),
    ({"dropout_p": "no"}, TypeError, "dropout_p must be a number"),
    ({"q_t": torch.zeros(2, 3, 5, 8)}, ValueError, "q_t must have shape"),
    ({"reduction": "none"}, ValueError, "reduction 'none' is not offered"),
    ({"backend": "cuda"}, RuntimeError, "there is no CUDA C"),
]


@pytest.mark.parametrize("case", range(len(BAD)), ids=lambda i: next(iter(BAD[i][0])) + str(i))
def test_bad_input(case: int) -> None:
    changed, kind, message = BAD[case]
    good = {name: torch.zeros(2, 4, 5 if name[0] == "q" else 6, 8) for name in ("q_s", "k_s", "v_s", "q_t", "k_t")}
    with pytest.raises(kind, match=message) as caught:
        distill_attention(**(good | changed))
    assert str(caught.value).startswith("distill_attention: ")
