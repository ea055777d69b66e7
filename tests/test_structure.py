"""Imports run one way between the folders, and the kernels stand alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# In the order in which data flows: each part may import itself and those before it.
ORDER = [
    "errors", "lazy", "keys", "progress", "locks", "runs", "disk", "recipes", "scenes", "regions", "data", "models", "objectives", "training",
    "evaluation", "report", "pipeline", "study", "doctor", "cli",
]  # fmt: skip


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, at any depth of nesting."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def violations(path: Path, part: str) -> list[str]:
    allowed = ORDER[: ORDER.index(part) + 1]
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for module in sorted(imported_modules(path))
        if module.startswith("vlkd.") and module.split(".")[1] in ORDER and module.split(".")[1] not in allowed
    ]


def test_every_part_has_its_place_in_the_order():
    parts = {path.stem if path.is_file() else path.name for path in (ROOT / "vlkd").iterdir()}
    assert parts - {"__init__", "__pycache__"} == set(ORDER)


@pytest.mark.parametrize("part", ORDER)
def test_imports_run_one_way(part):
    place = ROOT / "vlkd" / part
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    assert files
    assert [line for file in files for line in violations(file, part)] == []


def test_a_backward_import_is_found(tmp_path, monkeypatch):
    """The check itself can fail: a late, nested and a relative import are both seen."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    wrong = tmp_path / "vlkd" / "scenes" / "wrong.py"
    wrong.parent.mkdir(parents=True)
    wrong.write_text("def late():\n    from vlkd.regions import extract\n    from ..training import stages\n")
    assert len(violations(wrong, "scenes")) == 4  # each import counts as the module and as the name in it


def test_the_kernels_import_neither_the_training_package_nor_transformers():
    for file in sorted((ROOT / "vlkd_kernels").rglob("*.py")):
        roots = {module.split(".")[0] for module in imported_modules(file)}
        assert not roots & {"vlkd", "transformers", "torchvision"}, file


def test_only_objectives_and_later_use_the_kernels():
    early = ORDER[: ORDER.index("objectives")]
    for part in early:
        place = ROOT / "vlkd" / part
        files = place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]
        for file in files:
            assert "vlkd_kernels" not in {module.split(".")[0] for module in imported_modules(file)}, file
