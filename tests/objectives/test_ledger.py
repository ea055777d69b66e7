"""The ledger: means over steps, shares of the gradient, warnings, and its part of a checkpoint."""

from __future__ import annotations

import logging

import pytest
import torch

from vlkd.objectives import Ledger


def _row(ledger: Ledger, raw: list[float], hidden_norms: list[float] | None = None) -> dict[str, float]:
    """One step with these raw values, and gradients of these norms at the measured place."""
    ledger.record(torch.tensor(raw))
    if hidden_norms is not None:
        hidden = torch.zeros(2, 3, requires_grad=True)
        ledger.measure(torch.stack([norm * hidden[0, 0] for norm in hidden_norms]), hidden)
    ledger.close_step()
    return ledger.row()


def test_a_row_holds_raw_weighted_and_share_of_every_term() -> None:
    row = _row(Ledger({"language": 1.0, "hidden": 0.5}), [2.0, 6.0], [3.0, 1.0])
    assert row["raw/hidden"] == 6.0 and row["weighted/hidden"] == 3.0 and row["loss"] == 5.0
    assert row["gradient/language"] == pytest.approx(3.0) and row["gradient/hidden"] == pytest.approx(1.0)
    assert row["share/language"] == pytest.approx(0.75) and row["share/hidden"] == pytest.approx(0.25)


def test_gradients_that_float16_would_lose_are_measured_through_the_scale() -> None:
    norms = []
    for scale in (1.0, 2.0**16):
        ledger = Ledger({"language": 1.0})
        hidden = torch.zeros(4, requires_grad=True)
        ledger.record(torch.ones(1))
        ledger.measure((hidden.half() * 1e-3)[:1].float() * 1e-6, hidden, scale)  # 1e-9 is 0 in float16
        ledger.close_step()
        norms.append(ledger.row()["gradient/language"])
    assert norms == [0.0, pytest.approx(1e-9, rel=1e-3)]


def test_micro_batches_add_up_and_steps_are_averaged() -> None:
    ledger = Ledger({"language": 1.0})
    hidden = torch.zeros(4, requires_grad=True)
    for step in range(2):
        for _ in range(2):  # a step's micro-batches
            ledger.record(torch.tensor([1.0 + step]))
            if step == 1:
                ledger.measure((3 * hidden[0]).reshape(1), hidden)
        ledger.close_step()
    row = ledger.row()
    assert row["raw/language"] == 3.0  # (1 + 1) and (2 + 2), averaged
    assert row["gradient/language"] == pytest.approx(18**0.5)  # two parts of one gradient, not a sum of norms
    assert _row(ledger, [5.0])["raw/language"] == 5.0


def test_a_term_that_does_not_reach_the_measured_place_has_share_zero() -> None:
    ledger = Ledger({"language": 1.0, "hidden": 1.0})
    hidden, elsewhere = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    ledger.record(torch.ones(2))
    ledger.measure(torch.stack([hidden.sum(), elsewhere.sum()]), hidden)
    ledger.close_step()
    row = ledger.row()
    assert row["share/language"] == 1.0 and row["share/hidden"] == 0.0


def test_a_term_that_dwarfs_the_others_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger({"language": 1.0, "hidden": 1.0})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            _row(ledger, [1.0, 1.0], [1.0, 999.0])
        assert not caplog.records
        for _ in range(4):
            _row(ledger, [1.0, 1.0], [1.0, 999.0])
    assert len(caplog.records) == 1 and "'hidden' holds 99.9 %" in caplog.text


def test_balanced_terms_a_term_alone_and_an_empty_queue_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for norms in ([1.0, 9.0], [1.0, 0.0]):
            ledger = Ledger({"language": 1.0, "hidden": 1.0})
            for _ in range(5):
                _row(ledger, [1.0, 1.0], norms)
        alone = Ledger({"language": 1.0})
        for _ in range(5):
            _row(alone, [1.0], [1.0])
    assert not caplog.records


def test_a_checkpoint_between_two_rows_loses_nothing() -> None:
    ledgers = [Ledger({"language": 1.0, "hidden": 2.0}) for _ in range(2)]
    for value in (0.1, 0.7):
        ledgers[0].record(torch.tensor([value, value / 3]))
        ledgers[0].close_step()
    ledgers[1].load_state_dict(ledgers[0].state_dict(), torch.device("cpu"))
    assert _row(ledgers[0], [0.3, 0.9]) == _row(ledgers[1], [0.3, 0.9])
