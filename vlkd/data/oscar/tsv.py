"""Tab-separated files whose rows are found by their byte offsets, which stand in a ``.lineidx`` beside them or are made here."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from vlkd.data.containers import require_text
from vlkd.data.text_files import LONGEST_KEY
from vlkd.errors import VlkdError
from vlkd.keys import normal_key, shown
from vlkd.runs import write_atomically

_BOM = b"\xef\xbb\xbf"
_MOST_PROBLEMS = 5  # of a file's keys that are told one by one


class TsvFile:
    """A TSV in UTF-8, mapped into memory; any row in any order. Blank lines at its end are no rows.

    Attributes:
        path: of the TSV.
        offsets: where each row begins.
        indexed: whether they were read from a ``.lineidx``.

    Raises:
        VlkdError: there is no such file, it is empty, compressed or in another encoding, or its ``.lineidx`` belongs to another one.
    """

    def __init__(self, path: Path | str, *, anew: bool = False) -> None:
        """``anew`` finds the rows even where a ``.lineidx`` says where they are."""
        self.path = Path(path)
        require_text(self.path)
        with self.path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._index = lineidx(self.path)
        self.indexed = self._index.is_file() and not anew
        self.offsets = self._read_index() if self.indexed else list(self._scan())
        while self.offsets and not self._content(len(self.offsets) - 1).strip():
            self.offsets.pop()
        if not self.offsets:
            raise VlkdError(f"'{self.path}' is empty, but at least one row is expected.")

    def __len__(self) -> int:
        return len(self.offsets)

    def row(self, number: int) -> list[bytes]:
        """The columns of row ``number`` (the first is 0).

        Raises:
            VlkdError: the ``.lineidx`` joins lines.
        """
        content = self._content(number)
        columns, begin = [], 0
        while (tab := content.find(b"\t", begin)) >= 0:  # bytes.split looks at each byte
            columns.append(content[begin:tab])
            begin = tab + 1
        return [*columns, content[begin:]]

    def first_column(self, number: int) -> str:
        """The first column of a row, without reading the others.

        Raises:
            VlkdError: it is not in UTF-8.
        """
        begin, end = self._extent(number)
        for mark in (b"\t", b"\n"):
            place = self._bytes.find(mark, begin, end)
            end = place if place >= 0 else end
        return self.text(number, self._bytes[begin:end].rstrip(b"\r"))

    def text(self, number: int, column: bytes) -> str:
        """A column of row ``number`` as text.

        Raises:
            VlkdError: it is not in UTF-8.
        """
        try:
            return column.decode()
        except UnicodeDecodeError as error:
            raise VlkdError(
                f"'{self.path}', line {number + 1}: {shown(column.decode('latin-1'))!r} is not in UTF-8 ({error.reason} "
                f"{column[error.start : error.start + 1]!r}): save the file in UTF-8."
            ) from None

    def _content(self, number: int) -> bytes:
        """A row without the end of its line."""
        begin, end = self._extent(number)
        newline = self._bytes.find(b"\n", begin, end)
        if newline >= 0:
            if newline + 1 < end and self._bytes[newline:end].strip():
                raise self._stale(
                    f"says that row {number + 1} goes from byte {begin} to {end}, but a line ends on the way"
                )
            end = newline
        while end > begin and self._bytes[end - 1] == ord("\r"):
            end -= 1
        return self._bytes[begin:end]

    def _extent(self, number: int) -> tuple[int, int]:
        last = number + 1 == len(self.offsets)
        begin = self.offsets[number]
        end = len(self._bytes) if last else self.offsets[number + 1]
        return begin + len(_BOM) * (begin == 0 and self._bytes[: len(_BOM)] == _BOM), end

    def _scan(self) -> Iterator[int]:
        begin = 0
        while begin < len(self._bytes):
            yield begin
            newline = self._bytes.find(b"\n", begin)
            begin = len(self._bytes) if newline < 0 else newline + 1

    def _read_index(self) -> list[int]:
        try:
            offsets = [int(line) for line in self._index.read_text().split()]
        except ValueError:
            raise self._stale("is no list of numbers") from None
        before = -1
        for row, offset in enumerate(offsets):
            if offset <= before:
                raise self._stale(f"says that row {row + 1} begins at byte {offset}, behind which row {row} begins")
            if offset >= len(self._bytes) or (offset and self._bytes[offset - 1 : offset] != b"\n"):
                raise self._stale(f"says that row {row + 1} begins at byte {offset}, where no row begins")
            before = offset
        if not offsets or offsets[0] != 0:
            raise self._stale(
                f"says that the first row begins at byte {offsets[0] if offsets else 'nothing'}, not at 0"
            )
        if self._bytes[self._bytes.find(b"\n", offsets[-1]) + 1 or len(self._bytes) :].strip():
            raise self._stale(f"has {len(offsets)} rows, but the TSV has more")
        return offsets

    def _stale(self, what: str) -> VlkdError:
        return VlkdError(
            f"'{self._index}' {what}: it is of another file than '{self.path.name}', or of an older one. Delete it, or make it "
            "anew with `vlkd data index`."
        )


class KeyedTsv:
    """A TSV whose first column is the key of a picture.

    Attributes:
        tsv: the file.
        keys: the pictures in the file's order, each once, in Unicode's composed form.
        problems: sentences about keys that cannot be used, which are not in ``keys``.
    """

    def __init__(self, tsv: TsvFile, first: int = 0) -> None:
        """``first`` is 1 where the first row is a header."""
        self.tsv = tsv
        self.problems: list[str] = []
        self._row_of: dict[str, int] = {}
        wrong = 0
        for row in range(first, len(tsv)):
            try:
                self._add(row)
            except VlkdError as error:
                wrong += 1
                if wrong <= _MOST_PROBLEMS:
                    self.problems.append(str(error))
        if wrong > _MOST_PROBLEMS:
            self.problems.append(f"'{tsv.path}': keys of {wrong - _MOST_PROBLEMS} more lines cannot be used.")
        self.keys = tuple(self._row_of)

    def __contains__(self, key: str) -> bool:
        return key in self._row_of

    def row(self, key: str) -> list[bytes]:
        """The columns of a picture."""
        return self.tsv.row(self._row_of[key])

    def line(self, key: str) -> int:
        """Where a picture stands, counted from 1."""
        return self._row_of[key] + 1

    def place(self, key: str) -> str:
        """File, line and key, for a sentence."""
        return f"'{self.tsv.path}', line {self.line(key)}, key '{shown(key)}'"

    def _add(self, row: int) -> None:
        place = f"'{self.tsv.path}', line {row + 1}"
        key = normal_key(self.tsv.first_column(row).strip())
        if not key:
            raise VlkdError(f"{place}: no key of a picture, but one is expected in the first column: remove the line.")
        if len(key) > LONGEST_KEY:
            raise VlkdError(
                f"{place}: '{shown(key)}' stands where a key is expected: are lines wrapped, or columns exchanged?"
            )
        if key in self._row_of:
            raise VlkdError(
                f"{place}: key '{shown(key)}' stands in line {self._row_of[key] + 1} already, but may come once."
            )
        self._row_of[key] = row


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
    write_atomically(index, "".join(f"{offset}\n" for offset in TsvFile(path, anew=True).offsets))
    return index
