"""A lower-case WordPiece tokenizer, trained on the corpus."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vlkd.disk import blamed_on
from vlkd.errors import VlkdError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_CONTINUES = "##"
TOKENIZER_FILE = "tokenizer.json"


def train_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """BERT's tokenizer with a vocabulary of at most ``size`` WordPieces ([PAD] is 0); same texts, same tokenizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = list(texts)
    unknown = SPECIAL_TOKENS["unk_token"]
    tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers single "##x" pieces in the order of a hash map, and breaks ties by these numbers, so that each
    # run gives another vocabulary (huggingface/tokenizers #1794). As "special tokens" they come sorted; the model
    # that is kept is a plain one of the vocabulary found.
    pieces = _continuations(tokenizer, texts)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=[*SPECIAL_TOKENS.values(), *pieces], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    plain = Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token=unknown))
    plain.normalizer = tokenizer.normalizer
    plain.pre_tokenizer = tokenizer.pre_tokenizer
    plain.decoder = decoders.WordPiece(prefix=_CONTINUES, cleanup=True)
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, plain.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=plain, **SPECIAL_TOKENS)


def unread(tokenizer: PreTrainedTokenizerFast, question: str, most: int) -> list[str]:
    """A sentence about the words of a question that the tokenizer does not know, and one if only ``most`` tokens of it are read."""
    found = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, places = found["input_ids"], found["offset_mapping"]
    unknown = [
        question[slice(*place)] for number, place in zip(ids, places, strict=True) if number == tokenizer.unk_token_id
    ]
    notes = []
    if unknown:
        words = [f"'{word}'" for word in dict.fromkeys(unknown)]
        kind = "an unknown word" if len(words) == 1 else "unknown words"
        notes.append(f"The model was not trained on {', '.join(words)}, which it reads as {kind}.")
    if len(ids) > most:
        notes.append(
            f"The model reads at most {most} tokens of a question, so it was asked no more than '{question[: places[most - 1][1]]}'."
        )
    return notes


def _continuations(tokenizer: Tokenizer, texts: Iterable[str]) -> list[str]:
    """``##x`` for every character that stands inside a word, sorted."""
    inside: set[str] = set()
    for text in texts:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            inside.update(word[1:])
    return [_CONTINUES + character for character in sorted(inside)]


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path | str) -> None:
    """``save_pretrained``, then renamed into place; where another process was faster, its tokenizer stays."""
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        with blamed_on(folder):
            partial.mkdir()
            tokenizer.save_pretrained(partial)
        os.replace(partial, folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not (folder / TOKENIZER_FILE).is_file():
            raise


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerFast:
    """The tokenizer that :func:`save_tokenizer` left in ``folder``.

    Raises:
        VlkdError: there is none, it is damaged, or it lacks one of BERT's special tokens.
    """
    from transformers import PreTrainedTokenizerFast

    place = Path(folder) / TOKENIZER_FILE
    if not place.is_file():
        raise VlkdError(f"'{folder}' holds no tokenizer (no {TOKENIZER_FILE}): finish the stage that writes it first.")
    try:
        complete = isinstance(json.loads(place.read_bytes()), dict)
    except ValueError:
        complete = False
    if not complete:
        raise VlkdError(
            f"'{place}' is damaged: it is no JSON of a tokenizer. Put the whole file there, or delete the folder."
        )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    lacking = [token for name, token in SPECIAL_TOKENS.items() if getattr(tokenizer, name) is None]
    if lacking:
        raise VlkdError(
            f"The tokenizer in '{folder}' does not say what its {', '.join(lacking)} is: one of BERT's kind is expected."
        )
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Names how text becomes ids: 16 hexadecimal digits, the same for a tokenizer that was saved and loaded again.

    It covers the vocabulary, the numbers of the special tokens, and how text is normalised and split. Padding, truncation and
    the way back from ids to text change no id and do not count.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {name: tokenizer.convert_tokens_to_ids(getattr(tokenizer, name)) for name in SPECIAL_TOKENS}
    added = sorted((token["content"], token["id"]) for token in parts["added_tokens"])
    content = [parts["normalizer"], parts["pre_tokenizer"], parts["model"], added, special]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
