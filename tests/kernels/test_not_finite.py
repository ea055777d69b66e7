"""NaN and infinity: where they count the loss is NaN, and where they do not they leave no trace, on every backend.

Counting is what the docstrings say it is: rows that `query_mask` and the mask leave, the keys that such a row sees, tokens of
`token_mask`, the filled rows of a queue, negatives of another id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_truth import BACKENDS, DEVICE, backends_here, need
from torch import Tensor

from vlkd_kernels import RingQueue, attention_map, attention_mse, distill_attention, token_nce

VALUES = (torch.nan, torch.inf, -torch.inf)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# ragged, and of sizes that are read where they lie; H_k of the student and the teacher
SHAPES = {
    "ragged": (2, 4, 5, 7, 6, 10, 2, 1),
    "whole": (1, 2, 16, 16, 32, 64, 2, 2),
    "brief": (1, 2, 5, 7, 6, 10, 1, 1),
}


def brief(backend: str) -> bool:
    """Whether calls are interpreted, each of which takes half a second: then some of the cases stand for all."""
    return backend == "triton" and DEVICE == "cpu"


def values_for(backend: str) -> tuple[float, ...]:
    return VALUES[::2] if brief(backend) else VALUES


def need_dtype(op: str, backend: str, dtype: torch.dtype) -> None:
    need(op, backend, dtype)
    if brief(backend) and dtype == torch.float16:
        pytest.skip("interpreted, float16 differs from bfloat16 in nothing that is tested here")


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def tensors(shape: str, dtype: torch.dtype) -> dict[str, Tensor]:
    b, h, queries, keys, width, width_t, heads_s, heads_t = SHAPES[shape]
    sizes = {
        "q_s": (b, h, queries, width), "k_s": (b, heads_s, keys, width),
        "q_t": (b, h, queries, width_t), "k_t": (b, heads_t, keys, width_t), "v_s": (b, heads_s, keys, width),
    }  # fmt: skip
    return {name: draw(*size, seed=i, dtype=dtype) for i, (name, size) in enumerate(sizes.items())}


def outcome(op: str, x: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """The loss, with the output where there is one, and every gradient."""
    wanted = ("q_s", "k_s", "v_s") if op == "distill_attention" else ("q_s", "k_s")
    x = {name: y.clone().requires_grad_(name in wanted) for name, y in x.items()}
    if op == "distill_attention":
        out, loss = distill_attention(x["q_s"], x["k_s"], x["v_s"], x["q_t"], x["k_t"], **options)
        counted = options.get("query_mask")
        kept = out if counted is None else out.transpose(1, 2)[counted]
        (kept.float().square().sum() + 3 * loss).backward()
        found = {"loss": loss.detach(), "out": kept.detach()}
    else:
        loss = attention_mse(x["q_s"], x["k_s"], x["q_t"], x["k_t"], **options)
        loss.backward()  # type: ignore[union-attr]
        found = {"loss": loss.detach()}  # type: ignore[union-attr]
    return found | {name: x[name].grad for name in wanted}  # type: ignore[dict-item]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("op", ["attention_mse", "distill_attention"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_that_counts_is_nan(backend: str, op: str, distance: str, dtype: torch.dtype) -> None:
    need_dtype(op, backend, dtype)
    x = tensors("brief" if brief(backend) else "ragged", dtype)
    seen = torch.ones(5, 7, dtype=torch.bool, device=DEVICE)
    seen[:, 6] = False
    for options in ({}, {"attn_mask": seen[None, None]})[brief(backend) :]:
        for name, values in (("q_s", VALUES), ("k_s", VALUES), ("q_t", VALUES), ("k_t", VALUES)):
            for value in (torch.nan if name == "k_t" else -torch.inf,) if brief(backend) else values:
                broken = {**x, name: x[name].clone()}
                broken[name][-1, 0, 2, 1] = value
                found = outcome(op, broken, distance=distance, backend=backend, **options)
                case = f"{name} {value} {list(options)}"
                assert found["loss"].isnan(), f"{case}: loss {found['loss']}"
                assert found["q_s"].isnan().any() and found["k_s"].isnan().any(), f"{case}: finite gradients"


HIDDEN: dict[str, Callable[[int, int, int, int], dict[str, Any]]] = {
    # what is hidden: query 1, key 2, in all heads of the last sample
    "keys": lambda b, h, queries, keys: {"attn_mask": without(torch.ones(b, 1, 1, keys), 3, 2)},
    "full": lambda b, h, queries, keys: {"attn_mask": without(without(torch.ones(b, h, queries, keys), 3, 2), 2, 1)},
    "queries": lambda b, h, queries, keys: {"query_mask": without(torch.ones(b, queries), 1, 1)},
    "both": lambda b, h, queries, keys: {
        "attn_mask": without(torch.ones(b, 1, 1, keys), 3, 2),
        "query_mask": without(torch.ones(b, queries), 1, 1),
    },
}


def without(mask: Tensor, dim: int, index: int) -> Tensor:
    mask = mask.bool().to(DEVICE)
    mask[-1].select(dim - 1, index).fill_(False)
    return mask


@pytest.mark.parametrize("shape", ["ragged", "whole"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("op", ["attention_mse", "distill_attention"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_that_does_not_count_leaves_no_trace(
    backend: str, op: str, distance: str, dtype: torch.dtype, shape: str
) -> None:
    need_dtype(op, backend, dtype)
    if brief(backend) and (shape == "whole" or (dtype == torch.bfloat16 and distance == "kl")):
        pytest.skip("interpreted, it is nothing new")
    shape = "brief" if brief(backend) else shape
    x = tensors(shape, dtype)
    for form, make in list(HIDDEN.items())[1::2] if brief(backend) else HIDDEN.items():
        options = make(*SHAPES[shape][:4])
        for causal in (form == "full",) if brief(backend) else (False, True):
            expected = outcome(op, x, distance=distance, backend=backend, is_causal=causal, **options)
            for value in values_for(backend)[:1] if brief(backend) else VALUES:
                broken = {name: y.clone() for name, y in x.items()}
                if form in ("keys", "full", "both"):
                    for name in ("k_s", "k_t", "v_s"):
                        broken[name][-1, :, 2] = value
                if form in ("full", "queries", "both"):
                    for name in ("q_s", "q_t"):
                        broken[name][-1, :, 1] = value
                got = outcome(op, broken, distance=distance, backend=backend, is_causal=causal, **options)
                for name, y in expected.items():
                    assert y.isfinite().all()
                    torch.testing.assert_close(
                        got[name], y, msg=lambda text, at=f"{form} {causal} {value} {name}": f"{at}: {text}"
                    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_after_the_last_query_are_nobodys_where_attention_is_causal(backend: str) -> None:
    for op in ("attention_mse", "distill_attention"):
        if backend not in backends_here(op):
            continue
        x = tensors("ragged", torch.float32)
        expected = outcome(op, x, is_causal=True, backend=backend)
        for name in ("k_s", "k_t", "v_s"):
            x[name][:, :, 5:] = torch.nan
        for name, y in outcome(op, x, is_causal=True, backend=backend).items():
            torch.testing.assert_close(y, expected[name])


@pytest.mark.parametrize("form", ["left out", "unused"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_only_unwanted_rows_see_leaves_no_trace(backend: str, form: str) -> None:
    """A key or value that is not finite is seen by one query, and nobody takes that row of the output, or counts it."""
    need("distill_attention", backend)
    b, _, queries, keys = SHAPES["ragged"][:4]
    seen = torch.ones(b, 1, queries, keys, dtype=torch.bool, device=DEVICE)
    seen[:, :, :, 3] = False
    seen[:, :, 2, 3] = True
    wanted = torch.ones(b, queries, dtype=torch.bool, device=DEVICE)
    wanted[:, 2] = False

    def found(x: dict[str, Tensor]) -> dict[str, Tensor]:
        x = {name: y.clone().requires_grad_(name in ("q_s", "k_s", "v_s")) for name, y in x.items()}
        query_mask = wanted if form == "left out" else None
        options: dict[str, Any] = {"attn_mask": seen, "query_mask": query_mask, "backend": backend, "return_lse": True}
        out, loss, lse = distill_attention(x["q_s"], x["k_s"], x["v_s"], x["q_t"], x["k_t"], **options)
        kept = out.transpose(1, 2)[wanted]
        (kept.square().sum() + 3 * loss).backward()
        result = {"loss": loss.detach(), "out": kept.detach(), "lse": lse.transpose(1, 2)[wanted]}
        return result | {name: y.grad for name, y in x.items() if y.grad is not None}

    x = tensors("ragged", torch.float32)
    expected = found(x)
    names = ("v_s", "k_s", "k_t") if form == "left out" else ("v_s",)  # where the row counts, its keys do
    for name in names:
        for value in values_for(backend):
            broken = {**x, name: x[name].clone()}
            broken[name][:, :, 3, 1] = value
            for key, y in found(broken).items():
                torch.testing.assert_close(
                    y, expected[key], msg=lambda text, at=f"{name} {value} {key}": f"{at}: {text}"
                )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_that_are_not_finite_reach_the_rows_that_see_them(backend: str, dtype: torch.dtype) -> None:
    need_dtype("distill_attention", backend, dtype)
    for value in values_for(backend):
        x = tensors("ragged", dtype)
        expected, _ = distill_attention(**x, is_causal=True, backend=backend)
        x["v_s"][0, 0, 3, 1] = value
        out, loss = distill_attention(**x, is_causal=True, backend=backend)
        assert loss.isfinite() and out[0, :2, 3:, 1].isnan().all()
        assert torch.equal(out[:, :, :3], expected[:, :, :3]) and torch.equal(out[1], expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_that_are_not_finite_reach_the_output(backend: str) -> None:
    need("distill_attention", backend)
    for value in values_for(backend):
        x = tensors("ragged", torch.float32)
        x["v_s"][0, 0, 3, 1] = value
        out, loss = distill_attention(x["q_s"], x["k_s"], x["v_s"], x["q_t"], x["k_t"], backend=backend)
        assert loss.isfinite() and not out[0, :2, :, 1].isfinite().any() and out[1].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_that_overflow_are_not_dropped(backend: str) -> None:
    """Finite inputs whose product is infinite: a logit of -inf is no hidden key."""
    need("attention_mse", backend)
    for distance in ("mse", "kl"):
        x = tensors("ragged", torch.float32)
        x["q_s"][0, 0, 0], x["k_s"][0, 0, 0] = 1e25, -1e25
        assert outcome("attention_mse", x, distance=distance, backend=backend)["loss"].isnan()


def test_maps_of_what_is_not_finite() -> None:
    for value in VALUES:
        q, k = draw(1, 1, 3, 4, seed=0), draw(1, 1, 5, 4, seed=1)
        k[0, 0, 2] = value
        assert attention_map(q, k).isnan().all()
        mask = torch.ones(5, dtype=torch.bool, device=DEVICE)
        mask[2] = False
        assert attention_map(q, k, attn_mask=mask).isfinite().all()


TOKENS, ROWS, WIDTH = 5, 9, 6


def nce_outcome(x: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """The loss, every token's, the statistics, and both gradients; a number as temperature takes another way than a tensor."""
    x = dict(x)
    x["h_s"] = x["h_s"].clone().requires_grad_()
    tau = options.pop("temperature", 0.2)
    found: dict[str, Tensor] = {}
    for name, temperature in (("fixed", tau), ("learned", tau)):
        if name == "learned" or isinstance(tau, Tensor):
            temperature = torch.as_tensor(tau, device=DEVICE).clone().requires_grad_()
        loss, stats, losses = token_nce(**x, temperature=temperature, return_stats=True, return_losses=True, **options)  # type: ignore[misc, arg-type]
        wanted = (x["h_s"], temperature) if isinstance(temperature, Tensor) else (x["h_s"],)
        gradients = torch.autograd.grad(loss, wanted)  # type: ignore[arg-type]
        found |= {f"{name} loss": loss.detach(), f"{name} losses": losses, f"{name} h_s": gradients[0]}  # type: ignore[dict-item, union-attr]
        found |= {f"{name} {key}": value for key, value in stats._asdict().items()}  # type: ignore[union-attr]
        found |= {f"{name} temperature": gradients[1]} if len(gradients) > 1 else {}
    return found


def nce_tensors(dtype: torch.dtype) -> dict[str, Tensor]:
    sizes = {"h_s": (TOKENS, WIDTH), "h_t": (TOKENS, WIDTH), "negatives": (ROWS, WIDTH)}
    return {name: draw(*size, seed=i, dtype=dtype) for i, (name, size) in enumerate(sizes.items())}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_that_count_are_nan(backend: str, dtype: torch.dtype, normalize: bool) -> None:
    need_dtype("token_nce", backend, dtype)
    x = nce_tensors(dtype)
    values = (*VALUES, 1e30, -1e30) if normalize and dtype != torch.float16 else VALUES  # whose squares overflow
    values = values[2:4] if brief(backend) else values
    for in_batch in (True,) if brief(backend) else (False, True):
        for name in x:
            for value in values:
                broken = {**x, name: x[name].clone()}
                broken[name][2, 1] = value
                for key, y in nce_outcome(broken, normalize=normalize, in_batch=in_batch, backend=backend).items():
                    case = f"{name} {value} {in_batch} {key}: {y}"
                    if key.endswith(("losses", "h_s")):
                        assert y[2].isnan().all(), case
                    elif (name, key.split()[1]) in (
                        ("h_t", "negative_similarity"),
                        ("negatives", "positive_similarity"),
                    ):
                        continue  # it takes no part in it
                    else:
                        assert y.isnan().all(), case


@pytest.mark.parametrize("value", [0.0, -0.2, torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_temperature_without_a_meaning_gives_nan(backend: str, value: float) -> None:
    need("token_nce", backend)
    found = nce_outcome(nce_tensors(torch.float32), temperature=torch.tensor(value), backend=backend)
    for key, y in found.items():
        if not key.endswith("similarity"):  # before the temperature
            assert y.isnan().all(), f"{key}: {y}"


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_and_negatives_that_do_not_count_leave_no_trace(
    backend: str, dtype: torch.dtype, normalize: bool
) -> None:
    need_dtype("token_nce", backend, dtype)
    x = nce_tensors(dtype)
    queue = RingQueue(WIDTH, ROWS + 4, dtype=dtype, device=DEVICE, normalize=normalize)
    queue.enqueue_(x["negatives"], ids=torch.arange(ROWS, device=DEVICE))
    mask = torch.tensor([True, True, False, True, False], device=DEVICE)
    ids = torch.full((TOKENS,), 4, device=DEVICE)
    for in_batch in (True,) if brief(backend) else (False, True):
        for token_ids in (ids,) if brief(backend) else (None, ids):
            options: dict[str, Any] = {"token_mask": mask, "token_ids": token_ids, "normalize": normalize}
            options |= {"in_batch": in_batch, "backend": backend}
            expected = nce_outcome({**x, "negatives": queue}, **options)  # type: ignore[dict-item]
            for value in values_for(backend):
                broken = {name: y.clone() for name, y in x.items()}
                other = RingQueue(WIDTH, ROWS + 4, dtype=dtype, device=DEVICE, normalize=normalize)
                other.load_state_dict(queue.state_dict())
                for name in ("h_s", "h_t"):
                    broken[name][~mask] = value
                other.rows[ROWS:] = value
                if token_ids is not None:
                    other.rows[4] = value
                got = nce_outcome({**broken, "negatives": other}, **options)  # type: ignore[dict-item]
                for name, y in expected.items():
                    assert y.isfinite().all()
                    torch.testing.assert_close(
                        got[name], y, msg=lambda text, at=f"{in_batch} {token_ids} {value} {name}": f"{at}: {text}"
                    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_negative_of_its_own_id_is_no_token_s(backend: str) -> None:
    """It makes the others' losses NaN, and not that of the token whose id it has."""
    need("token_nce", backend)
    x = nce_tensors(torch.float32)
    queue = RingQueue(WIDTH, ROWS, device=DEVICE)
    queue.enqueue_(x["negatives"], ids=torch.arange(ROWS, device=DEVICE))
    queue.rows[3] = torch.nan
    found = nce_outcome({**x, "negatives": queue}, token_ids=torch.arange(TOKENS, device=DEVICE), backend=backend)  # type: ignore[dict-item]
    for name in ("fixed losses", "learned losses", "fixed h_s", "learned h_s"):
        broken = found[name].isnan().view(TOKENS, -1)
        assert broken.all(1).tolist() == broken.any(1).tolist() == [True, True, True, False, True], name


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tie_and_a_zero_are_numbers(backend: str) -> None:
    """What looks like the edge of a number is not refused: rows of 0, equal rows, the smallest and the largest."""
    need("token_nce", backend)
    for row in (0.0, 1.0, 1e-30, 1e18):
        x = {name: torch.full_like(y, row) for name, y in nce_tensors(torch.float32).items()}
        found = nce_outcome(x, backend=backend)
        assert all(y.isfinite().all() for y in found.values()), row
    for row in (0.0, 1.0, 1e-30, 1e18):
        x = {name: torch.full_like(y, row) for name, y in tensors("ragged", torch.float32).items()}
        assert all(y.isfinite().all() for y in outcome("attention_mse", x, backend=backend).values()), row
