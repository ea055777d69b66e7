"""Files of Oscar and VinVL (github.com/microsoft/Oscar): read, checked, and turned into a feature store and corpora."""

from typing import TYPE_CHECKING

from vlkd.data.oscar.corpora import import_texts
from vlkd.data.oscar.pictures import Finding
from vlkd.data.oscar.sources import Sources
from vlkd.data.oscar.tsv import TsvFile, write_lineidx
from vlkd.data.oscar.validate import validate
from vlkd.lazy import lazily

if TYPE_CHECKING:
    from vlkd.data.oscar.importing import import_oscar

__all__ = ["Finding", "Sources", "TsvFile", "import_oscar", "import_texts", "validate", "write_lineidx"]

__getattr__ = lazily(__name__, {"importing": "import_oscar"})  # which needs the store and, with it, torch
