"""Feature stores, corpora, and the tasks: from regions and words to batches of tensors."""

from typing import TYPE_CHECKING

from vlkd.lazy import lazily

if TYPE_CHECKING:
    from vlkd.data.collate import Batch, Collator, Sample, model_inputs, picture_id
    from vlkd.data.corpus import AnswerVocabulary, Corpus
    from vlkd.data.masking import IGNORED
    from vlkd.data.store import RegionBatch, RegionMemory, RegionSource, RegionStore, View, write_store
    from vlkd.data.tasks import CaptioningSet, Condition, PretrainingSet, VQASet
    from vlkd.data.tokenizer import load_tokenizer, save_tokenizer, tokenizer_fingerprint, train_tokenizer

__all__ = [
    "IGNORED",
    "AnswerVocabulary",
    "Batch",
    "CaptioningSet",
    "Collator",
    "Condition",
    "Corpus",
    "PretrainingSet",
    "RegionBatch",
    "RegionMemory",
    "RegionSource",
    "RegionStore",
    "Sample",
    "VQASet",
    "View",
    "load_tokenizer",
    "model_inputs",
    "picture_id",
    "save_tokenizer",
    "tokenizer_fingerprint",
    "train_tokenizer",
    "write_store",
]

__getattr__ = lazily(
    __name__,
    {
        "collate": "Batch Collator Sample model_inputs picture_id",
        "corpus": "AnswerVocabulary Corpus",
        "masking": "IGNORED",
        "store": "RegionBatch RegionMemory RegionSource RegionStore View write_store",
        "tasks": "CaptioningSet Condition PretrainingSet VQASet",
        "tokenizer": "load_tokenizer save_tokenizer tokenizer_fingerprint train_tokenizer",
    },
)
