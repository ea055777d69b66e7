"""Keys of pictures."""

from __future__ import annotations

from vlkd.keys import is_word, normal_key, shown


def test_a_key_has_one_spelling() -> None:
    assert normal_key("cafe\u0301") == normal_key("caf\u00e9") == "caf\u00e9"
    assert normal_key("COCO_train2014_000000391895") == "COCO_train2014_000000391895"


def test_a_long_key_is_cut() -> None:
    assert shown("a/b") == "a/b" and shown("x" * 60) == "x" * 60
    assert shown("x" * 106_234) == "x" * 40 + "… (106,234 characters)"


def test_words() -> None:
    assert is_word("star") and is_word("étoile 星")
    assert not any(is_word(value) for value in ("", " ", None, 7, True, b"star", "\ud800"))
