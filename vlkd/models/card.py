"""What a saved model is: its card, kept in ``config.json``, and what it may be used with.

Widths tell few mistakes: a teacher and a student, two detectors or two tokenizers may have the same ones, and the numbers that
come out are then wrong without a word. Where a card or the data do not know something, nothing contradicts it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vlkd.data.store import Role, View
from vlkd.errors import VlkdError
from vlkd.recipes import Evaluation, Recipe, Text
from vlkd.regions.identity import DetectorIdentity
from vlkd.runs import write_atomically

Task = Literal["pretraining", "captioning", "vqa"]

_CONFIG = "config.json"
_DOES: dict[Task, str] = {
    "pretraining": "is pre-trained and not fine-tuned",
    "captioning": "captions pictures",
    "vqa": "answers questions",
}
_READS: dict[View, str] = {"own": "the teacher's own regions", "paired": "the student's boxes"}


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Layout(_Facts):
    """How many tokens of what a sequence has, and from which an answer is read; as in a recipe's ``text``."""

    caption: int
    question: int
    tags: int
    answer_from: Literal["cls", "mask"]

    @classmethod
    def of(cls, text: Text) -> Layout:
        return cls(caption=text.caption, question=text.question, tags=text.tags, answer_from=text.answer_from)

    @property
    def tags_start(self) -> int:
        """The position of the first tag."""
        return max(self.caption, self.question)

    def of_task(self, task: Task) -> dict[str, Any]:
        """What a model of ``task`` has learned to read, by the recipe's names."""
        found: dict[str, Any] = {"text.tags": self.tags, "the first tag's position": self.tags_start}
        if task == "vqa":
            return {"text.question": self.question, "text.answer_from": self.answer_from} | found
        return {"text.caption": self.caption} | found


class ModelCard(_Facts):
    """What a model is. None stands for what is not known, as in a model that comes from elsewhere.

    Attributes:
        format: of the card.
        task: what it was trained for last.
        role: whose encoder it is, and whose detector's features it reads.
        view: ``own`` reads the teacher's own boxes and tags, ``paired`` the student's.
        stage: what trained it, in words.
        region_dim: width of a region's feature, geometry included.
        regions: most regions of a training picture.
        vocabulary: size of its tokenizer's.
        tokenizer: that one's fingerprint.
        layout: of its sequences.
        answers: fingerprint of the answers that a VQA model chooses among.
        boxes: the detector that found its boxes and tags.
        features: the detector that its features come from.
        beam: width of the search for captions.
        max_tokens: the longest caption.
    """

    format: Literal[1] = 1
    task: Task
    role: Role
    view: View
    stage: str
    region_dim: int
    vocabulary: int | None = None
    tokenizer: str | None = None
    regions: int | None = None
    layout: Layout | None = None
    answers: str | None = None
    boxes: DetectorIdentity | None = None
    features: DetectorIdentity | None = None
    beam: int | None = None
    max_tokens: int | None = None

    def __str__(self) -> str:
        """One line a fact; nothing is said of what is not known."""
        layout = self.layout and [f"{name} {value}" for name, value in self.layout]
        facts = {
            "task": self.task,
            "role": self.role,
            "reads": f"{_READS[self.view]}, at most {self.regions or '?'}, {self.region_dim} numbers each",
            "trained by": self.stage,
            "tokens": layout and ", ".join(layout),
            "vocabulary": self.tokenizer and f"{self.vocabulary} tokens, {self.tokenizer}",
            "answers": self.answers,
            "captions": self.beam and f"beam {self.beam}, at most {self.max_tokens} tokens",
            "boxes by": self.boxes,
            "features by": self.features,
        }
        return "\n".join(f"{name:<12} {value or 'not known'}" for name, value in facts.items() if self._tells(name))

    def _tells(self, name: str) -> bool:
        return {"answers": self.task == "vqa", "captions": self.task == "captioning"}.get(name, True)

    def entry(self) -> dict[str, Any]:
        """What ``config.json`` holds of it, as ``card``."""
        return self.model_dump(exclude_none=True)

    def recipe(self, folder: Path, **evaluation: int | None) -> Recipe:
        """The settings that the model in ``folder`` is used with; ``evaluation`` replaces its own where it is not None.

        Raises:
            VlkdError: it does not know its token budgets, or they do not hold captions of so many tokens.
        """
        if self.layout is None:
            raise VlkdError(
                f"The model in '{folder}' does not know its token budgets: say once which recipe has them, with "
                f"`vlkd card {folder} --recipe RECIPE`."
            )
        own = {name: value for name, value in (("beam", self.beam), ("max_tokens", self.max_tokens)) if value}
        own.setdefault("max_tokens", min(Evaluation().max_tokens, self.layout.caption - 2))
        own |= {name: value for name, value in evaluation.items() if value is not None}
        most = self.layout.caption - 2
        if own["max_tokens"] > most:
            raise VlkdError(
                f"Captions of {own['max_tokens']} tokens were asked for, but the model in '{folder}' was trained on at most {most}: "
                f"ask for {most} or less."
            )
        return Recipe(name="of a model", text=Text(**self.layout.model_dump()), evaluation=Evaluation(**own))


@dataclass(frozen=True)
class DataIdentity:
    """What of its data a model depends on; None, or a detector that is left out, is not known.

    Attributes:
        tokenizer: its fingerprint.
        vocabulary: its size.
        answers: fingerprint of those that questions have.
        regions: most regions of a picture.
        detectors: what made the regions.
    """

    tokenizer: str | None = None
    vocabulary: int | None = None
    answers: str | None = None
    regions: int | None = None
    detectors: Mapping[Role, DetectorIdentity] = field(default_factory=dict)

    def boxes(self, view: View) -> DetectorIdentity | None:
        """The detector of a view's boxes and tags."""
        return self.detectors.get("teacher" if view == "own" else "student")


def read_card(folder: Path | str) -> ModelCard:
    """The card of the model in ``folder``.

    Raises:
        VlkdError: there is no model, or it has no card that can be read.
    """
    card = find_card(folder)
    if card is None:
        raise VlkdError(
            f"The model in '{folder}' does not say what it is, as it was not saved by this version's stages: say it once, with "
            f"`vlkd card {folder} --task … --role … --view … --recipe … --data …`, or train it again."
        )
    return card


def find_card(folder: Path | str) -> ModelCard | None:
    """As :func:`read_card`, but None for a model without a card."""
    entries = _config(Path(folder))
    if entries.get("card") is None:
        return None
    try:
        return ModelCard.model_validate(entries["card"])
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise VlkdError(
            f"'{Path(folder) / _CONFIG}' has a card that cannot be read ('{where}': {problem['msg']}): it was changed by hand, or "
            "a newer version wrote it."
        ) from None


def write_card(folder: Path | str, card: ModelCard) -> None:
    """Give the model in ``folder`` that card.

    Raises:
        VlkdError: there is no model.
    """
    entries = _config(Path(folder)) | {"card": card.entry()}
    write_atomically(Path(folder) / _CONFIG, json.dumps(entries, indent=2, sort_keys=True) + "\n")


def _config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    if not path.is_file():
        raise VlkdError(
            f"There is no model in '{folder}' (no {_CONFIG}): give the folder that a stage's run calls 'model'."
        )
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VlkdError(f"'{path}' is no JSON ({error}): take the model's folder as it was written.") from None
    if not isinstance(entries, dict):
        raise VlkdError(f"'{path}' holds no named entries: take the model's folder as it was written.")
    return entries


def check_is(
    card: ModelCard, folder: Path, *, task: Task | None = None, role: Role | None = None, view: View | None = None
) -> None:
    """Refuse a model of another kind than is asked for.

    Raises:
        VlkdError: its task, role or view is another one.
    """
    if role is not None and card.role != role:
        raise VlkdError(f"The model in '{folder}' is a {card.role}, but a {role} is expected here: give one.")
    if task is not None and card.task != task:
        raise VlkdError(
            f"The model in '{folder}' {_DOES[card.task]}, but one that {_DOES[task]} is expected here: give the model of a stage "
            f"for {task}."
        )
    if view is not None and card.view != view:
        todo = "give one that was not adapted"
        if view == "paired":
            adapt = f"adapt it first, with `vlkd adapt … --start {folder}`"
            todo = adapt if card.task == "pretraining" else "give one that was fine-tuned from an adapted teacher"
        raise VlkdError(
            f"The model in '{folder}' was trained on {_READS[card.view]}, but here it would read {_READS[view]}: {todo}."
        )


def check_reads(
    card: ModelCard, folder: Path, data: DataIdentity, layout: Layout | None = None, *, boxes: bool = True
) -> None:
    """Refuse data that a model, used as it is, was not trained for.

    Args:
        card: of the model in ``folder``.
        folder: for messages.
        data: what it is to read.
        layout: of the sequences that are made of them; None makes them as the model has it.
        boxes: whether its boxes must come from where they came from in training.

    Raises:
        VlkdError: another tokenizer, other answers, other token budgets, or regions of another detector.
    """
    check_words(card, folder, data)
    check_answers(card, folder, data)
    if layout is not None and card.layout is not None:
        known, asked = card.layout.of_task(card.task), layout.of_task(card.task)
        for name, value in known.items():
            if asked[name] != value:
                raise VlkdError(
                    f"The model in '{folder}' was trained with {name} = {value}, but the recipe's is {asked[name]}: give the recipe "
                    "that it was trained with."
                )
    _check_detector(folder, "features", card.features, data.detectors.get(card.role))
    if boxes:
        _check_detector(folder, "boxes and tags", card.boxes, data.boxes(card.view))


def check_words(card: ModelCard, folder: Path, data: DataIdentity) -> None:
    """Refuse a tokenizer that is not a model's own.

    Raises:
        VlkdError: it is not.
    """
    if _contradict(card.tokenizer, data.tokenizer) or _contradict(card.vocabulary, data.vocabulary):
        raise VlkdError(
            f"The model in '{folder}' was trained with a tokenizer of {card.vocabulary} tokens ({card.tokenizer}), but the data's "
            f"is another one, of {data.vocabulary} ({data.tokenizer}): give it data with the tokenizer that it was trained with."
        )


def check_answers(card: ModelCard, folder: Path, data: DataIdentity) -> None:
    """Refuse answers among which a model that answers questions was not trained to choose.

    Raises:
        VlkdError: they are others.
    """
    if card.task == "vqa" and _contradict(card.answers, data.answers):
        raise VlkdError(
            f"The model in '{folder}' chooses among other answers ({card.answers}) than the data have ({data.answers}): give it "
            "the answers.json that it was trained with."
        )


def check_start(card: ModelCard, folder: Path, task: Task, role: Role, data: DataIdentity, layout: Layout) -> None:
    """Refuse a model that a stage cannot go on from. Its boxes, limits and lengths may change: it is trained on.

    Raises:
        VlkdError: another role or task, another tokenizer, tags in other positions, or features of another detector.
    """
    check_is(card, folder, role=role)
    if card.task != "pretraining":
        check_is(card, folder, task=task)
    check_words(card, folder, data)
    if card.layout is not None and card.layout.tags_start != layout.tags_start:
        raise VlkdError(
            f"The model in '{folder}' has learned that tags begin at position {card.layout.tags_start}, but text.caption = "
            f"{layout.caption} and text.question = {layout.question} make it {layout.tags_start}: the longer of the two must be {card.layout.tags_start}."
        )
    theirs = data.detectors.get(role)
    if card.features is not None and theirs is not None and card.features.fingerprint != theirs.fingerprint:
        _check_detector(folder, "features", card.features, theirs)


def _check_detector(folder: Path, what: str, ours: DetectorIdentity | None, theirs: DetectorIdentity | None) -> None:
    told = ours.difference(theirs) if ours is not None and theirs is not None else None
    if told is not None:
        raise VlkdError(
            f"The model in '{folder}' was trained on {what} of the detector {told[0]}, but these are of {told[1]}: make the regions "
            "with the detector that it was trained on."
        )


def _contradict(ours: object, theirs: object) -> bool:
    return ours is not None and theirs is not None and ours != theirs
