"""Captions and questions in the files of Oscar, COCO and VQA, by picture.

================== =================================================================================================
``*_caption.json`` list of ``{"image_id", "id", "caption"}``; COCO's ``{"annotations": the same}`` as well
``*.csv``          a picture and a caption a row (:mod:`vlkd.data.tables`); also as ``.txt``, or ``.tsv`` with a header
corpus TSV         image id ⇥ label id ⇥ text: Oscar+'s pre-training corpus
``*_qla*.json``    list of ``{"q", "o", "an", "s", "img_id", "q_id"}``: question, tags, label ids, soft scores
answers            ``trainval_ans2label.pkl`` or the same dict, answer -> label id, as JSON
================== =================================================================================================
"""

from __future__ import annotations

from pathlib import Path

from vlkd.data.corpus import checked_score
from vlkd.data.json_rows import Row, read_json, rows, rows_under
from vlkd.data.oscar.plain_pickle import read_plain_pickle
from vlkd.data.oscar.tsv import TsvFile
from vlkd.data.tables import TABLES, is_caption_table, picture_key, read_caption_table
from vlkd.data.text_files import checked_key, checked_text, short
from vlkd.errors import VlkdError
from vlkd.scenes import Question

NO_LABEL = (("", 0.0),)
"""The scores of a question that people answered with nothing among the labels: whatever a model says is wrong."""


def read_captions(path: Path) -> dict[str, list[str]]:
    """Key -> captions, in the file's order.

    Raises:
        VlkdError: there is no such file, a row is not as above, or no row is there.
    """
    suffix = path.suffix.lower()
    if suffix in TABLES or (suffix == ".tsv" and path.is_file() and is_caption_table(path)):
        captions = read_caption_table(path)
    elif suffix == ".tsv":
        captions = _corpus_captions(path)
    else:
        captions = _json_captions(path)
    if not captions:
        raise VlkdError(f"'{path}' holds no caption, but at least one is expected.")
    return captions


def _corpus_captions(path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    file = TsvFile(path)
    for number in range(len(file)):
        columns, place = file.row(number), f"'{path}', line {number + 1}"
        if columns == [b""]:
            continue
        if len(columns) != 3:
            raise VlkdError(f"{place}: {len(columns)} columns, but image id, label id and text are expected.")
        try:
            key, _, text = (column.decode("utf-8-sig" if number == 0 else "utf-8") for column in columns)
        except UnicodeDecodeError as error:
            raise VlkdError(f"{place} is no UTF-8 ({error.reason}): save the file as UTF-8.") from None
        captions.setdefault(checked_key(key, place), []).append(checked_text(text, "text", place))
    return captions


def _json_captions(path: Path) -> dict[str, list[str]]:
    content = read_json(path, "captions")
    listed = rows_under(content, "annotations", path) if isinstance(content, dict) else rows(content, f"'{path}'")
    captions: dict[str, list[str]] = {}
    for row in listed:
        captions.setdefault(row.picture("image_id"), []).append(row.text("caption"))
    return captions


def file_names(path: Path) -> dict[str, str]:
    """Image id -> the key of its file, of COCO's annotations; nothing of other files.

    Raises:
        VlkdError: its list of images is broken, or an image comes twice.
    """
    content = read_json(path, "captions") if path.suffix.lower() == ".json" else None
    if not isinstance(content, dict) or "images" not in content:
        return {}
    names: dict[str, str] = {}
    for row in rows_under(content, "images", path):
        if {"id", "file_name"} <= row.values.keys():
            row.add_to(names, row.picture("id"), picture_key(row.picture("file_name")), "image id")
    return names


def read_answers(path: Path) -> list[str]:
    """The answers in the order of their labels; a pickle of plain values is read without running anything.

    Raises:
        VlkdError: it is no dict of answer -> label with the labels 0, 1, 2, ….
    """
    pickled = path.suffix.lower() in (".pkl", ".pickle")
    content = read_plain_pickle(path) if pickled else read_json(path, "answers")
    if not isinstance(content, dict) or sorted(map(str, content.values())) != sorted(map(str, range(len(content)))):
        raise VlkdError(
            f"'{path}' must map every answer to its label, 0 to their number - 1, as trainval_ans2label does."
        )
    if not content:
        raise VlkdError(f"'{path}' holds no answer, but at least one is expected.")
    odd = next((answer for answer in content if not isinstance(answer, str) or not answer.strip()), None)
    if odd is not None:
        raise VlkdError(f"'{path}' has {short(odd)} for an answer, but text is expected.")
    return sorted(content, key=lambda answer: int(content[answer]))


def read_questions(path: Path, answers: list[str]) -> tuple[dict[str, list[Question]], dict[str, tuple[str, ...]]]:
    """Key -> questions with their soft scores; and key -> the tags that stand beside them, where they do.

    Without labels (``null``, or no ``an``) a question has no answer, and so have all if none of the file has a label, as in a
    test split. An empty list among others says that people's answers are none of the labels: all answers are wrong then.

    Raises:
        VlkdError: there is no such file, a row is not as above, a question has a label that ``answers`` has not or a score that
            is none, or a ``q_id`` comes twice.
    """
    read = list(rows(read_json(path, "questions"), f"'{path}'"))
    if not read:
        raise VlkdError(f"'{path}' holds no question, but at least one is expected.")
    annotated = any(row.values.get("an") for row in read)
    questions: dict[str, list[Question]] = {}
    tags: dict[str, tuple[str, ...]] = {}
    seen: dict[int, None] = {}
    for row in read:
        soft = _soft_scores(row, answers)
        best = max(soft, key=lambda one: one[1], default=("", 0.0))[0]
        if not soft and annotated and row.values.get("an") is not None:
            soft = NO_LABEL
        number = _question_id(row)
        if number is not None:
            row.add_to(seen, number, None, "q_id")
        key = row.picture("img_id")
        kind = row.text("type") if "type" in row.values else "question"
        questions.setdefault(key, []).append(Question(kind, row.text("q"), best, soft, number))
        words = row.value("o", str, type(None)) if "o" in row.values else None
        if words and words.strip():
            tags[key] = tuple(word.strip() for word in words.split(";" if ";" in words else None))
    return questions, tags


def _soft_scores(row: Row, answers: list[str]) -> tuple[tuple[str, float], ...]:
    given = [row.value(name, list, type(None)) or [] if name in row.values else [] for name in ("an", "s")]
    labels, scores = given
    wrong = [label for label in labels if not (type(label) is int and 0 <= label < len(answers))]
    if len(labels) != len(scores) or wrong:
        raise VlkdError(
            f"Labels {short(labels)} with scores {short(scores)} in {row.place}, but as many scores as labels, and labels "
            f"from 0 to {len(answers) - 1}, are expected: do the answers belong to these questions?"
        )
    if len(set(labels)) < len(labels):
        raise VlkdError(f"Labels {short(labels)} in {row.place}, but each may come once.")
    return tuple((answers[label], checked_score(score, row.place)) for label, score in zip(labels, scores, strict=True))


def _question_id(row: Row) -> int | None:
    """``q_id`` as a number; None where there is none."""
    if row.values.get("q_id") is None:
        return None
    number = row.value("q_id", int, str)
    if isinstance(number, str) and not (number.isascii() and number.isdigit() and len(number) < 19):
        raise VlkdError(f"Expected 'q_id' to be a whole number in {row.place}, but got {short(number)}.")
    return int(number)
