"""A rendered picture world with captions, questions and boxes: the embedded data set."""

from vlkd.scenes.picture import SPLITS, Picture, make_picture, save_pictures
from vlkd.scenes.questions import Question
from vlkd.scenes.vocabulary import ATTRIBUTES, CLASSES

__all__ = [
    "ATTRIBUTES",
    "CLASSES",
    "SPLITS",
    "Picture",
    "Question",
    "make_picture",
    "save_pictures",
]
