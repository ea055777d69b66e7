"""What a process needs to train and to examine, opened once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vlkd.evaluation import JavaMetrics
from vlkd.pipeline.prepare import prepare
from vlkd.recipes import Recipe
from vlkd.training import StageData


@dataclass
class Workshop:
    """The prepared data of a run and, once it is asked for, Java. Use it in a ``with`` statement."""

    recipe: Recipe
    folder: Path

    @cached_property
    def data(self) -> StageData:
        return prepare(self.recipe, self.folder).data

    @cached_property
    def java(self) -> JavaMetrics:
        return JavaMetrics().__enter__()

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *_: object) -> None:
        if "java" in self.__dict__:
            self.java.__exit__()
