"""What a study found, as plain data: rows, their outcomes by seed, and what is needed to repeat them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from vlkd.errors import VlkdError
from vlkd.runs import write_atomically

METRICS = {"cider": "CIDEr", "vqa": "VQA accuracy"}  # the two that are compared, and what they are called in print
_PER_PICTURE = ("cider_per_picture", "accuracy_per_picture", "questions_per_picture")


@dataclass(frozen=True)
class RowInfo:
    """One line of the study's table: a model trained in one way, with several seeds.

    ``queue`` and ``share`` put the row on the plot of that quantity. On the plot of ``share`` a row without
    ``baseline`` is a student that was not distilled, and a row with one was.
    """

    name: str
    group: str  # the heading it stands under
    note: str = ""  # one sentence on what is special about it
    baseline: str | None = None  # the row it is compared to; None for the baselines themselves
    queue: int | None = None  # teacher states in the queue of L_HID
    share: float | None = None  # of the pictures in pre-training, in 0..1
    main: bool = False  # its seeds are drawn one by one


@dataclass(frozen=True)
class Claim:
    """A claim that one row is better than another."""

    text: str
    first: str  # the row that is claimed to be better
    second: str
    paper: str = ""  # what the paper measured, in its own words


@dataclass(frozen=True)
class Outcome:
    """One row trained and examined with one seed. Scores keep their own scale: CIDEr 1.0 is printed as 100.0.

    The corpus' CIDEr is the mean of ``cider_per_picture``; accuracy is the mean of ``accuracy_per_picture`` weighted
    by ``questions_per_picture``.
    """

    row: str
    seed: int
    parameters: int
    cider: float  # NaN where it was not measured
    vqa: float  # accuracy in 0..1; NaN where it was not measured
    seconds: float  # of its last stages and its examination; earlier stages may be shared with other rows
    scores: Mapping[str, float] = field(default_factory=dict)  # further metrics, e.g. "BLEU-4"
    cider_per_picture: Mapping[str, float] = field(default_factory=dict)  # by picture key
    accuracy_per_picture: Mapping[str, float] = field(default_factory=dict)
    questions_per_picture: Mapping[str, int] = field(default_factory=dict)

    def score(self, metric: str) -> float:
        """``"cider"``, ``"vqa"`` or the name of a further metric; NaN where it was not measured."""
        return getattr(self, metric) if metric in METRICS else self.scores.get(metric, math.nan)


@dataclass(frozen=True)
class Study:
    """All rows and outcomes of a study, with what is needed to repeat it.

    Raises:
        ValueError: two rows of one name, two outcomes of one row and seed, or an outcome of no row.
    """

    title: str
    split: Literal["test", "validation"]
    rows: tuple[RowInfo, ...]  # in the order of the table
    outcomes: tuple[Outcome, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)  # the resolved recipe
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: str = ""
    commit: str = ""
    command: str = "vlkd study ablations"
    seconds: float = 0.0  # of all stages and examinations, added up
    headline: str = ""  # the row whose difference to its baseline is the study's answer
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        _check_unique(names, "row")
        _check_unique([(outcome.row, outcome.seed) for outcome in self.outcomes], "outcome of row and seed")
        strange = {outcome.row for outcome in self.outcomes} - set(names)
        if strange:
            raise ValueError(f"expected outcomes of the rows {names}, got one of {sorted(strange)[0]!r}")

    def row(self, name: str | None) -> RowInfo | None:
        """The row of that name; None where the study lacks it."""
        return next((row for row in self.rows if row.name == name), None)

    def of(self, name: str) -> dict[int, Outcome]:
        """The outcomes of a row by seed, seeds ascending."""
        found = {outcome.seed: outcome for outcome in self.outcomes if outcome.row == name}
        return dict(sorted(found.items()))

    def groups(self) -> dict[str, list[RowInfo]]:
        """Heading -> its rows, both in the order of the table."""
        grouped: dict[str, list[RowInfo]] = {}
        for row in self.rows:
            grouped.setdefault(row.group, []).append(row)
        return grouped

    def metrics(self) -> list[str]:
        """``METRICS`` that any outcome has, then the further metrics by name."""
        main = [metric for metric in METRICS if any(math.isfinite(each.score(metric)) for each in self.outcomes)]
        return main + sorted({name for outcome in self.outcomes for name in outcome.scores})

    @property
    def pictures(self) -> list[str]:
        """Keys of all pictures that any outcome was scored on, sorted."""
        return sorted({key for each in self.outcomes for name in _PER_PICTURE for key in getattr(each, name)})

    def save(self, path: Path) -> None:
        """Write the study as JSON, one outcome a line, whole or not at all.

        The keys of the pictures are written once; every per-picture score is a list in their order, null where there
        is none. NaN is written as null.
        """
        pictures = self.pictures
        head = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.name not in ("rows", "outcomes", "claims")
        }
        blocks = [f'"{name}": {_dumps(value)}' for name, value in head.items()]
        blocks.append(f'"pictures": {_dumps(pictures)}')
        blocks.append(_block("rows", [asdict(row) for row in self.rows]))
        blocks.append(_block("claims", [asdict(claim) for claim in self.claims]))
        blocks.append(_block("outcomes", [_outcome_as_json(outcome, pictures) for outcome in self.outcomes]))
        write_atomically(Path(path), "{\n" + ",\n".join(blocks) + "\n}\n")

    @classmethod
    def load(cls, path: Path) -> Study:
        """Read what :meth:`save` wrote.

        Raises:
            VlkdError: there is no such file, or it holds no study.
        """
        path = Path(path)
        if not path.is_file():
            raise VlkdError(f"There is no study '{path}': run `vlkd study ablations` first.")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            pictures = found.pop("pictures")
            rows = tuple(RowInfo(**row) for row in found.pop("rows"))
            claims = tuple(Claim(**claim) for claim in found.pop("claims"))
            outcomes = tuple(_outcome_from_json(values, pictures) for values in found.pop("outcomes"))
            return cls(rows=rows, outcomes=outcomes, claims=claims, **found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VlkdError(
                f"Expected '{path}' to hold a study, as `vlkd study` writes it, and could not read it "
                f"({type(error).__name__}: {error}): give another file, or run the study again."
            ) from error


def _check_unique(values: Sequence[Any], what: str) -> None:
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise ValueError(f"expected each {what} once, got {twice[0]!r} twice")


def _block(name: str, lines: Sequence[Mapping[str, Any]]) -> str:
    return f'"{name}": [\n' + ",\n".join(_dumps(line) for line in lines) + "\n]"


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _outcome_as_json(outcome: Outcome, pictures: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {each.name: getattr(outcome, each.name) for each in fields(outcome)}
    for name in METRICS:
        values[name] = _or_null(values[name])
    values["scores"] = {name: _or_null(score) for name, score in outcome.scores.items()}
    for name in _PER_PICTURE:
        values[name] = [values[name].get(key) for key in pictures] if values[name] else []
    return values


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _outcome_from_json(values: dict[str, Any], pictures: Sequence[str]) -> Outcome:
    for name in METRICS:
        values[name] = _or_nan(values[name])
    values["scores"] = {name: _or_nan(score) for name, score in values["scores"].items()}
    for name in _PER_PICTURE:
        listed = values[name]
        keys = pictures if listed else ()
        values[name] = {key: value for key, value in zip(keys, listed, strict=True) if value is not None}
    return Outcome(**values)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
