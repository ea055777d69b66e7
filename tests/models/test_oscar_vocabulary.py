"""Oscar's vocabulary as a tokenizer like our own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from oscar_formulas import WORDS, oscar_config

from vlkd.data.tokenizer import SPECIAL_TOKENS, load_tokenizer
from vlkd.errors import VlkdError
from vlkd.models.oscar import load_oscar_tokenizer


@pytest.fixture
def vocabulary(tmp_path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n\n", encoding="utf-8")
    return tmp_path


def test_the_vocabulary_becomes_a_tokenizer(vocabulary) -> None:
    tokenizer = load_oscar_tokenizer(vocabulary)
    assert len(tokenizer) == len(WORDS)
    assert [tokenizer.convert_tokens_to_ids(word) for word in WORDS] == list(range(len(WORDS)))
    encoded = tokenizer("Dogs running?", "É dog zebra", return_token_type_ids=True)
    words = ["[CLS]", "dog", "##s", "run", "##ning", "?", "[SEP]", "e", "dog", "[UNK]", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == words
    assert encoded["token_type_ids"] == [0] * 7 + [1] * 4
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == "dogs running? e dog"
    assert {name: getattr(tokenizer, name) for name in SPECIAL_TOKENS} == SPECIAL_TOKENS
    tokenizer.save_pretrained(vocabulary / "ours")
    again = load_tokenizer(vocabulary / "ours")
    assert again("Dogs running?", "É dog zebra")["input_ids"] == encoded["input_ids"]
    assert again.mask_token_id == WORDS.index("[MASK]")


def test_a_cased_vocabulary(vocabulary) -> None:
    (vocabulary / "tokenizer_config.json").write_text('{"do_lower_case": false, "max_len": 512}')
    assert load_oscar_tokenizer(vocabulary).tokenize("Dogs é dog") == ["Dog", "##s", "é", "dog"]


def test_vocabularies_that_do_not_fit(vocabulary) -> None:
    (vocabulary / "config.json").write_text(json.dumps(oscar_config(vocab_size=len(WORDS))))
    (vocabulary / "added_tokens.json").write_text("{}")
    load_oscar_tokenizer(vocabulary)
    (vocabulary / "added_tokens.json").write_text('{"unicorn": 14}')
    with pytest.raises(VlkdError, match="adds 1 tokens to the vocabulary, first 'unicorn'"):
        load_oscar_tokenizer(vocabulary)
    (vocabulary / "added_tokens.json").unlink()
    (vocabulary / "config.json").write_text(json.dumps(oscar_config(vocab_size=13)))
    with pytest.raises(VlkdError, match="has 14 words, but the model beside it 13 embeddings"):
        load_oscar_tokenizer(vocabulary)
    (vocabulary / "vocab.txt").write_text("[PAD]\n[CLS]\n[SEP]\n[UNK]\n")
    with pytest.raises(VlkdError, match=r"vocab\.txt' lacks \[MASK\]"):
        load_oscar_tokenizer(vocabulary)
    (vocabulary / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(VlkdError, match="is no UTF-8 text"):
        load_oscar_tokenizer(vocabulary)
    (vocabulary / "vocab.txt").unlink()
    with pytest.raises(VlkdError, match=r"holds no vocabulary \(no vocab\.txt\)"):
        load_oscar_tokenizer(vocabulary)
