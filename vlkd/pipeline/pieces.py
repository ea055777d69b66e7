"""What is done of a part before the whole part is, so that a kill costs seconds.

Features stay float32 here, as the detectors gave them, so a part's bytes do not depend on its pieces. A piece is there once
its JSON file is, which names its pictures and says why some of them have no regions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vlkd.data.store import read_records, write_part
from vlkd.pipeline.two_detectors import Broken
from vlkd.regions.paired import RegionRecord
from vlkd.runs import write_atomically


class Pieces:
    """The pieces of part ``number`` in the folder ``notes``."""

    def __init__(self, notes: Path, number: int) -> None:
        self._notes, self._prefix = notes, f"piece-{number:05d}-"

    def keys(self) -> set[str]:
        """The pictures that are done."""
        return {key for path in self._files() for key in json.loads(path.read_text(encoding="utf-8"))["keys"]}

    def read(self) -> list[RegionRecord | Broken]:
        """What was found in them."""
        found: list[RegionRecord | Broken] = []
        for path in self._files():
            found += [Broken(**broken) for broken in json.loads(path.read_text(encoding="utf-8"))["broken"]]
            records = path.with_suffix(".arrow")
            if records.exists():
                found += read_records(records)
        return found

    def write(self, results: Sequence[RegionRecord | Broken]) -> None:
        """Add a piece."""
        path = self._notes / f"{self._prefix}{len(self._files()):04d}.json"
        records = [result for result in results if isinstance(result, RegionRecord)]
        path.with_suffix(".arrow").unlink(missing_ok=True)  # a kill may have left it
        if records:
            write_part(path.with_suffix(".arrow"), records, "float32")
        broken = [vars(result) for result in results if isinstance(result, Broken)]
        content = {"keys": [result.key for result in results], "broken": broken}
        write_atomically(path, json.dumps(content) + "\n")

    def remove(self) -> None:
        """After the part is written."""
        for path in [*self._files(), *self._notes.glob(f"{self._prefix}*.arrow")]:
            path.unlink()

    def _files(self) -> list[Path]:
        return sorted(self._notes.glob(f"{self._prefix}*.json"))
