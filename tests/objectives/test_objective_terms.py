"""Every objective against its formula written out, and what does not count."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.objectives import (
    answer_classification,
    attention_transfer,
    class_distillation,
    hidden_nce,
    image_text_matching,
    masked_language,
    rows_counted,
)
from vlkd_kernels import RingQueue

# fp32 sums of a few hundred terms of order 1
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


def test_masked_language_is_cross_entropy_at_masked_positions() -> None:
    logits = torch.randn(2, 5, 7)
    labels = torch.full((2, 5), -100)
    labels[0, 1], labels[0, 4], labels[1, 0] = 3, 6, 2

    term = masked_language(logits[labels != -100], labels)

    expected = -sum(logits.log_softmax(-1)[b, t, labels[b, t]] for b, t in ((0, 1), (0, 4), (1, 0)))
    torch.testing.assert_close(term.sum, expected, **CLOSE)
    assert term.count == 3


def test_matching_and_answers_count_by_sample() -> None:
    logits, matched = torch.randn(4, 2), torch.tensor([1, 0, 0, 1])
    term = image_text_matching(logits, matched)
    expected = -logits.log_softmax(-1)[torch.arange(4), matched].sum()
    torch.testing.assert_close(term.sum, expected, **CLOSE)
    assert term.count == 4

    logits, answers = torch.randn(4, 6), torch.rand(4, 6)
    term = answer_classification(logits, answers)
    mean_times_labels = F.binary_cross_entropy_with_logits(logits, answers) * 6
    torch.testing.assert_close(term.sum / term.count, mean_times_labels, **CLOSE)


def test_class_distillation_differs_from_cross_entropy_by_the_teachers_entropy() -> None:
    student, teacher = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7)
    term = class_distillation(student, teacher, temperature=2.0)
    t, log_p = (teacher / 2).softmax(-1), (student / 2).log_softmax(-1)
    torch.testing.assert_close(term.sum, -(t * log_p).sum() + (t * t.log()).sum(), **CLOSE)

    (gradient,) = torch.autograd.grad(term.sum, student)
    (expected,) = torch.autograd.grad(-(t * (student / 2).log_softmax(-1)).sum(), student)
    torch.testing.assert_close(gradient, expected, **CLOSE)
    assert class_distillation(teacher, teacher).sum.abs() < 1e-5


def _attention(width: int, requires_grad: bool = False) -> tuple[Tensor, Tensor, float]:
    query, key = torch.randn(2, 3, 5, width), torch.randn(2, 3, 5, width)
    return query.requires_grad_(requires_grad), key.requires_grad_(requires_grad), width**-0.5


def test_attention_transfer_is_mean_squared_difference_of_the_maps() -> None:
    student, teacher = _attention(4), _attention(8)
    visible = torch.ones(2, 1, 5, dtype=torch.bool)
    visible[1, :, 3:] = False
    queries = visible[:, 0].clone()
    queries[0, 2] = False

    term = attention_transfer(student, teacher, attention_mask=visible, query_mask=queries)

    def maps(query: Tensor, key: Tensor, scale: float) -> Tensor:
        scores = (query @ key.mT * scale).masked_fill(~visible.unsqueeze(1), -torch.inf)
        return scores.softmax(-1)

    squares = (maps(*student) - maps(*teacher)).square().sum(-1)  # [B, H, L]
    rows = squares / visible.sum(-1).unsqueeze(1)
    torch.testing.assert_close(term.sum, (rows * queries.unsqueeze(1)).sum(), **CLOSE)
    assert term.count == 3 * queries.sum()


def _queue_of(rows: Tensor, ids: Tensor, size: int = 8) -> RingQueue:
    queue = RingQueue(rows.shape[1], size)
    queue.enqueue_(rows, ids=ids)
    return queue


def test_hidden_nce_leaves_out_rows_of_the_tokens_own_picture() -> None:
    projected, hidden = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    rows, ids = torch.randn(4, 6), torch.tensor([7, 8, 9, 8])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    pictures = torch.tensor([7, 8])

    term = hidden_nce(projected, hidden, _queue_of(rows, ids), token_mask=mask, picture_ids=pictures, temperature=0.1)

    s, t, q = (F.normalize(x, dim=-1) for x in (projected, hidden, rows))
    expected = torch.tensor(0.0)
    for b, i in mask.nonzero().tolist():
        negatives = [s[b, i] @ q[k] / 0.1 for k in range(4) if ids[k] != pictures[b]]
        logits = torch.stack([s[b, i] @ t[b, i] / 0.1, *negatives])
        expected = expected - logits.log_softmax(0)[0]
    torch.testing.assert_close(term.sum, expected, **CLOSE)
    assert term.count == 3


def test_an_empty_queue_gives_loss_zero_and_zero_gradients() -> None:
    projected = torch.randn(2, 3, 6, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    term = hidden_nce(
        projected, torch.randn(2, 3, 6), RingQueue(6, 8), token_mask=mask, picture_ids=torch.tensor([1, 2])
    )
    term.sum.backward()
    assert term.sum == 0 and term.count == 6
    assert projected.grad is not None and not projected.grad.any()


def test_nothing_to_count_gives_loss_zero_and_zero_gradients() -> None:
    logits = torch.randn(0, 7, requires_grad=True)
    term = masked_language(logits, torch.full((2, 5), -100))
    term.sum.backward()
    assert term.sum == 0 and term.count == 0

    student, teacher = _attention(4, requires_grad=True), _attention(8)
    nobody = torch.zeros(2, 5, dtype=torch.bool)
    term = attention_transfer(student, teacher, attention_mask=nobody.unsqueeze(1), query_mask=nobody)
    term.sum.backward()
    assert term.sum == 0 and term.count == 0
    assert not student[0].grad.any() and not student[1].grad.any()


def test_the_teacher_never_gets_a_gradient() -> None:
    student, teacher = _attention(4, requires_grad=True), _attention(8, requires_grad=True)
    everybody = torch.ones(2, 5, dtype=torch.bool)
    attention = attention_transfer(student, teacher, attention_mask=everybody.unsqueeze(1), query_mask=everybody)
    attention.sum.backward()
    hidden = torch.randn(2, 3, 6, requires_grad=True)
    queue = _queue_of(torch.randn(2, 6), torch.tensor([5, 6]))
    mask, pictures = torch.ones(2, 3, dtype=torch.bool), torch.tensor([1, 2])
    nce = hidden_nce(torch.randn(2, 3, 6, requires_grad=True), hidden, queue, token_mask=mask, picture_ids=pictures)
    nce.sum.backward()
    logits = torch.randn(2, 4, requires_grad=True)
    class_distillation(torch.randn(2, 4, requires_grad=True), logits).sum.backward()
    assert teacher[0].grad is None and teacher[1].grad is None and hidden.grad is None and logits.grad is None


def test_rows_are_counted_from_the_batch_alone() -> None:
    visible = torch.tensor([[True, True, True], [True, False, False]])
    batch = {
        "input_ids": torch.zeros(2, 2, dtype=torch.int64),
        "mlm_labels": torch.tensor([[-100, 4], [7, 9]]),
        "distill_mask": torch.tensor([[True, True, False], [True, False, False]]),
        "attention_mask": visible.unsqueeze(1),
    }
    names = ("language", "matching", "attention", "hidden", "classes")
    assert rows_counted(batch, names, heads=4).tolist() == [3, 2, 12, 3, 3]
    del batch["mlm_labels"]
    assert rows_counted(batch, ("answers", "classes"), heads=4).tolist() == [2, 2]


def test_masked_language_in_half_precision_is_summed_in_single() -> None:
    logits = torch.zeros(4000, 2, dtype=torch.float16)
    term = masked_language(logits, torch.zeros(1, 4000, dtype=torch.int64))
    assert term.sum.dtype == torch.float32
    assert math.isclose(term.sum.item(), 4000 * math.log(2), rel_tol=1e-5)
