"""Feature stores, corpora, and the tasks: from regions and words to batches of tensors."""

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
