"""Captions in COCO's files: results and references read, results written and scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from vlkd.data.json_rows import first_few, read_json, rows, rows_under
from vlkd.errors import VlkdError
from vlkd.evaluation.captioning import TOKENISATION, CaptionScores, caption_scores, score_tokenised
from vlkd.evaluation.java_metrics import JavaMetrics
from vlkd.keys import normal_key
from vlkd.runs import write_atomically

T = TypeVar("T")

PTB_TOKENISATION = "COCO's own: Java PTB tokenizer, lower case, punctuation dropped"

_LAST_LINE = "the last line"  # what the tokenizer leaves as it is


class _NoTokenizer(Exception):
    """Why the PTB tokenizer cannot be used."""


def read_captions(path: Path | str) -> dict[str, str]:
    """Image id -> caption, of a result file ``[{"image_id": int, "caption": str}]``.

    Ids become text, as picture keys are; Oscar's result files have them as text already.

    Raises:
        VlkdError: it is not such a file, or an image has two captions.
    """
    found: dict[str, str] = {}
    for row in rows(read_json(path, "caption results"), f"'{path}'"):
        row.add_to(found, str(row.value("image_id", int, str)), row.value("caption", str), "image_id")
    return found


def write_captions(path: Path | str, captions: Mapping[str, str]) -> None:
    """Write the result file that COCO's server and tools take; an id of digits alone becomes a number.

    Raises:
        VlkdError: a caption is no text.
    """
    content = []
    for key, caption in captions.items():
        if not isinstance(caption, str):
            raise VlkdError(f"Expected the caption of image {key!r} to be text, but got {caption!r}.")
        number = key.isdecimal() and str(int(key)) == key
        content.append({"image_id": int(key) if number else key, "caption": caption})
    write_atomically(Path(path), json.dumps(content) + "\n")


def read_references(path: Path | str) -> dict[str, list[str]]:
    """Image id -> reference captions, of COCO's annotations or of Oscar's ``*_caption.json``.

    COCO's is an object with ``images`` (each with an ``id``) and ``annotations`` (``image_id``, ``id``, ``caption``);
    Oscar's is the list of annotations alone. Images without a caption are left out.

    Raises:
        VlkdError: it is neither, an ``id`` comes twice, or a caption's image is not among ``images``.
    """
    content = read_json(path, "caption annotations")
    of_coco = isinstance(content, dict)
    images: dict[str, None] = {}
    for image in rows_under(content, "images", path) if of_coco else ():
        image.add_to(images, str(image.value("id", int, str)), None, "image id")
    found: dict[str, list[str]] = {key: [] for key in images}
    seen: dict[str, None] = {}
    for row in rows_under(content, "annotations", path) if of_coco else rows(content, f"'{path}'"):
        row.add_to(seen, str(row.value("id", int, str)), None, "caption id")
        key = str(row.value("image_id", int, str))
        if of_coco and key not in images:
            raise VlkdError(f"The image_id {key!r} in {row.place} is not among the 'images': add it there.")
        found.setdefault(key, []).append(row.value("caption", str))
    return {key: captions for key, captions in found.items() if captions}


def evaluate_captions_file(
    results: Path | str, annotations: Path | str, java: JavaMetrics | None = None, *, subset: bool = False
) -> CaptionScores:
    """Scores of a result file against COCO's annotations or Oscar's ``*_caption.json``.

    Tokenised by the Java PTB tokenizer, the scores are those of COCO's tools. Without it they are those of
    ``caption_scores``, which compare only with each other; ``tokenisation`` says which they are, and why.

    Args:
        results: of ``write_captions``.
        annotations: what ``read_references`` takes.
        java: opened, for METEOR and SPICE.
        subset: score the images that have a result, and leave out the others of ``annotations``.

    Raises:
        VlkdError: a file is missing or not of its format, a result has no reference caption, or, unless ``subset``, an
            image has no result.
    """
    captions = _spelled_once(read_captions(results), results)
    references = _spelled_once(read_references(annotations), annotations)
    if unknown := captions.keys() - references.keys():
        raise VlkdError(
            f"'{results}' describes image_id {first_few(unknown, len(captions))}, which have no reference caption in "
            f"'{annotations}': give the annotations of the same split."
        )
    if not subset and (missing := references.keys() - captions.keys()):
        raise VlkdError(
            f"'{results}' has no caption for image_id {first_few(missing, len(references))} in '{annotations}': "
            "caption them too, or score those that have one (--subset, in Python `subset=True`)."
        )
    if not captions:
        raise VlkdError(f"Expected '{results}' to hold at least one caption, but got none.")
    references = {key: texts for key, texts in references.items() if key in captions}
    try:
        truth = _ptb_tokenised(references)
        guess = _ptb_tokenised({key: [captions[key]] for key in references})
    except _NoTokenizer as reason:
        scored = caption_scores(references, captions, java)
        label = f"{TOKENISATION}; it was not used: {reason}"
        return replace(scored, tokenisation=label)
    return score_tokenised(truth, guess, java, PTB_TOKENISATION)


def _spelled_once(found: Mapping[str, T], path: Path | str) -> dict[str, T]:
    """The same under normal keys, by which two files' names meet however their accents are written."""
    spelled = {normal_key(key): value for key, value in found.items()}
    if len(spelled) < len(found):
        raise VlkdError(f"'{path}' has names of images that differ in their Unicode form alone: keep one of each.")
    return spelled


def _ptb_tokenised(captions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Every caption's tokens with spaces between them.

    The tokenizer reads one caption a line and nobody counts the lines it gives back, so each caption is made one line
    first, and one more is added whose tokens are known: if those come back last, no caption was lost or moved.

    Raises:
        _NoTokenizer: there is no Java, or it did not tokenise.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    if shutil.which("java") is None:
        raise _NoTokenizer("no `java` is on the PATH")
    lines = {key: [{"caption": " ".join(text.splitlines())} for text in texts] for key, texts in captions.items()}
    try:
        found = PTBTokenizer().tokenize(lines | {None: [{"caption": _LAST_LINE}]})
    except (OSError, ValueError) as error:
        raise _NoTokenizer(f"its Java program failed: {error}") from error
    if found.pop(None, None) != [_LAST_LINE]:
        raise _NoTokenizer("its Java program did not give back every caption")
    return found
