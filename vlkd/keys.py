"""Keys of pictures: one spelling for each, and how a sentence shows them."""

from __future__ import annotations

import unicodedata

_SHOWN = 60  # characters of a key in a sentence


def normal_key(key: str) -> str:
    """The key in Unicode's composed form (NFC).

    An é may be one character or an e with an accent behind it: macOS spells file names the second way, most tools the first.
    """
    return unicodedata.normalize("NFC", key)


def is_word(value: object) -> bool:
    """Whether something is text that can be written: more than blanks, and no half of a character."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(key: str) -> str:
    """The key as a sentence has it: a long one, such as features in the place of a key, is cut."""
    return key if len(key) <= _SHOWN else f"{key[: _SHOWN - 20]}… ({len(key):,} characters)"
