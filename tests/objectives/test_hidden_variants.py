"""Hidden states compared by sequence, or by their squared difference; and which layers are compared."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from vlkd.objectives import hidden_mse, hidden_nce, mean_over_tokens, paired_layers, rows_counted
from vlkd_kernels import RingQueue

# The formulas are in float64; fp32 sums of a few hundred terms of order 1.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}

B, L, E = 4, 5, 6
#: The third sequence, of a mismatched pair, has no token that counts.
COUNTED = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(5)


def _states() -> tuple[Tensor, Tensor]:
    """Student and teacher [B, L, E]; rows that do not count hold what no loss may meet."""
    student, teacher = torch.randn(B, L, E), torch.randn(B, L, E)
    student[~COUNTED], teacher[~COUNTED] = torch.nan, torch.inf
    return student.requires_grad_(), teacher.requires_grad_()


def _mean(hidden: Tensor, b: int) -> Tensor:
    """The mean of a sequence's counted tokens, float64 [E]."""
    rows = [hidden[b, i].double() for i in range(L) if COUNTED[b, i]]
    return sum(rows[1:], rows[0]) / len(rows)


def _assert_gradient(found: Tensor, expected: Tensor, student: Tensor) -> None:
    """Both give the same gradient where tokens count, and the first exactly none elsewhere."""
    (one,) = torch.autograd.grad(found, student)
    (other,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(one[COUNTED], other[COUNTED], **CLOSE)
    assert not one[~COUNTED].any()


def test_hidden_mse_is_the_mean_square_over_the_width() -> None:
    student, teacher = _states()
    term = hidden_mse(student, teacher, token_mask=COUNTED)
    expected = torch.zeros((), dtype=torch.float64)
    for b, i in COUNTED.nonzero().tolist():
        expected = expected + sum((student[b, i, e].double() - teacher[b, i, e].double()) ** 2 for e in range(E)) / E
    torch.testing.assert_close(term.sum, expected.float(), **CLOSE)
    assert term.count == 7
    _assert_gradient(term.sum, expected, student)
    assert not torch.autograd.grad(hidden_mse(student, teacher, token_mask=COUNTED).sum, teacher, allow_unused=True)[0]


def test_pooling_is_the_mean_of_the_counted_tokens() -> None:
    student, _ = _states()
    rows, counted = mean_over_tokens(student, COUNTED)
    assert rows.shape == (B, 1, E) and counted.tolist() == [[True], [True], [False], [True]]
    for b in (0, 1, 3):
        torch.testing.assert_close(rows[b, 0], _mean(student, b).float(), **CLOSE)
    assert not rows[2].any()
    expected = torch.stack([_mean(student, b).square().sum() for b in (0, 1, 3)]).sum()
    _assert_gradient(rows.square().sum(), expected, student)


def test_a_projection_before_pooling_is_one_behind_it() -> None:
    hidden, phi = torch.randn(B, L, E), torch.nn.Linear(E, 9)
    before, counted = mean_over_tokens(phi(hidden), COUNTED)
    torch.testing.assert_close(before[counted], phi(mean_over_tokens(hidden, COUNTED)[0])[counted], **CLOSE)


def test_pooling_in_half_precision_is_summed_in_single() -> None:
    rows, _ = mean_over_tokens(torch.full((1, 3000, 1), 0.1, dtype=torch.bfloat16), torch.ones(1, 3000).bool())
    assert rows.dtype == torch.float32
    assert math.isclose(rows.item(), torch.tensor(0.1, dtype=torch.bfloat16).item(), rel_tol=1e-5)


def test_squared_difference_of_pooled_sequences() -> None:
    student, teacher = _states()
    (rows_s, counted), (rows_t, _) = mean_over_tokens(student, COUNTED), mean_over_tokens(teacher, COUNTED)
    term = hidden_mse(rows_s, rows_t, token_mask=counted)
    distances = [(_mean(student, b) - _mean(teacher, b)).square().sum() / E for b in (0, 1, 3)]
    expected = torch.stack(distances).sum()
    torch.testing.assert_close(term.sum, expected.float(), **CLOSE)
    assert term.count == 3
    _assert_gradient(term.sum, expected, student)


@pytest.mark.parametrize("in_batch", [False, True])
def test_contrast_between_pooled_sequences(in_batch: bool) -> None:
    """Rows of a sequence's own picture are no negatives, and neither is a sequence without a counted token."""
    student, teacher = _states()
    pictures, ids = torch.tensor([3, 8, 5, 3]), torch.tensor([8, 2, 3, 3, 5])
    stored = torch.randn(5, E)
    queue = RingQueue(E, 8)
    queue.enqueue_(stored, ids=ids)
    (rows_s, counted), (rows_t, _) = mean_over_tokens(student, COUNTED), mean_over_tokens(teacher, COUNTED)
    term = hidden_nce(
        rows_s, rows_t, queue, token_mask=counted, picture_ids=pictures, temperature=0.2, in_batch=in_batch
    )

    def similarity(b: int, row: Tensor) -> Tensor:
        own = _mean(student, b)
        return (own / own.norm()) @ (row.double() / row.double().norm()) / 0.2

    losses = []
    for b in (0, 1, 3):
        positive = similarity(b, _mean(teacher, b))
        negatives = [similarity(b, stored[k]) for k in range(5) if ids[k] != pictures[b]]
        if in_batch:
            negatives += [similarity(b, _mean(teacher, c)) for c in (0, 1, 3) if pictures[c] != pictures[b]]
        losses.append(torch.stack([positive, *negatives]).exp().sum().log() - positive)
    expected = torch.stack(losses).sum()
    torch.testing.assert_close(term.sum, expected.float(), **CLOSE)
    assert term.count == 3
    _assert_gradient(term.sum, expected, student)


def test_nothing_to_compare_gives_loss_zero_and_zero_gradients() -> None:
    student, teacher = _states()
    nobody = torch.zeros_like(COUNTED)
    rows, counted = mean_over_tokens(student, nobody)
    queue = RingQueue(E, 8)
    queue.enqueue_(torch.randn(3, E), ids=torch.arange(3))
    terms = (
        hidden_mse(student, teacher, token_mask=nobody),
        hidden_mse(rows, torch.zeros(B, 1, E), token_mask=counted),
        hidden_nce(rows, torch.zeros(B, 1, E), queue, token_mask=counted, picture_ids=torch.arange(B) + 9),
    )
    for term in terms:
        (gradient,) = torch.autograd.grad(term.sum, student, retain_graph=True)
        assert term.sum == 0 and term.count == 0 and not gradient.any()


def test_counts_of_pooled_sequences_and_of_several_layers() -> None:
    seen = torch.tensor([True, True, True, True, False]).expand(B, 1, L)
    batch = {"input_ids": torch.zeros(B, 3, dtype=torch.int64), "distill_mask": COUNTED, "attention_mask": seen}
    names = ("attention", "hidden")
    assert rows_counted(batch, names, heads=2).tolist() == [14, 7]
    assert rows_counted(batch, names, heads=2, layers=3).tolist() == [42, 7]
    assert rows_counted(batch, names, heads=2, pooled=True).tolist() == [14, 3]


def test_layers_are_paired_by_relative_depth() -> None:
    assert paired_layers(3, 3) == (0, 1, 2)
    assert paired_layers(3, 6) == (1, 3, 5)
    assert paired_layers(6, 12) == (1, 3, 5, 7, 9, 11)
    assert paired_layers(2, 3) == (1, 2)  # 1 · 3/2 = 1.5: upward
    assert paired_layers(4, 1) == (0, 0, 0, 0)
    for student in range(1, 14):
        for teacher in range(1, 14):
            depths = [Fraction(i * teacher, student) for i in range(1, student + 1)]
            nearest = [max(n for n in range(1, teacher + 1) if _nearest(n, depth, teacher)) - 1 for depth in depths]
            assert list(paired_layers(student, teacher)) == nearest


def _nearest(layer: int, depth: Fraction, teacher: int) -> bool:
    return abs(layer - depth) == min(abs(n - depth) for n in range(1, teacher + 1))
