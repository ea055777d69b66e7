"""Pickles of plain values, such as ``trainval_ans2label.pkl``, read without running anything that they name."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

from vlkd.errors import VlkdError


class _PlainUnpickler(pickle.Unpickler):
    """Knows no class and no function, so that nothing can be called: only dicts, lists, text and numbers come out."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")


def read_plain_pickle(path: Path) -> Any:
    """What a pickle of dicts, lists, text and numbers holds.

    Raises:
        VlkdError: there is no such file, or it is no pickle, or holds something else.
    """
    if not path.is_file():
        raise VlkdError(f"There is no file '{path}': check its name.")
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file).load()
    except Exception as error:
        raise VlkdError(
            f"'{path}' is no pickle of plain values ({error}), and no other is ever loaded: give the same content as JSON."
        ) from None
