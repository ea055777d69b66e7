"""Make detector weights such as the shipped ones: ``python -m vlkd.regions --out FOLDER``."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlkd.recipes import load_recipe
from vlkd.regions.fit import fit_detectors
from vlkd.regions.packaged import ROLES


def main() -> None:
    """Train the detectors of a recipe; called again after an interruption, it goes on."""
    parser = argparse.ArgumentParser(prog="python -m vlkd.regions", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--recipe", default="demo", help="whose detectors to train (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures and the weights (default: 0)")
    parser.add_argument("--only", choices=ROLES, help="train one of the two")
    arguments = parser.parse_args()
    only = (arguments.only,) if arguments.only else ROLES
    settings = load_recipe(arguments.recipe).detectors
    for role, fitted in fit_detectors(arguments.out, settings, arguments.seed, only=only).items():
        print(f"{role}: AP50 {fitted.ap50:.3f} after {fitted.seconds:.0f} s")


if __name__ == "__main__":
    main()
