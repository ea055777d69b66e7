"""Bad input: one clear sentence, before anything runs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from vlkd_kernels import BackendError, RingQueue, attention_map, attention_mse, distill_attention, token_nce


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


ATTENTION: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"q_s": [1.0]}, TypeError, "q_s must be a torch.Tensor, got list"),
    ({"q_s": zeros(2, 4, 5, 8, dtype=torch.int64)}, TypeError, "q_s must be a floating-point tensor, got int64"),
    ({"q_s": zeros(4, 5, 8)}, ValueError, r"q_s must have 4 dimensions, got shape \[4, 5, 8\]"),
    ({"k_s": zeros(2, 4, 6, 8, dtype=torch.float16)}, TypeError, "k_s and q_s must have the same dtype, got float16 and float32"),
    ({"k_t": zeros(2, 4, 6, 8, dtype=torch.float16)}, TypeError, "k_t and q_t must have the same dtype"),
    ({"k_s": zeros(2, 4, 6, 8, device="meta")}, ValueError, "k_s must be on the device of q_s, cpu, got meta"),
    ({"q_t": zeros(2, 3, 5, 8)}, ValueError, r"q_t must have shape \[B, H, L, D_t\] = \[2, 4, 5, 8\], got \[2, 3, 5, 8\]"),
    ({"k_s": zeros(2, 4, 6, 9)}, ValueError, r"k_s must have shape .* = \[2, 4, 6, 8\], got \[2, 4, 6, 9\]"),
    ({"k_t": zeros(2, 4, 7, 8)}, ValueError, r"k_t must have shape .* = \[2, 4, 6, 8\], got \[2, 4, 7, 8\]"),
    ({"k_s": zeros(2, 3, 6, 8)}, ValueError, "heads of k_s must divide the 4 heads of the queries, got 3"),
    ({"attn_mask": zeros(5, 6)}, TypeError, "attn_mask must be bool, got float32"),
    ({"attn_mask": zeros(5, 6)}, TypeError, "pass attn_mask == 0 for a mask that is added to scores"),
    ({"attn_mask": zeros(5, 6, dtype=torch.int64)}, TypeError, "attn_mask must be bool, got int64; True marks what may be used: pass attn_mask != 0"),
    ({"attn_mask": [[True]]}, TypeError, "attn_mask must be a torch.Tensor, got list"),
    ({"attn_mask": zeros(2, 6, dtype=torch.bool)}, ValueError, r"got \[2, 6\]; if it is \[B, M\], pass attn_mask\[:, None, None, :\]"),
    ({"attn_mask": zeros(2, 5, 6, dtype=torch.bool)}, ValueError, r"got \[2, 5, 6\]; if it is \[B, L, M\], pass attn_mask\[:, None\]"),
    ({"attn_mask": zeros(6, 5, dtype=torch.bool)}, ValueError, r"attn_mask must broadcast to .* = \[2, 4, 5, 6\], got \[6, 5\]"),
    ({"attn_mask": zeros(1, 2, 4, 5, 6, dtype=torch.bool)}, ValueError, "attn_mask must broadcast"),
    ({"query_mask": zeros(2, 6, dtype=torch.bool)}, ValueError, r"query_mask must have shape \[B, L\] = \[2, 5\], got \[2, 6\]"),
    ({"query_mask": zeros(2, 5)}, TypeError, "query_mask must be bool"),
    ({"scale_s": float("nan")}, ValueError, "scale_s must be finite, got nan"),
    ({"scale_t": "1"}, TypeError, "scale_t must be a number, got str"),
    ({"distance": "js"}, ValueError, "distance must be one of 'mse', 'kl', got 'js'"),
    ({"reduction": "none"}, ValueError, "reduction 'none' is not offered"),
    ({"reduction": "avg"}, ValueError, "reduction must be one of 'mean', 'sum', got 'avg'"),
    ({"backend": "tpu"}, ValueError, "backend must be None or one of .*, got 'tpu'"),
    ({"backend": "cuda"}, BackendError, "backend 'cuda' cannot run this call: it takes cuda tensors, got cpu tensors"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(ATTENTION)), ids=lambda i: next(iter(ATTENTION[i][0])) + str(i))
def test_attention_mse(case: int) -> None:
    changed, kind, message = ATTENTION[case]
    good = {"q_s": zeros(2, 4, 5, 8), "k_s": zeros(2, 4, 6, 8), "q_t": zeros(2, 4, 5, 8), "k_t": zeros(2, 4, 6, 8)}
    with pytest.raises(kind, match=message) as caught:
        attention_mse(**(good | changed))
    assert str(caught.value).startswith("attention_mse: ")


def test_a_mask_that_can_be_read_in_two_ways_is_refused() -> None:
    """[B, M] where B = L would be taken for [L, M] by broadcasting, and [B, L, M] where B = H for [H, L, M]."""
    q, k = zeros(5, 5, 5, 8), zeros(5, 5, 6, 8)
    calls = {
        "attention_mse": lambda mask: attention_mse(q, k, q, k, attn_mask=mask),
        "distill_attention": lambda mask: distill_attention(q, k, k, q, k, attn_mask=mask),
        "attention_map": lambda mask: attention_map(q, k, attn_mask=mask),
    }
    for op, call in calls.items():
        for size, one, other in (
            ((5, 6), "[L, M], written attn_mask[None, None]", "[B, M], written attn_mask[:, None, None, :]"),
            ((5, 1), "[L, M], written attn_mask[None, None]", "[B, M], written attn_mask[:, None, None, :]"),
            ((5, 5, 6), "[H, L, M], written attn_mask[None]", "[B, L, M], written attn_mask[:, None]"),
            ((5, 1, 6), "[H, L, M], written attn_mask[None]", "[B, L, M], written attn_mask[:, None]"),
        ):
            with pytest.raises(ValueError, match=f"{op}: attn_mask .* may be {re.escape(one)}, or {re.escape(other)}"):
                call(zeros(*size, dtype=torch.bool))
        for size in ((6,), (1, 6), (1, 5, 6), (1, 1, 5, 6), (5, 1, 1, 6), (1, 5, 5, 6)):
            call(torch.ones(size, dtype=torch.bool))
    q, k = q[:1], k[:1]  # one sample: both readings are the same
    attention_mse(q, k, q, k, attn_mask=torch.ones(5, 6, dtype=torch.bool))


NCE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"h_s": zeros(8)}, ValueError, r"h_s must have shape \[..., E\] with E at least 1, got \[8\]"),
    ({"h_t": zeros(2, 4, 8)}, ValueError, r"h_t must have shape that of h_s = \[2, 3, 8\], got \[2, 4, 8\]"),
    ({"h_t": zeros(2, 3, 8, device="meta")}, ValueError, "h_t must be on the device of h_s, cpu, got meta"),
    ({"negatives": zeros(5, 9)}, ValueError, r"negatives must have shape \[K, E\] with E = 8, got \[5, 9\]"),
    ({"negatives": [1]}, TypeError, "negatives must be a torch.Tensor, got list"),
    ({"h_s": [1], "negatives": RingQueue(8, 4)}, TypeError, "h_s must be a torch.Tensor, got list"),
    ({"negatives": zeros(0, 8)}, ValueError, "negatives must have at least one row, .*use in_batch=True"),
    ({"negatives": RingQueue(8, 4, normalize=False)}, ValueError, "queue was made with normalize=False but the call says normalize=True"),
    ({"negatives": RingQueue(8, 4), "normalize": False}, ValueError, "they must agree"),
    ({"token_ids": zeros(2, 3, dtype=torch.int64)}, ValueError, "token_ids need negatives that carry ids, got a plain tensor"),
    ({"token_ids": zeros(2, 3, dtype=torch.int32)}, TypeError, "token_ids must be int64, got int32"),
    ({"token_mask": zeros(2, 3)}, TypeError, "token_mask must be bool, got float32; True marks"),
    ({"token_mask": zeros(2, 4, dtype=torch.bool)}, ValueError, r"token_mask must have shape that of h_s without E = \[2, 3\], got \[2, 4\]"),
    ({"temperature": float("nan")}, ValueError, "temperature must be finite and greater than 0, got nan"),
    ({"temperature": float("inf")}, ValueError, "temperature must be finite and greater than 0, got inf"),
    ({"temperature": 0.0}, ValueError, "temperature must be finite and greater than 0, got 0.0"),
    ({"temperature": -0.07}, ValueError, "temperature must be finite and greater than 0, got -0.07"),
    ({"temperature": "warm"}, TypeError, "temperature must be a number, got str"),
    ({"temperature": torch.ones(1)}, ValueError, r"temperature must have shape a scalar tensor = \[\], got \[1\]"),
    ({"reduction": "none"}, ValueError, "reduction 'none' is not offered"),
    ({"backend": "cuda"}, BackendError, "backend 'cuda' cannot run this call"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(NCE)), ids=lambda i: next(iter(NCE[i][0])) + str(i))
def test_token_nce(case: int) -> None:
    changed, kind, message = NCE[case]
    good = {"h_s": zeros(2, 3, 8), "h_t": zeros(2, 3, 8), "negatives": zeros(5, 8)}
    with pytest.raises(kind, match=message) as caught:
        token_nce(**(good | changed))
    assert str(caught.value).startswith("token_nce: ")


QUEUE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"rows": zeros(4, 7)}, ValueError, r"rows must have shape \[..., E\] with E = 8, got \[4, 7\]"),
    ({"rows": zeros(4, 8, dtype=torch.int64)}, TypeError, "rows must be a floating-point tensor"),
    ({"rows": zeros(4, 8, device="meta")}, ValueError, "rows must be on the device of the queue, cpu, got meta"),
    ({"mask": zeros(4)}, TypeError, "mask must be bool"),
    ({"mask": zeros(5, dtype=torch.bool)}, ValueError, r"mask must have shape .* = \[4\], got \[5\]"),
    ({"ids": zeros(4, dtype=torch.int32)}, TypeError, "ids must be int64, got int32"),
    ({"backend": "triton"}, BackendError, "there is no Triton kernel for it"),
]


@pytest.mark.parametrize("case", range(len(QUEUE)))
def test_enqueue(case: int) -> None:
    changed, kind, message = QUEUE[case]
    ring = RingQueue(8, 4)
    with pytest.raises(kind, match=message):
        ring.enqueue_(**({"rows": zeros(4, 8)} | changed))
    assert ring.fill.item() == 0


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"dim": 0, "size": 4}, ValueError, "dim must be at least 1, got 0"),
        ({"dim": 8, "size": -1}, ValueError, "size must be at least 0, got -1"),
        ({"dim": 8, "size": 2.0}, TypeError, "size must be an integer, got float"),
        ({"dim": 8, "size": 4, "dtype": torch.int64}, TypeError, "16 bits or more, or float8_e4m3fn, got int64"),
    ],
)
def test_ring_queue(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        RingQueue(**arguments)


def test_backend_errors_of_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    x = zeros(1, 1, 2, 4)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="cpu tensors only under Triton's interpreter; set TRITON_INTERPRET=1"):
        attention_mse(x, x, x, x, backend="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendError, match="float16, bfloat16 or float32, got float64"):
        attention_mse(x.double(), x.double(), x, x, backend="triton")
    wide = zeros(1, 1, 2, 257)
    with pytest.raises(BackendError, match="head widths up to 256, got a wider one"):
        attention_mse(wide, wide, x, x, backend="triton")
