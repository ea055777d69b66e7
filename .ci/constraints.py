"""Prints constraints.txt: the installed version of everything that vlkd with all extras of `make install` requires."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

EXTRAS = frozenset(("train", "eval", "bench", "dev"))
HEADER = f"""\
# Versions with which every test passed (Python {platform.python_version()}). `make install` takes them, `make install LATEST=1` the newest.
# Written by `make constraints`, after a whole green run of `make test`. torch pins its CUDA libraries itself.
"""


def required(name: str, extras: frozenset[str], found: dict[str, str]) -> None:
    """Add to ``found`` what a distribution and these of its extras require here, and what that requires."""
    for line in distribution(name).requires or ():
        requirement = Requirement(line)
        key = canonicalize_name(requirement.name)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": one}) for one in extras | {""}):
            continue
        if key in found and not requirement.extras:
            continue
        try:
            found[key] = Version(distribution(key).version).public
        except PackageNotFoundError as error:
            sentence = f"{name} requires {key}, which is not installed: run `make install`, then `make test`."
            raise SystemExit(sentence) from error
        required(key, frozenset(requirement.extras), found)


def main() -> None:
    found: dict[str, str] = {}
    required("vlkd", EXTRAS, found)
    print(
        HEADER + "\n".join(f"{key}=={found[key]}" for key in sorted(found) if not key.startswith(("nvidia-", "cuda-")))
    )


if __name__ == "__main__":
    main()
