"""The tokenizer is BERT's kind, gives texts back, and is the same whenever it is trained."""

from __future__ import annotations

import json

import pytest
from tokenizers.normalizers import BertNormalizer

from vlkd.data import load_tokenizer, save_tokenizer, tokenizer_fingerprint, train_tokenizer
from vlkd.errors import VlkdError

# Many pairs of letters with the same count: a trainer that breaks ties by chance gives itself away.
TIES = [f"{first}{second}{third}" for first in "abcd" for second in "efgh" for third in "ijkl"]


def test_round_trip(tokenizer) -> None:
    encoded = tokenizer("A RED star")["input_ids"]
    assert encoded[0] == tokenizer.cls_token_id and encoded[-1] == tokenizer.sep_token_id
    assert tokenizer.decode(encoded, skip_special_tokens=True) == "a red star"
    assert tokenizer.convert_tokens_to_ids("[PAD]") == 0


def test_words_are_put_together_from_pieces() -> None:
    tokenizer = train_tokenizer(["star stars start"], 100)
    pieces = tokenizer.tokenize("tarts")
    assert len(pieces) > 1 and all(piece.startswith("##") for piece in pieces[1:])
    assert tokenizer.decode(tokenizer("tarts")["input_ids"], skip_special_tokens=True) == "tarts"
    assert tokenizer.tokenize("star zebra") == ["star", "[UNK]"]


def test_the_vocabulary_holds_at_most_its_size() -> None:
    assert len(train_tokenizer(TIES, 40)) == 40


def test_the_same_texts_give_the_same_tokenizer() -> None:
    first, *others = (train_tokenizer(TIES, 40).get_vocab() for _ in range(8))
    assert all(vocabulary == first for vocabulary in others)


def test_saved_and_loaded(tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded("a red ring")["input_ids"] == tokenizer("a red ring")["input_ids"]
    assert loaded.mask_token_id == tokenizer.mask_token_id


def test_no_tokenizer_there(tmp_path) -> None:
    with pytest.raises(VlkdError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_damaged_or_strange_tokenizer_is_a_sentence(tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text()
    for content in (whole[:100], "[]", "\xff"):
        (tmp_path / "tokenizer.json").write_text(content, encoding="latin-1")
        with pytest.raises(VlkdError, match=r"tokenizer\.json' is damaged"):
            load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(whole)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("mask_token")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(VlkdError, match=r"does not say what its \[MASK\] is"):
        load_tokenizer(tmp_path)


def test_a_fingerprint_stays_when_a_tokenizer_is_used_saved_and_loaded(tokenizer, tmp_path) -> None:
    before = tokenizer_fingerprint(tokenizer)
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert tokenizer_fingerprint(loaded) == before
    loaded(["a red star", "a star"], padding="max_length", truncation=True, max_length=8)
    assert tokenizer_fingerprint(loaded) == before
    loaded.save_pretrained(tmp_path / "again")
    assert tokenizer_fingerprint(load_tokenizer(tmp_path / "again")) == before


def test_a_fingerprint_tells_vocabularies_apart() -> None:
    one, same, other = (train_tokenizer(texts, 100) for texts in (["a star"], ["a star"], ["a ring"]))
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(same) != tokenizer_fingerprint(other)
    same.backend_tokenizer.normalizer = BertNormalizer(lowercase=False)
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(same)
