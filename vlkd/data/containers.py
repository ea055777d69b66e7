"""What a file is by its first bytes, whatever its name says."""

from __future__ import annotations

from pathlib import Path

from vlkd.errors import VlkdError

_PICKLE = "is a pickle, and no pickle is ever loaded, for it may run code: write its content as TSV, .npz, .safetensors or .pt"
_COMPRESSED = "is compressed, but rows are read in any order: {} first, and give what comes out"
_ENCODING = "is in {}, but UTF-8 is expected: `iconv -f {} -t UTF-8` makes it so"
_OTHER = "holds {}, but text is expected"

_NO_TEXT: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", _COMPRESSED.format("`gunzip -k` it")),
    (b"BZh", _COMPRESSED.format("`bunzip2 -k` it")),
    (b"\xfd7zXZ", _COMPRESSED.format("`unxz -k` it")),
    (b"\x28\xb5\x2f\xfd", _COMPRESSED.format("`unzstd` it")),
    (b"PK\x03\x04", _COMPRESSED.format("unzip it (a spreadsheet: save it as CSV)")),
    (b"\x80\x02", _PICKLE),
    (b"\x80\x03", _PICKLE),
    (b"\x80\x04", _PICKLE),
    (b"\x80\x05", _PICKLE),
    (b"\x93NUMPY", _OTHER.format("one NumPy array")),
    (b"\x89HDF", _OTHER.format("HDF5")),
)
_ENCODINGS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xfe\x00\x00", _ENCODING.format("UTF-32", "UTF-32")),
    (b"\xff\xfe", _ENCODING.format("UTF-16", "UTF-16")),
    (b"\xfe\xff", _ENCODING.format("UTF-16", "UTF-16")),
)


def no_text(head: bytes) -> str | None:
    """What a file that begins with ``head`` is, as the rest of a sentence, where it is a known kind and no text in any encoding."""
    return next((what for magic, what in _NO_TEXT if head.startswith(magic)), None)


def require_file(path: Path) -> None:
    """Require a file with something in it.

    Raises:
        VlkdError: there is none, it is a folder, or it is empty.
    """
    if path.is_dir():
        raise VlkdError(f"'{path}' is a folder, but a file is expected.")
    if not path.is_file():
        raise VlkdError(f"There is no file '{path}': check its name.")
    if not path.stat().st_size:
        raise VlkdError(f"'{path}' is empty, but at least one row is expected.")


def require_text(path: Path) -> None:
    """Require a file of text that is neither compressed nor in another encoding than UTF-8.

    Raises:
        VlkdError: it is something else, which is named.
    """
    require_file(path)
    with path.open("rb") as file:
        head = file.read(4096)
    for magic, what in (*_NO_TEXT, *_ENCODINGS):
        if head.startswith(magic):
            raise VlkdError(f"'{path}' {what}.")
    if b"\0" in head:
        encoding = "UTF-16LE" if head[1:2] == b"\0" else "UTF-16BE" if head[:1] == b"\0" else None
        raise VlkdError(f"'{path}' {_ENCODING.format('UTF-16', encoding) if encoding else _OTHER.format('no text')}.")
