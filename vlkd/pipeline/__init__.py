"""The whole method in one folder, and what one does with a folder that has finished."""

from vlkd.pipeline.finished import FinishedRun
from vlkd.pipeline.run import run_method

__all__ = ["FinishedRun", "run_method"]
