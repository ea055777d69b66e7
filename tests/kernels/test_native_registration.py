"""The compiled operators as torch sees them: schemas, fake tensors, compilation, determinism, refusals."""

from __future__ import annotations

import pytest
import torch
from native_cases import Ring, attention_inputs, nce_inputs, needs_extension, poisoned_memory  # noqa: F401

from vlkd_kernels.ring_queue import native as ring

pytestmark = [needs_extension, pytest.mark.usefixtures("poisoned_memory")]


def calls() -> list[tuple[str, tuple]]:
    q_s, k_s, q_t, k_t = attention_inputs(2, 4, 5, 6, heads=(2, 1))
    mask, counted = torch.rand(2, 1, 1, 6) < 0.7, torch.rand(2, 5) < 0.7
    h_s, h_t, negatives = nce_inputs(5, 7, 8)
    ids, more_ids = torch.arange(5), torch.arange(7)
    queue = Ring(4, 3)
    return [
        ("attention_mse", (q_s, k_s, q_t, k_t, 0.3, 0.2, mask, counted, True, "mse", True, True)),
        ("attention_mse", (q_s.double(), k_s.double(), q_t, k_t, 0.3, 0.2, None, None, False, "kl", False, False)),
        (
            "token_nce",
            (h_s, h_t, negatives, torch.tensor(3), more_ids, ids > 1, ids, 0.1, None, True, True, True, True),
        ),
        (
            "token_nce",
            (h_s, h_t, negatives, None, None, None, None, None, torch.tensor(0.1), False, False, False, False),
        ),
        (
            "ring_enqueue_",
            (*queue.state(), torch.randn(3, 3), torch.tensor([True, False, True]), torch.arange(3), True),
        ),
        ("ring_enqueue_", (*queue.state(), torch.randn(9, 3).bfloat16(), None, None, False)),
    ]


@pytest.mark.parametrize("index", range(6))
def test_opcheck(index: int) -> None:
    name, arguments = calls()[index]
    torch.use_deterministic_algorithms(False)
    result = torch.library.opcheck(getattr(torch.ops.vlkd, name).default, arguments)
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("index", range(4))
def test_compiles_whole_and_gives_the_same_bits(index: int) -> None:
    name, arguments = calls()[index]
    op = getattr(torch.ops.vlkd, name).default
    compiled = torch.compile(lambda *x: op(*x), fullgraph=True, backend="aot_eager")
    for a, b in zip(op(*arguments), compiled(*arguments), strict=True):
        assert torch.equal(a, b)


def test_ring_compiles_whole_and_changes_its_state() -> None:
    queue, twin = Ring(4, 3), Ring(4, 3)
    compiled = torch.compile(lambda *x: ring.enqueue_(*x), fullgraph=True, backend="aot_eager")
    for count in (3, 3):
        new = torch.randn(count, 3)
        compiled(*queue.state(), new, None, None, True)
        ring.enqueue_(*twin.state(), new, None, None, True)
    for a, b in zip(queue.state(), twin.state(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("index", [0, 2])
def test_the_same_inputs_give_the_same_bits(index: int) -> None:
    name, arguments = calls()[index]
    op = getattr(torch.ops.vlkd, name).default
    first = op(*arguments)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, op(*arguments), strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which must not reach the products inside
        assert all(torch.equal(a, b) for a, b in zip(first, op(*arguments), strict=True))


@pytest.mark.parametrize("index", [0, 2])
def test_backward_through_a_raw_operator_is_refused(index: int) -> None:
    name, arguments = calls()[index]
    arguments[0].requires_grad_()
    with pytest.raises(RuntimeError, match="not implemented"):
        getattr(torch.ops.vlkd, name)(*arguments)[0].backward()


def test_raw_operators_refuse_what_they_would_misread() -> None:
    (_, attend), _, (_, compare), _, (_, write), _ = calls()
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        torch.ops.vlkd.attention_mse(*attend[:3], attend[3][:, :, :2], *attend[4:])
    with pytest.raises(RuntimeError, match="distance must be"):
        torch.ops.vlkd.attention_mse(*attend[:9], "cosine", True, True)
    with pytest.raises(RuntimeError, match="expected h_s and h_t"):
        torch.ops.vlkd.token_nce(compare[0][:, :3], *compare[1:])
    with pytest.raises(RuntimeError, match="one of the two"):
        torch.ops.vlkd.token_nce(*compare[:8], torch.tensor(0.1), *compare[9:])
    with pytest.raises(RuntimeError, match="expected new rows"):
        torch.ops.vlkd.ring_enqueue_(*write[:4], write[4][:, :2], *write[5:])
