"""What a process needs to train and to examine, opened once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vlkd.evaluation import JavaMetrics
from vlkd.pipeline.imported import open_imported
from vlkd.pipeline.prepare import prepare
from vlkd.pipeline.prepared import Prepared
from vlkd.recipes import Recipe
from vlkd.training import StageData


@dataclass
class Workshop:
    """The data of a run and, once it is asked for, Java. Use it in a ``with`` statement.

    Attributes:
        recipe: of the run.
        folder: of the run.
        imported: folder of imported data; without one, the recipe's world is rendered in ``folder``.
        images: folder of the imported data's pictures, for the page.
    """

    recipe: Recipe
    folder: Path
    imported: Path | None = None
    images: Path | None = None

    @cached_property
    def prepared(self) -> Prepared:
        if self.imported is None:
            return prepare(self.recipe, self.folder)
        return open_imported(self.recipe, self.imported, self.images)

    @property
    def data(self) -> StageData:
        return self.prepared.data

    @cached_property
    def java(self) -> JavaMetrics:
        return JavaMetrics().__enter__()

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *_: object) -> None:
        if "java" in self.__dict__:
            self.java.__exit__()
