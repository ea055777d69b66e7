"""The preparation of a rendered world as works, so that all processes take part in it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from vlkd.data.store import Role
from vlkd.pipeline.prepare import (
    RegionPart,
    extract_part,
    finish_regions,
    measure_detector,
    region_parts,
    regions_run,
)
from vlkd.pipeline.workers import Work
from vlkd.pipeline.workshop import Workshop
from vlkd.recipes import Recipe

#: The work after which :attr:`Workshop.data` is there.
PREPARED = "regions"
_ROLES: tuple[Role, ...] = ("student", "teacher")


def preparation(recipe: Recipe, folder: Path) -> list[Work]:
    """What is still to be done of :func:`~vlkd.pipeline.prepare.prepare`, ending with the work :data:`PREPARED`.

    Raises:
        VlkdError: ``folder`` holds regions of other settings.
    """
    if regions_run(recipe, folder).finished:
        return [Work(PREPARED, _nothing)]
    parts = region_parts(recipe)
    works = [Work(f"regions, part {part.number + 1} of {len(parts)}", partial(_extract, part=part)) for part in parts]
    return [*works, Work(PREPARED, _finish, tuple(work.name for work in works))]


def measuring() -> list[Work]:
    """Works that only the report waits for."""
    return [Work(f"AP50 of the {role}'s detector", partial(_measure, role=role)) for role in _ROLES]


def _extract(workshop: Workshop, part: RegionPart) -> None:
    extract_part(workshop.recipe, workshop.folder, part)


def _measure(workshop: Workshop, role: Role) -> None:
    measure_detector(workshop.recipe, workshop.folder, role)


def _finish(workshop: Workshop) -> None:
    finish_regions(workshop.recipe, workshop.folder)


def _nothing(workshop: Workshop) -> None:
    """The regions are there."""
