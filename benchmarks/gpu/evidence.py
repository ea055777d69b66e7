"""Files that are whole at every moment, so that a machine that is taken away leaves what it had measured."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write(path: Path, content: Any) -> None:
    """Replace a JSON file at once: whoever reads it finds the one before or this one."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with new.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def read(path: Path) -> dict[str, Any]:
    """What was written; {} if nothing was."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
