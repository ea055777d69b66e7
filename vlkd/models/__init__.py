"""The visual-linguistic encoder on transformers' BERT, its heads, and the capture of its queries and keys."""

from vlkd.models.build import build_config, build_encoder, load_model, quiet_transformers, start_from
from vlkd.models.capture import CapturedAttention, QueryKey, capture_attention
from vlkd.models.card import DataIdentity, Layout, ModelCard, find_card, read_card, write_card
from vlkd.models.configuration import VLConfig
from vlkd.models.encoder import VLModel
from vlkd.models.heads import VLForCaptioning, VLForPreTraining, VLForVQA, VLOutput
from vlkd.models.oscar import LoadReport, load_oscar, load_oscar_tokenizer

__all__ = [
    "CapturedAttention",
    "DataIdentity",
    "Layout",
    "LoadReport",
    "ModelCard",
    "QueryKey",
    "VLConfig",
    "VLForCaptioning",
    "VLForPreTraining",
    "VLForVQA",
    "VLModel",
    "VLOutput",
    "build_config",
    "build_encoder",
    "capture_attention",
    "find_card",
    "load_model",
    "load_oscar",
    "load_oscar_tokenizer",
    "quiet_transformers",
    "read_card",
    "start_from",
    "write_card",
]
