"""Captions and questions in the files of Oscar, COCO and VQA, by picture.

================== =================================================================================================
``*_caption.json`` list of ``{"image_id", "id", "caption"}``; COCO's ``{"annotations": the same}`` as well
``*.csv``          a picture and a caption a row (:mod:`vlkd.data.tables`)
corpus TSV         image id ⇥ label id ⇥ text: Oscar+'s pre-training corpus
``*_qla*.json``    list of ``{"q", "o", "an", "s", "img_id", "q_id"}``: question, tags, label ids, soft scores
answers            ``trainval_ans2label.pkl`` or the same dict, answer -> label id, as JSON
================== =================================================================================================
"""

from __future__ import annotations

from pathlib import Path

from vlkd.data.json_rows import read_json, rows, rows_under
from vlkd.data.oscar.plain_pickle import read_plain_pickle
from vlkd.data.oscar.tsv import TsvFile
from vlkd.data.tables import picture_key, read_caption_table
from vlkd.errors import VlkdError
from vlkd.scenes import Question


def read_captions(path: Path) -> dict[str, list[str]]:
    """Key -> captions, in the file's order.

    Raises:
        VlkdError: there is no such file, or a row is not as above.
    """
    captions: dict[str, list[str]] = {}
    if path.suffix == ".csv":
        return read_caption_table(path)
    if path.suffix == ".tsv":
        file = TsvFile(path)
        for row in range(len(file)):
            columns = file.row(row)
            if len(columns) < 3:
                raise VlkdError(
                    f"'{path}', line {row + 1}: {len(columns)} columns, but image id, label id and text are expected."
                )
            captions.setdefault(columns[0].decode(), []).append(columns[2].decode())
        return captions
    content = read_json(path, "captions")
    listed = rows_under(content, "annotations", path) if isinstance(content, dict) else rows(content, f"'{path}'")
    for row in listed:
        captions.setdefault(str(row.value("image_id", int, str)), []).append(row.value("caption", str))
    return captions


def file_names(path: Path) -> dict[str, str]:
    """Image id -> the key of its file, of COCO's annotations; nothing of other files."""
    content = read_json(path, "captions") if path.suffix == ".json" else None
    images = content.get("images", ()) if isinstance(content, dict) else ()
    return {str(row["id"]): picture_key(row["file_name"]) for row in images if {"id", "file_name"} <= row.keys()}


def read_answers(path: Path) -> list[str]:
    """The answers in the order of their labels; a pickle of plain values is read without running anything.

    Raises:
        VlkdError: it is no dict of answer -> label with the labels 0, 1, 2, ….
    """
    content = read_plain_pickle(path) if path.suffix in (".pkl", ".pickle") else read_json(path, "answers")
    if not isinstance(content, dict) or sorted(map(str, content.values())) != sorted(map(str, range(len(content)))):
        raise VlkdError(
            f"'{path}' must map every answer to its label, 0 to their number - 1, as trainval_ans2label does."
        )
    return sorted(content, key=lambda answer: int(content[answer]))


def read_questions(path: Path, answers: list[str]) -> tuple[dict[str, list[Question]], dict[str, tuple[str, ...]]]:
    """Key -> questions with their soft scores; and key -> the tags that stand beside them, where they do.

    Raises:
        VlkdError: there is no such file, or a question has a label that ``answers`` has not.
    """
    questions: dict[str, list[Question]] = {}
    tags: dict[str, tuple[str, ...]] = {}
    for row in rows(read_json(path, "questions"), f"'{path}'"):
        labels, scores = row.value("an", list, type(None)) or [], row.value("s", list, type(None)) or []
        wrong = [label for label in labels if not (isinstance(label, int) and 0 <= label < len(answers))]
        if len(labels) != len(scores) or wrong:
            raise VlkdError(
                f"Labels {labels} with scores {scores} in {row.place}, but as many scores as labels, and labels "
                f"from 0 to {len(answers) - 1}, are expected: do the answers belong to these questions?"
            )
        soft = tuple((answers[label], float(score)) for label, score in zip(labels, scores, strict=True))
        best = max(soft, key=lambda one: one[1], default=("", 0.0))[0]
        key, content = str(row.value("img_id", int, str)), row.values
        asked = Question(str(content.get("type", "question")), row.value("q", str), best, soft, content.get("q_id"))
        questions.setdefault(key, []).append(asked)
        words = content.get("o")
        if isinstance(words, str) and words.strip():
            tags[key] = tuple(word.strip() for word in words.split(";" if ";" in words else None))
    return questions, tags
