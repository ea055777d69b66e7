"""Generation, captioning metrics, VQA accuracy, and how sure a difference is."""

from vlkd.evaluation.bootstrap import Interval, paired_bootstrap
from vlkd.evaluation.captioning import CaptionScores, caption_scores, tokenise
from vlkd.evaluation.evaluate import CONDITIONS, Exam, examine_answerer, examine_captioner
from vlkd.evaluation.generation import answer_questions, generate_captions
from vlkd.evaluation.java_metrics import JavaMetrics
from vlkd.evaluation.search import Hypothesis, beam_search
from vlkd.evaluation.vqa import normalise_answer, soft_accuracy, vqa_scores

__all__ = [
    "CONDITIONS",
    "CaptionScores",
    "Exam",
    "Hypothesis",
    "Interval",
    "JavaMetrics",
    "answer_questions",
    "beam_search",
    "caption_scores",
    "examine_answerer",
    "examine_captioner",
    "generate_captions",
    "normalise_answer",
    "paired_bootstrap",
    "soft_accuracy",
    "tokenise",
    "vqa_scores",
]
