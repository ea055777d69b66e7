"""Every way to a derivative gives the right numbers or is refused: none gives a zero, or a wrong number, in silence."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from kernel_truth import BACKENDS, DEVICE, need
from torch import Tensor
from torch.autograd import forward_ad, functional
from torch.utils.checkpoint import checkpoint

from vlkd_kernels import RingQueue, attention_map, attention_mse, distill_attention, token_nce

Loss = Callable[[Tensor], Tensor]
REFUSED = (
    "losses have no second derivative|losses are differentiated once"
    # torch's own refusal, of the attention beside which `distill_attention` computes the loss
    "|derivative for aten::_scaled_dot_product_flash_attention_for_cpu_backward is not implemented"
)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def attention(backend: str, distance: str) -> Loss:
    k, q_t, k_t = draw(1, 2, 7, 8, seed=1), draw(1, 2, 5, 4, seed=2), draw(1, 2, 7, 4, seed=3)
    return lambda q: attention_mse(q, k, q_t, k_t, distance=distance, backend=backend)  # type: ignore[return-value]


def distilled(backend: str) -> Loss:
    k, q_t, k_t = draw(1, 2, 7, 8, seed=1), draw(1, 2, 5, 4, seed=2), draw(1, 2, 7, 4, seed=3)
    out_and_loss = lambda q: distill_attention(q, k, k, q_t, k_t, backend=backend)  # noqa: E731
    return lambda q: sum(x.square().sum() for x in out_and_loss(q))  # type: ignore[return-value]


def nce(backend: str) -> Loss:
    h_t, negatives = draw(5, 8, seed=1), draw(6, 8, seed=2)
    return lambda h: token_nce(h, h_t, negatives, backend=backend)  # type: ignore[return-value]


def warmth(backend: str) -> Loss:
    h_s, h_t, negatives = (draw(n, 8, seed=i) for i, n in enumerate((5, 5, 6)))
    return lambda tau: token_nce(h_s, h_t, negatives, temperature=tau, backend=backend)  # type: ignore[return-value]


def teacher(backend: str) -> Loss:
    q, k = draw(1, 2, 5, 8, seed=0), draw(1, 2, 7, 8, seed=1)
    return lambda q_t: attention_mse(q, k, q_t, k, backend=backend)  # type: ignore[return-value]


STUDENT = draw(1, 2, 5, 8, seed=0)
CASES: dict[str, tuple[str, Callable[[str], Loss], Tensor]] = {
    "attention_mse": ("attention_mse", lambda backend: attention(backend, "mse"), STUDENT),
    "attention_mse kl": ("attention_mse", lambda backend: attention(backend, "kl"), STUDENT),
    "distill_attention": ("distill_attention", distilled, STUDENT),
    "token_nce": ("token_nce", nce, draw(5, 8, seed=0)),
    "temperature": ("token_nce", warmth, torch.tensor(0.2, device=DEVICE)),
}


def leaf(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()


def gradient(loss: Loss, x: Tensor, **options: object) -> Tensor:
    x = leaf(x)
    return torch.autograd.grad(loss(x), x, **options)[0]  # type: ignore[arg-type]


def of_many(loss: Loss, x: Tensor) -> Tensor:
    return gradient(loss, x, grad_outputs=torch.tensor([1.0, 5.0], device=DEVICE), is_grads_batched=True)[0]


FIRST: dict[str, Callable[[Loss, Tensor], Tensor]] = {
    "is_grads_batched": of_many,
    "checkpoint": lambda f, x: gradient(lambda y: checkpoint(f, y, use_reentrant=False), x),  # type: ignore[return-value]
    "checkpoint, batched": lambda f, x: of_many(lambda y: checkpoint(f, y, use_reentrant=False), x),  # type: ignore[return-value]
    "jacobian": lambda f, x: functional.jacobian(f, x),  # type: ignore[return-value]
    "jacobian, vectorized": lambda f, x: functional.jacobian(f, x, vectorize=True),  # type: ignore[return-value]
    "vjp": lambda f, x: functional.vjp(f, x)[1],  # type: ignore[return-value]
}


def of_a_gradient(f: Loss, x: Tensor) -> None:
    x = leaf(x)
    first = torch.autograd.grad(f(x), x, create_graph=True)[0]
    torch.autograd.grad(first.sum(), x, allow_unused=True)


def forward_mode(f: Loss, x: Tensor) -> None:
    with forward_ad.dual_level():
        f(forward_ad.make_dual(x, torch.ones_like(x)))


OTHERS: dict[str, Callable[[Loss, Tensor], object]] = {
    "double backward": lambda f, x: (gradient(f, x, create_graph=True).square().sum() + 0).backward(),
    "grad of grad": of_a_gradient,
    "hessian": lambda f, x: functional.hessian(f, x),
    "hessian, vectorized": lambda f, x: functional.hessian(f, x, vectorize=True),
    "vhp": lambda f, x: functional.vhp(f, x, torch.ones_like(x)),
    "hvp": lambda f, x: functional.hvp(f, x, torch.ones_like(x)),
    "jvp by double backward": lambda f, x: functional.jvp(f, x, torch.ones_like(x)),
    "forward mode": forward_mode,
    "jacobian, forward mode": lambda f, x: functional.jacobian(f, x, vectorize=True, strategy="forward-mode"),
    "func.grad": lambda f, x: torch.func.grad(f)(x),
    "func.vjp": lambda f, x: torch.func.vjp(f, x),
    "func.jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
    "func.jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "func.jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "func.hessian": lambda f, x: torch.func.hessian(f)(x),
    "func.linearize": lambda f, x: torch.func.linearize(f, x),
    "func.vmap": lambda f, x: torch.func.vmap(f)(x[None]),
    "func.vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(f))(x[None]),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_a_first_derivative_is_right_however_it_is_asked_for(case: str, backend: str) -> None:
    op, make, x = CASES[case]
    need(op, backend)
    loss = make(backend)
    expected = gradient(loss, x)
    for name, way in FIRST.items():
        torch.testing.assert_close(way(loss, x), expected, msg=lambda text, name=name: f"{name}: {text}")
    reentrant = leaf(x)
    checkpoint(loss, reentrant, use_reentrant=True).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(reentrant.grad, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_every_other_derivative_is_refused(case: str, backend: str) -> None:
    op, make, x = CASES[case]
    need(op, backend)
    loss = make(backend)
    for name, way in OTHERS.items():
        with warnings.catch_warnings(), pytest.raises((RuntimeError, NotImplementedError), match=REFUSED):
            warnings.simplefilter("ignore")
            way(loss, x)
            pytest.fail(f"{name} gave an answer")


@pytest.mark.parametrize("backend", BACKENDS)
def test_transforms_are_refused_for_a_teacher_too(backend: str) -> None:
    """It gets no gradient, which a transform would show as a derivative of 0."""
    need("attention_mse", backend)
    x = draw(1, 2, 5, 8, seed=5)
    for name in ("forward mode", "func.grad", "func.vjp", "func.jvp", "func.jacrev", "func.linearize"):
        with pytest.raises(RuntimeError, match=REFUSED):
            OTHERS[name](teacher(backend), x)
            pytest.fail(f"{name} gave an answer")


def test_what_gets_no_gradient_does_not_look_as_if_it_had_one() -> None:
    loss = teacher("reference")(draw(1, 2, 5, 8, seed=5).requires_grad_())
    with pytest.raises(RuntimeError, match="does not require grad"):
        loss.backward()
    h_s, h_t, negatives = (draw(4, 8, seed=i).requires_grad_() for i in range(3))
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(token_nce(h_s, h_t, negatives), (h_s, h_t))  # type: ignore[arg-type]
    queue = RingQueue(8, 4)
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(token_nce(h_s, h_t, queue), (h_s, queue.rows.requires_grad_()))  # type: ignore[arg-type]


@pytest.mark.parametrize("op", ["attention_mse", "distill_attention", "token_nce"])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])
def test_gradcheck(op: str, backend: str) -> None:
    need(op, backend, torch.float64)
    x, a, b = (draw(1, 1, 3, 4, seed=i).double().requires_grad_() for i in range(3))
    if op == "token_nce":
        tau = torch.tensor(0.5, dtype=torch.float64, device=DEVICE, requires_grad=True)
        call: Callable[..., object] = lambda x, tau: token_nce(x, a, b[0, 0], temperature=tau, backend=backend)  # noqa: E731
        inputs = (x, tau)
    elif op == "attention_mse":
        call = lambda x, a: attention_mse(x, a, b, b, backend=backend)  # noqa: E731
        inputs = (x, a)
    else:
        call = lambda x, a: distill_attention(x, a, a, b, b, backend=backend)  # noqa: E731
        inputs = (x, a)
    assert torch.autograd.gradcheck(call, inputs, check_batched_grad=op != "distill_attention")
    with pytest.raises((RuntimeError, NotImplementedError), match=REFUSED):
        torch.autograd.gradgradcheck(call, inputs)


def test_attention_maps_are_differentiated_in_every_way() -> None:
    k = draw(1, 2, 7, 8, seed=1)
    seen = draw(5, 7, seed=2) > 0
    seen[2] = False
    mask = seen[None, None]

    def ours(q: Tensor) -> Tensor:
        return attention_map(q, k, attn_mask=mask).square().sum()

    def plain(q: Tensor) -> Tensor:
        scores = (q @ k.mT * 8**-0.5).masked_fill(~mask & mask.any(-1, keepdim=True), -torch.inf)
        return scores.softmax(-1).masked_fill(~mask.any(-1, keepdim=True), 0).square().sum()

    for way in (gradient, lambda f, x: torch.func.grad(f)(x), functional.hessian, *FIRST.values()):
        torch.testing.assert_close(way(ours, STUDENT), way(plain, STUDENT))
    tangent = torch.ones_like(STUDENT)
    for got, expected in zip(*(torch.func.jvp(f, (STUDENT,), (tangent,)) for f in (ours, plain)), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ["attention_mse", "distill_attention", "token_nce"])
def test_a_teacher_may_be_run_in_inference_mode(op: str, backend: str) -> None:
    need(op, backend)

    def loss(x: Tensor, teacher: Tensor) -> Tensor:
        if op == "token_nce":
            return token_nce(x, teacher, teacher[0, 0], backend=backend)  # type: ignore[return-value]
        if op == "attention_mse":
            return attention_mse(x, x, teacher, teacher, backend=backend)  # type: ignore[return-value]
        return sum(y.sum() for y in distill_attention(x, x, x, teacher, teacher, backend=backend))  # type: ignore[return-value]

    teacher = draw(1, 2, 5, 8, seed=1)
    expected = gradient(lambda x: loss(x, teacher), STUDENT)
    with torch.inference_mode():
        teacher = teacher.clone()
    torch.testing.assert_close(gradient(lambda x: loss(x, teacher), STUDENT), expected)
    with torch.inference_mode():
        assert not loss(leaf(STUDENT), teacher).requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_an_input_changed_in_place_after_the_loss(case: str, backend: str) -> None:
    """The gradient is that of the values which the loss saw, or autograd says that they are gone."""
    op, make, x = CASES[case]
    need(op, backend)
    loss, expected = make(backend), gradient(make(backend), x)
    y = leaf(x)
    changed = y * 1
    value = loss(changed)
    changed.detach().add_(1)
    try:
        got = torch.autograd.grad(value, y)[0]
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error) and op == "distill_attention"
    else:
        torch.testing.assert_close(got, expected)
