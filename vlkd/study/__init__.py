"""Experiments over rows and seeds: what distillation is worth, and what of it."""

from vlkd.study.findings import Study
from vlkd.study.results import write_results
from vlkd.study.rows import StudySpec, load_study, study_names
from vlkd.study.run import run_study

__all__ = ["Study", "StudySpec", "load_study", "run_study", "study_names", "write_results"]
