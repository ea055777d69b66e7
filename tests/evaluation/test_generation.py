"""The cached decoder against the model's own forward pass, and what generation promises."""

from __future__ import annotations

import pytest
import torch

from vlkd.data import CaptioningSet, VQASet, model_inputs
from vlkd.data.collate import captioning_mask
from vlkd.errors import VlkdError
from vlkd.evaluation import answer_questions, beam_search, generate_captions
from vlkd.evaluation.generation import search_captions

BUDGET_OPTIONS = {"beam": 3, "max_tokens": 8}


def make_set(exam, condition="picture", view="paired", **options):
    return CaptioningSet(
        exam.corpus, exam.source, exam.tokenizer, exam.recipe.text, view, condition=condition, **options
    )


def step_by_hand(collator, prompts, rows, words):
    """``[CLS] words [MASK] | tags | regions`` of each hypothesis, every token where training put it.

    ``rows`` [N] names the prompt, as long as the budgets, that a hypothesis continues, ``words`` [N, t] are its words so far.
    """
    budget, length = collator.text_budget, words.shape[1] + 2
    words = torch.nn.functional.pad(words, (1, 0), value=collator.tokens.cls)
    words = torch.nn.functional.pad(words, (0, 1), value=collator.tokens.mask)  # [N, t + 2]
    caption = {
        "input_ids": words,
        "token_type_ids": torch.zeros_like(words),
        "position_ids": torch.arange(length).expand_as(words),
        "valid": torch.ones_like(words, dtype=torch.bool),
    }
    batch = {name: torch.cat((x, prompts[name][rows, budget:]), dim=1) for name, x in caption.items()}
    valid = batch["valid"]
    structure = captioning_mask(torch.full((len(valid),), length), valid.shape[1])
    batch["attention_mask"] = structure & valid[:, None, :] & valid[:, :, None]
    return batch | {name: prompts[name][rows] for name in prompts if name.endswith("_regions")}


def uncached_scorer(model, dataset, prompts):
    """Every step as one forward pass over caption, tags and regions, in the collator's own layout."""
    tokenizer = dataset.tokenizer
    special = [token for token in tokenizer.all_special_ids if token != tokenizer.sep_token_id]

    def next_scores(tokens, pictures, parents):
        batch = step_by_hand(dataset.collator, prompts, pictures, tokens)
        logits = model(**model_inputs(batch, "student")).logits[:, 1 + tokens.shape[1]].float()
        logits[:, special] = -torch.inf
        return logits.log_softmax(1)

    return next_scores


@pytest.mark.parametrize("condition", ["picture", "none", "other"])
@pytest.mark.parametrize("beam", [1, 3])
@torch.no_grad()
def test_cached_search_equals_full_forward_passes(exam, captioner, condition, beam):
    dataset = make_set(exam, condition)
    every = range(len(dataset))
    prompts = model_inputs(dataset.prompts(every), "student")
    cached = search_captions(captioner, prompts, dataset, beam=beam, max_tokens=BUDGET_OPTIONS["max_tokens"])
    full = beam_search(
        uncached_scorer(captioner, dataset, make_set(exam, condition, padding="max_length").prompts(every)),
        len(dataset),
        end=exam.tokenizer.sep_token_id,
        width=beam,
        max_tokens=BUDGET_OPTIONS["max_tokens"],
    )
    assert [found.tokens for found in cached] == [found.tokens for found in full]
    # fp32 sums over up to 40 keys in another order; scores are of order 1.
    assert [found.score for found in cached] == pytest.approx([found.score for found in full], abs=1e-4)


def test_batches_do_not_change_captions(exam, captioner):
    dataset = make_set(exam)
    together = generate_captions(captioner, dataset, "student", **BUDGET_OPTIONS)
    for size in (1, 3):
        assert generate_captions(captioner, dataset, "student", batch=size, **BUDGET_OPTIONS) == together
    assert tuple(together) == exam.corpus.keys


def test_captions_depend_on_the_picture(exam, captioner):
    captions = {
        condition: generate_captions(captioner, make_set(exam, condition), "student", **BUDGET_OPTIONS)
        for condition in ("picture", "none", "other")
    }
    assert len(set(captions["picture"].values())) > 1
    assert len(set(captions["none"].values())) == 1  # nothing seen, the same said
    assert captions["other"] != captions["picture"]
    assert sorted(captions["other"].values()) == sorted(captions["picture"].values())  # a derangement


def test_special_tokens_are_never_generated(exam, captioner):
    """Even where the model wants nothing else: all but [SEP] are forbidden, and [SEP] ends."""
    tokenizer = exam.tokenizer
    with torch.no_grad():
        captioner.cls.predictions.bias[tokenizer.all_special_ids] = 50.0
    ending = generate_captions(captioner, make_set(exam), "student", **BUDGET_OPTIONS)
    assert set(ending.values()) == {""}
    with torch.no_grad():
        captioner.cls.predictions.bias[tokenizer.sep_token_id] = -50.0
    dataset = make_set(exam)
    prompts = model_inputs(dataset.prompts(range(len(dataset))), "student")
    found = search_captions(captioner, prompts, dataset, **BUDGET_OPTIONS)
    generated = {token for hypothesis in found for token in hypothesis.tokens}
    assert generated and not generated & set(tokenizer.all_special_ids)
    assert {len(hypothesis.tokens) for hypothesis in found} == {BUDGET_OPTIONS["max_tokens"]}


def test_longer_captions_than_training_knew_are_refused(exam, captioner):
    with pytest.raises(VlkdError, match=r"at most 22.*evaluation\.max_tokens"):
        generate_captions(captioner, make_set(exam), "student", max_tokens=23)


def test_answers_do_not_depend_on_batches(exam, answerer):
    dataset = VQASet(exam.corpus, exam.source, exam.tokenizer, exam.recipe.text, "paired", answers=exam.answers)
    alone = answer_questions(answerer, dataset, "student", batch=1)
    assert answer_questions(answerer, dataset, "student", batch=64) == alone
    assert len(alone) == len(dataset) and set(alone) <= set(exam.answers.answers)
    assert len(set(alone)) > 1
