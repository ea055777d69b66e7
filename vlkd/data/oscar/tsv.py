"""Tab-separated files whose rows are found by their byte offsets, which stand in a ``.lineidx`` beside them or are made here."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from vlkd.errors import VlkdError
from vlkd.runs import write_atomically


class TsvFile:
    """A TSV, mapped into memory; any row in any order.

    Attributes:
        path: of the TSV.
        offsets: where each row begins.
        indexed: whether they were read from a ``.lineidx``.

    Raises:
        VlkdError: there is no such file, it is empty, or its ``.lineidx`` belongs to another one.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise VlkdError(f"There is no file '{self.path}': check its name.")
        if not self.path.stat().st_size:
            raise VlkdError(f"'{self.path}' is empty, but at least one row is expected.")
        with self.path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        index = lineidx(self.path)
        self.indexed = index.is_file()
        self.offsets = self._read_index(index) if self.indexed else list(self._scan())

    def __len__(self) -> int:
        return len(self.offsets)

    def row(self, number: int) -> list[bytes]:
        """The columns of row ``number`` (the first is 0)."""
        begin, end = self._extent(number)
        while end > begin and self._bytes[end - 1] in b"\r\n":
            end -= 1
        columns = []
        while (tab := self._bytes.find(b"\t", begin, end)) >= 0:
            columns.append(self._bytes[begin:tab])
            begin = tab + 1
        return [*columns, self._bytes[begin:end]]

    def first_column(self, number: int) -> str:
        """The first column of a row, without reading the others."""
        begin, end = self._extent(number)
        tab = self._bytes.find(b"\t", begin, end)
        return self._bytes[begin : end if tab < 0 else tab].rstrip(b"\r\n").decode()

    def _extent(self, number: int) -> tuple[int, int]:
        last = number + 1 == len(self.offsets)
        return self.offsets[number], len(self._bytes) if last else self.offsets[number + 1]

    def _scan(self) -> Iterator[int]:
        begin = 0
        while begin < len(self._bytes):
            yield begin
            newline = self._bytes.find(b"\n", begin)
            begin = len(self._bytes) if newline < 0 else newline + 1

    def _read_index(self, path: Path) -> list[int]:
        try:
            offsets = [int(line) for line in path.read_text().split()]
        except ValueError as error:
            raise VlkdError(f"'{path}' is no list of numbers ({error}): delete it, or make it anew.") from None
        for row, offset in enumerate(offsets):
            if not 0 <= offset < len(self._bytes) or (offset and self._bytes[offset - 1 : offset] != b"\n"):
                raise VlkdError(
                    f"'{path}' says that row {row + 1} begins at byte {offset}, but no row of '{self.path.name}' does: it belongs "
                    "to another file. Delete it, or make it anew with `vlkd data index`."
                )
        ends = self._bytes.find(b"\n", offsets[-1]) + 1 if offsets else 0
        if not offsets or offsets[0] != 0 or ends not in (0, len(self._bytes)):
            raise VlkdError(
                f"'{path}' has {len(offsets)} rows, but '{self.path.name}' has more: delete it, or make it anew with `vlkd data index`."
            )
        return offsets


def lineidx(path: Path) -> Path:
    """The name of a TSV's index."""
    return path.with_suffix(".lineidx")


def write_lineidx(path: Path | str) -> Path:
    """Make the ``.lineidx`` of a TSV, one byte offset a line, over one that is there.

    Raises:
        VlkdError: there is no such TSV.
    """
    path = Path(path)
    index = lineidx(path)
    index.unlink(missing_ok=True)
    write_atomically(index, "".join(f"{offset}\n" for offset in TsvFile(path).offsets))
    return index
