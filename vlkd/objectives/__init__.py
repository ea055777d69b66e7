"""The losses of the method, one a file, each a :class:`Term`: a sum over rows and the number of rows.

A trainer divides the sum by the count of the *whole* optimizer step (all micro-batches, all ranks), so that a mean is a
mean over tokens and not a mean of means. :func:`rows_counted` gives those counts before any model has run.
"""

from vlkd.objectives.answers import answer_classification
from vlkd.objectives.attention import attention_transfer, paired_layers
from vlkd.objectives.classes import class_distillation
from vlkd.objectives.counting import rows_counted
from vlkd.objectives.hidden import hidden_nce
from vlkd.objectives.hidden_mse import hidden_mse
from vlkd.objectives.language import masked_language
from vlkd.objectives.ledger import Ledger
from vlkd.objectives.matching import image_text_matching
from vlkd.objectives.pooling import mean_over_tokens
from vlkd.objectives.term import Term

__all__ = [
    "Ledger",
    "Term",
    "answer_classification",
    "attention_transfer",
    "class_distillation",
    "hidden_mse",
    "hidden_nce",
    "image_text_matching",
    "masked_language",
    "mean_over_tokens",
    "paired_layers",
    "rows_counted",
]
