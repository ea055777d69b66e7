"""What a message tells the user to type exists: commands, their options, settings of a recipe."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from vlkd.cli import app
from vlkd.recipes import Recipe

ROOT = Path(__file__).resolve().parents[2] / "vlkd"
#: Options of others' programs, and of our own that is no part of `vlkd`.
FOREIGN = {
    "--nproc-per-node": "torchrun",
    "--classifier": "Oscar",
    "--only": "python -m vlkd.regions",
    "--recipe": "python -m vlkd.regions",
    "--porcelain": "git",
    "--untracked-files": "git",
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]\b")
COMMAND = re.compile(r"(?<![\w./])vlkd ((?:[a-z]+ ?)+)([^`]*)")
SETTING = re.compile(r"(?<![\w./`'])\b({})\.([a-z_]+)(?:\.([a-z_]+))?\b(?![(/])".format("|".join(Recipe.model_fields)))
SWITCH = re.compile(r"\b([a-z_]+)=(?:True|False)\b")


def strings(source: str) -> Iterator[str]:
    """All strings in a source file, docstrings too, with an X for what is filled in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "var(--" not in node.value:
            yield node.value  # style sheets have names of their own


def commands(group, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], set[str]]:
    """Every command's options, by its words."""
    found = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, (*path, name))
            found[(*path, name)] = {"--help"}
        else:
            options = {
                option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
            }
            found[(*path, name)] = {"--help", *(option for option in options if option.startswith("--"))}
    return found


COMMANDS = commands(typer.main.get_command(app))
ALL_OPTIONS = set().union(*COMMANDS.values())


def wrong(text: str) -> list[str]:
    """What ``text`` tells that does not exist."""
    problems = [
        f"no command has {option}"
        for option in OPTION.findall(text)
        if option not in ALL_OPTIONS and option not in FOREIGN
    ]
    for quoted in re.findall(r"`([^`]*)`", text):
        for words, rest in COMMAND.findall(quoted):
            named = tuple(words.split())
            known = next((named[:length] for length in (2, 1) if named[:length] in COMMANDS), None)
            if known is None:
                problems.append(f"there is no `vlkd {words}`")
                continue
            problems += [
                f"`vlkd {' '.join(known)}` has no {option}"
                for option in OPTION.findall(rest)
                if option not in COMMANDS[known] and option not in FOREIGN
            ]
    for section, field, inner in SETTING.findall(text.replace("text.color", "")):  # matplotlib's
        model: type[BaseModel] | None = Recipe.model_fields[section].annotation
        for name in filter(None, (field, inner)):
            if not (isinstance(model, type) and issubclass(model, BaseModel) and name in model.model_fields):
                problems.append(f"no recipe has {section}.{field}")
                break
            model = model.model_fields[name].annotation
    for switch in SWITCH.findall(text):
        option = f"--{switch.replace('_', '-')}"
        if option in ALL_OPTIONS and option not in text:
            problems.append(f"{switch}=True is {option} on the command line")
    return problems


@pytest.mark.parametrize("part", sorted({path.relative_to(ROOT).parts[0] for path in ROOT.rglob("*.py")}))
def test_what_a_message_names_exists(part: str) -> None:
    place = ROOT / part
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    found = {
        f"{file.relative_to(ROOT)}: {problem} (in {text[:80]!r})"
        for file in files
        for text in strings(file.read_text(encoding="utf-8"))
        for problem in wrong(text)
    }
    assert found == set()


def test_an_argument_of_python_stands_beside_its_option() -> None:
    """`subset=True` alone is of no use to who typed a command."""
    raised = [
        " ".join(strings(ast.unparse(node)))
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise)
    ]
    with_argument = [text for text in raised if re.search(r"`[a-z]\w*=", text)]
    assert with_argument and all("--" in text for text in with_argument)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("score with subset=True", "subset=True is --subset on the command line"),
        ("give --captionz", "no command has --captionz"),
        ("run `vlkd data texts X --out X`", "`vlkd data texts` has no --out"),
        ("run `vlkd retrain`", "there is no `vlkd retrain`"),
        ("set distillation.gama to 0", "no recipe has distillation.gama"),
        ("schedules.students.steps=4", "no recipe has schedules.students"),
    ],
)
def test_a_wrong_name_is_found(text: str, problem: str) -> None:
    assert wrong(text) == [problem]
