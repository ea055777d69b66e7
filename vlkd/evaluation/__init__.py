"""Generation, captioning metrics, VQA accuracy, and how sure a difference is."""

from vlkd.evaluation.bootstrap import Interval, paired_bootstrap
from vlkd.evaluation.captioning import CaptionScores, caption_scores, tokenise
from vlkd.evaluation.coco import evaluate_captions_file
from vlkd.evaluation.evaluate import CONDITIONS, Exam, examine_answerer, examine_captioner, score_notes
from vlkd.evaluation.export import export_model
from vlkd.evaluation.generation import answer_questions, generate_captions
from vlkd.evaluation.java_metrics import JavaMetrics
from vlkd.evaluation.model import evaluate_model, evaluation_notes
from vlkd.evaluation.search import Hypothesis, beam_search
from vlkd.evaluation.vqa import soft_accuracy, vqa_scores
from vlkd.evaluation.vqa_official import AnswerScores, evaluate_answers_file

__all__ = [
    "CONDITIONS",
    "AnswerScores",
    "CaptionScores",
    "Exam",
    "Hypothesis",
    "Interval",
    "JavaMetrics",
    "answer_questions",
    "beam_search",
    "caption_scores",
    "evaluate_answers_file",
    "evaluate_captions_file",
    "evaluate_model",
    "evaluation_notes",
    "examine_answerer",
    "examine_captioner",
    "export_model",
    "generate_captions",
    "paired_bootstrap",
    "score_notes",
    "soft_accuracy",
    "tokenise",
    "vqa_scores",
]
