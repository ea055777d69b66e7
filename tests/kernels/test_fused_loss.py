"""What both losses share: the autograd wrapper, autocast, torch.compile, registration, determinism."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_truth import BACKENDS, DEVICE, need
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from vlkd_kernels import RingQueue, attention_mse, fused_loss, token_nce

OPS = ("attention_mse", "token_nce")


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def student(op: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """The tensor that is differentiated."""
    shape = (1, 2, 9, 8) if op == "attention_mse" else (9, 8)
    return draw(*shape, seed=0, dtype=dtype).requires_grad_()


def loss_of(op: str, backend: str | None, **options: object) -> Callable[[Tensor], Tensor]:
    """The op as a function of the student's tensor alone."""
    if op == "token_nce":
        h_t, negatives = draw(9, 8, seed=1), draw(12, 8, seed=2)
        return lambda h: token_nce(h, h_t, negatives, backend=backend, **options)  # type: ignore[arg-type, return-value]
    k, q_t, k_t = draw(1, 2, 7, 8, seed=1), draw(1, 2, 9, 4, seed=2), draw(1, 2, 7, 4, seed=3)
    return lambda q: attention_mse(q, k.to(q.dtype), q_t, k_t, backend=backend, **options)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_two_backwards_of_one_graph_agree(op: str, backend: str) -> None:
    need(op, backend)
    x = student(op)
    loss = loss_of(op, backend)(x)
    first = torch.autograd.grad(loss, x, torch.tensor(3.0, device=DEVICE), retain_graph=True)[0]
    second = torch.autograd.grad(loss, x, retain_graph=True)[0]
    torch.testing.assert_close(first, 3 * second)
    third, expected = torch.autograd.grad(loss, x, retain_graph=True)[0], second.clone()
    second.zero_()  # a result is its owner's to change
    assert torch.equal(third, expected)
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)


@pytest.mark.parametrize("op", OPS)
def test_a_second_derivative_is_refused(op: str) -> None:
    x = student(op)
    gradient = torch.autograd.grad(loss_of(op, "reference")(x), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivative"):
        (gradient.square().sum() + x.sum()).backward()


@pytest.mark.parametrize("op", OPS)
def test_torch_func_is_refused_with_a_way_out(op: str) -> None:
    x = student(op).detach()
    with pytest.raises(RuntimeError, match=r"not by the transforms of torch\.func; for those use the formula"):
        torch.func.grad(loss_of(op, None))(x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_activation_checkpointing_changes_nothing(op: str, backend: str) -> None:
    need(op, backend)
    x, loss = student(op), loss_of(op, backend)
    expected = torch.autograd.grad(loss(2 * x), x)[0]
    got = torch.autograd.grad(checkpoint(lambda x: loss(2 * x), x, use_reentrant=False), x)[0]
    assert torch.equal(got, expected)


@pytest.mark.parametrize("op", OPS)
def test_gradients_are_not_computed_unless_wanted(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    module = importlib.import_module(f"vlkd_kernels.{op}.reference")
    flags = []
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda *x: flags.append(x[-1]) or forward(*x))
    x, loss = student(op), loss_of(op, "reference")
    with torch.no_grad():
        assert not loss(x).requires_grad
    assert not loss(x.detach()).requires_grad
    assert loss(x).requires_grad
    assert flags == [False, False, True]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_the_loss_is_the_same_without_gradients(op: str, backend: str) -> None:
    need(op, backend)
    x, loss = student(op), loss_of(op, backend)
    torch.testing.assert_close(loss(x.detach()), loss(x).detach())


def test_the_teacher_gets_no_gradient() -> None:
    q, k, q_t, k_t = (draw(1, 1, 4, 8, seed=i).requires_grad_() for i in range(4))
    attention_mse(q, k, q_t, k_t).backward()
    assert q.grad is not None and q_t.grad is None and k_t.grad is None
    h_s, h_t, negatives = (draw(4, 8, seed=i).requires_grad_() for i in range(3))
    token_nce(h_s, h_t, negatives).backward()
    assert h_s.grad is not None and h_t.grad is None and negatives.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_the_same_inputs_give_the_same_bits(op: str, backend: str) -> None:
    need(op, backend)
    x, loss = student(op), loss_of(op, backend)
    first, second = ((value := loss(x), torch.autograd.grad(value, x)[0]) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_autocast(op: str, backend: str) -> None:
    """Products in autocast's dtype, the loss in float32, the gradient in the dtype of the parameter side."""
    need(op, backend, torch.bfloat16)
    x, loss = student(op), loss_of(op, backend)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        value = loss(x)
    gradient = torch.autograd.grad(value, x)[0]
    assert value.dtype == gradient.dtype == torch.float32
    low = x.detach().bfloat16().requires_grad_()
    expected = loss(low)
    assert torch.equal(value, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, low)[0].float(), rtol=2**-8, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize("op", OPS)
def test_compiles_whole(op: str, backend: str | None, dynamic: bool) -> None:
    if backend is not None:
        need(op, backend)
    if backend == "triton" and DEVICE == "cpu" and dynamic:
        pytest.skip("one trace through the interpreter is enough")
    torch._dynamo.reset()
    x, loss = student(op), loss_of(op, backend)
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    got, expected = compiled(x), loss(x)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, x)[0], torch.autograd.grad(expected, x)[0])


@pytest.mark.slow
def test_attention_compiles_whole_with_inductor() -> None:
    torch._dynamo.reset()
    x, loss = student("attention_mse"), loss_of("attention_mse", None, distance="kl", is_causal=True)
    got, expected = torch.compile(loss, fullgraph=True)(x), loss(x)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, x)[0], torch.autograd.grad(expected, x)[0])


@pytest.mark.slow
def test_compiles_whole_with_inductor_and_a_queue() -> None:
    torch._dynamo.reset()
    queues = [RingQueue(8, 6, device=DEVICE) for _ in range(2)]
    x, tau, h_t = student("token_nce"), torch.tensor(0.1, device=DEVICE, requires_grad=True), draw(9, 8, seed=1)

    def step(ring: RingQueue, x: Tensor) -> tuple[Tensor, Tensor]:
        loss, stats = token_nce(x, h_t, ring, temperature=tau, in_batch=True, return_stats=True)
        ring.enqueue_(h_t[:4])
        return loss, stats.accuracy

    compiled = torch.compile(step, fullgraph=True)
    for _ in range(3):
        got, expected = compiled(queues[0], x), step(queues[1], x)
        torch.testing.assert_close(got, expected)
        gradients = [torch.autograd.grad(loss, [x, tau]) for loss, _ in (got, expected)]
        torch.testing.assert_close(*gradients)
    for name, buffer in queues[0].named_buffers():
        torch.testing.assert_close(buffer, queues[1].get_buffer(name))


@pytest.mark.parametrize("backend", [None, "reference"])
def test_nothing_is_asked_of_the_device(backend: str | None) -> None:
    """Fake tensors have no values: any `.item()` or data-dependent branch on the way raises."""
    with FakeTensorMode():
        x = torch.empty(1, 2, 9, 8, requires_grad=True)
        mask = torch.empty(9, 9, dtype=torch.bool)
        attention_mse(x, x, x, x, attn_mask=mask, distance="kl", backend=backend).backward()
        ring = RingQueue(8, 4)
        h, ids = torch.empty(5, 8, requires_grad=True), torch.empty(5, dtype=torch.int64)
        tau = torch.empty((), requires_grad=True)
        counted = torch.empty(5, dtype=torch.bool)
        options = {"temperature": tau, "token_mask": counted, "token_ids": ids, "in_batch": True, "return_stats": True}
        token_nce(h, h, ring, **options, backend=backend)[0].backward()  # type: ignore[arg-type]
        ring.enqueue_(h, mask=counted, ids=ids, backend=backend)
        assert x.grad is not None and h.grad is not None and tau.grad is not None


def test_only_a_cpu_is_asked_whether_the_incoming_gradient_is_one() -> None:
    assert fused_loss._is_one(torch.ones(()))
    assert not fused_loss._is_one(torch.full((), 2.0))
    assert not fused_loss._is_one(torch.ones((), device="meta"))  # where .item() raises
    with FakeTensorMode():
        assert not fused_loss._is_one(torch.ones(()))


def test_opcheck_of_the_triton_operators() -> None:
    need("attention_mse", "triton")
    from vlkd_kernels.attention_mse.triton import forward as attention
    from vlkd_kernels.token_nce.triton import forward as nce

    x, mask = draw(1, 2, 5, 8, seed=0), draw(5, 5, seed=1)[None, None] > 0
    h, ids = draw(5, 8, seed=0), torch.arange(5, device=DEVICE)
    fill, tau = torch.tensor(3, device=DEVICE), torch.tensor(0.1, device=DEVICE)
    for op, arguments in (
        (attention, (x, x, x, x, 0.3, 0.3, mask, None, True, "kl", True, True)),
        (attention, (x, x, x, x, 0.3, 0.3, None, None, False, "mse", False, False)),
        (nce, (h, h, h, fill, ids, ids > 1, ids, None, tau, True, False, True, True)),
        (nce, (h, h, h, None, None, None, None, 0.1, None, False, False, False, False)),
    ):
        assert set(torch.library.opcheck(op, arguments).values()) == {"SUCCESS"}
