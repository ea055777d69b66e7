"""The page, the table and results.json of a run."""

from vlkd.report.page import write_page
from vlkd.report.results import results_dict, write_results
from vlkd.report.story import (
    CONDITIONS,
    AnsweredQuestion,
    AttentionExample,
    Comparison,
    ModelRow,
    ReportData,
    Sample,
    StageRecord,
)
from vlkd.report.tables import terminal_table

__all__ = [
    "CONDITIONS",
    "AnsweredQuestion",
    "AttentionExample",
    "Comparison",
    "ModelRow",
    "ReportData",
    "Sample",
    "StageRecord",
    "results_dict",
    "terminal_table",
    "write_page",
    "write_results",
]
