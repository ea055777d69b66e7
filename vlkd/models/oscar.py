"""Oscar's and VinVL's checkpoint folders (github.com/microsoft/Oscar) as our models, every tensor accounted for.

A folder holds ``config.json``, ``pytorch_model.bin`` or ``model.safetensors``, ``vocab.txt`` and often
``training_args.bin``. The last is a pickle and is never opened; tensors are read without running what else a file holds.

Three of Oscar's habits need care:

- Region embeddings have a LayerNorm only with ``use_img_layernorm``, with an epsilon of its own.
- Matching logits count from the match (class 0); ours have it as class 1, so the head's two rows are reversed. A head
  that tells wrong captions from wrong tags (``num_contrast_classes`` 3) has no counterpart: name it in ``may_differ``.
- Captioning models of its first release have ``transform`` and ``decoder`` in place of ``cls.predictions``: the decoder
  is not tied to the word embeddings and has no bias, so ours is 0.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.activations import ACT2FN

from vlkd.data.tokenizer import SPECIAL_TOKENS
from vlkd.errors import VlkdError
from vlkd.models.configuration import VLConfig
from vlkd.models.heads import VLForCaptioning, VLForPreTraining, VLForVQA

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Task = Literal["pretraining", "captioning", "vqa"]
VLModelWithHead = VLForPreTraining | VLForCaptioning | VLForVQA

_MODELS: dict[str, type[VLModelWithHead]] = {
    "pretraining": VLForPreTraining,
    "captioning": VLForCaptioning,
    "vqa": VLForVQA,
}
# What may always be in a file: positions are an input of our models; captioning has no use for the pooler that every
# model of Oscar's has.
_UNUSED = {"pretraining": (), "vqa": (), "captioning": ("bert.pooler.",)}
_POSITIONS = "bert.embeddings.position_ids"

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# What torch and safetensors raise on files that are cut, changed, or something else altogether.
_UNREADABLE = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, SafetensorError, RuntimeError, OSError, EOFError,
    LookupError, ValueError, TypeError, AttributeError, AssertionError,
)  # fmt: skip

# Oscar's names -> ours: the first prefix that fits.
_PREFIXES = {
    "bert.img_embedding.": "bert.region_embeddings.projection.",
    "bert.LayerNorm.": "bert.region_embeddings.LayerNorm.",
    "transform.": "cls.predictions.transform.",
    "decoder.": "cls.predictions.decoder.",
}
_ENDINGS = {".gamma": ".weight", ".beta": ".bias"}
_WORDS = "bert.embeddings.word_embeddings.weight"
_DECODER = "cls.predictions.decoder.weight"
_DECODER_BIAS = "cls.predictions.decoder.bias"
_BIAS = "cls.predictions.bias"
_MATCHING = ("cls.seq_relationship.weight", "cls.seq_relationship.bias")

# Entries of config.json, by our names: counts must be there; the others have BERT's defaults.
_COUNTS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "region_dim": "img_feature_dim",
}
_OPTIONAL_COUNTS = ("max_position_embeddings", "type_vocab_size")
_NUMBERS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps")


@dataclass(frozen=True)
class LoadReport:
    """Where every tensor went. ``str(report)`` is a summary to read: counts, then names.

    Every tensor of the file is in ``matched.values()`` or in ``unexpected``; every one of the model in ``matched``,
    ``tied``, ``zero`` or ``missing``.

    Attributes:
        source: the file.
        model: class of the model.
        matched: our name <- theirs.
        tied: our name = another of ours, one parameter under two names.
        zero: ours that Oscar's architecture lacks, and that are 0 so as to change nothing.
        missing: ours that the file lacks and that start afresh.
        unexpected: theirs that the model does not use.
        reversed_rows: ours whose rows are those of the file in reverse.
    """

    source: Path
    model: str
    matched: Mapping[str, str]
    tied: Mapping[str, str]
    zero: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reversed_rows: tuple[str, ...]

    def __str__(self) -> str:
        renamed = [f"{ours} <- {theirs}" for ours, theirs in self.matched.items() if ours != theirs]
        parts = {
            "tied": ("one parameter under two names", [f"{ours} = {other}" for ours, other in self.tied.items()]),
            "zero": ("not in Oscar's architecture", self.zero),
            "missing": ("not in the file, started afresh", self.missing),
            "unexpected": ("in the file, not used", self.unexpected),
            "reversed": ("rows in reverse: Oscar's class 0 is a match, ours class 1", self.reversed_rows),
        }
        lines = [f"{self.source} -> {self.model}"]
        lines.append(f"  {'matched':<10} {len(self.matched):>5}  {len(renamed)} of them under another name")
        lines += [f"  {part:<10} {len(names):>5}  {meaning}" for part, (meaning, names) in parts.items()]
        for part, names in {"renamed": renamed, **{part: names for part, (_, names) in parts.items()}}.items():
            lines += [part, *(f"  {name}" for name in names)] if names else []
        return "\n".join(lines)


def load_oscar(
    folder: Path | str, task: Task, *, may_differ: Sequence[str] = (), **settings: Any
) -> tuple[VLModelWithHead, LoadReport]:
    """The model of Oscar's or VinVL's in ``folder``, complete, float32, in eval mode, and where every tensor went.

    Hidden states and logits are Oscar's, except that ``matching_logits`` has the two classes in our order. Attention
    takes -inf where Oscar adds -10000, which is the same for every token that sees any other.

    Args:
        folder: of ``config.json`` and ``pytorch_model.bin`` or ``model.safetensors`` (preferred).
        task: which head: :class:`VLForPreTraining`, :class:`VLForCaptioning` or :class:`VLForVQA`.
        may_differ: beginnings of (our) names of tensors that may be missing, too many or of another shape; such a part
            of the model starts afresh from torch's global generator: seed it first. A pre-trained checkpoint becomes
            a VQA model with ``("cls.", "classifier.")`` and ``num_answers=...``. Buffers of position numbers and, for
            captioning, the pooler play no part and may always be there.
        settings: replace entries of the resulting :class:`VLConfig`, such as ``num_answers``.

    Returns:
        The model and the report.

    Raises:
        VlkdError: no such folder, file or task; a file that holds other things than tensors; a configuration that is
            not Oscar's or not supported; tensors that are missing, too many or of another shape.
    """
    if task not in _MODELS:
        raise VlkdError(f"No head for the task '{task}': name one of {', '.join(_MODELS)}.")
    folder = Path(folder)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise VlkdError(
            f"'{folder}' holds no Oscar checkpoint (no config.json): give the folder of one, such as "
            "'checkpoint-2000000', with config.json and pytorch_model.bin."
        )
    entries = _read_json(config_file)
    source = _weights_file(folder)
    theirs = _read_tensors(source)
    names = _our_names(theirs, source)
    tied = _is_tied({ours: theirs[name] for ours, name in names.items()})
    model = _MODELS[task](_config(entries, config_file, task, {"tie_word_embeddings": tied, **settings}))
    differing = (may_differ,) if isinstance(may_differ, str) else tuple(may_differ)
    report = _account(model, names, theirs, source, (*differing, _POSITIONS, *_UNUSED[task]))
    _copy(model, report, theirs)
    return model.eval(), report


def load_oscar_tokenizer(folder: Path | str) -> PreTrainedTokenizerFast:
    """BERT's tokenizer with the words of ``folder``'s ``vocab.txt``, one a line, numbered from 0.

    Text is lower-cased unless ``tokenizer_config.json`` has ``do_lower_case`` false.

    Raises:
        VlkdError: no vocabulary, one without a special token, with tokens of the user's own, or larger than the model's.
    """
    from transformers import BertTokenizer, PreTrainedTokenizerFast

    folder = Path(folder)
    path = folder / "vocab.txt"
    if not path.is_file():
        raise VlkdError(
            f"'{folder}' holds no vocabulary (no vocab.txt): copy it from the model that Oscar started from."
        )
    try:
        with path.open(encoding="utf-8") as lines:
            words = [line.rstrip("\n") for line in lines]
    except UnicodeDecodeError as error:
        raise VlkdError(f"'{path}' is no UTF-8 text: a vocabulary with one word a line is expected.") from error
    while words and not words[-1]:
        words.pop()
    lacking = sorted(set(SPECIAL_TOKENS.values()) - set(words))
    if lacking:
        raise VlkdError(f"'{path}' lacks {', '.join(lacking)}: BERT's vocabulary with one word a line is expected.")
    added = _read_json(folder / "added_tokens.json")
    if added:
        raise VlkdError(
            f"'{folder / 'added_tokens.json'}' adds {len(added)} tokens to the vocabulary, first {next(iter(added))!r}, "
            "but only vocab.txt is read: append them to it in the order of their numbers and delete that file."
        )
    size = _read_json(folder / "config.json").get("vocab_size")
    if isinstance(size, int) and len(words) > size:
        raise VlkdError(
            f"'{path}' has {len(words)} words, but the model beside it {size} embeddings: put the model's own "
            "vocabulary there."
        )
    lower = bool(_read_json(folder / "tokenizer_config.json").get("do_lower_case", True))
    bert = BertTokenizer(vocab={word: number for number, word in enumerate(words)}, do_lower_case=lower)
    return PreTrainedTokenizerFast(tokenizer_object=bert.backend_tokenizer, **SPECIAL_TOKENS)


def _read_json(path: Path) -> dict[str, Any]:
    """The entries of a file; none without it."""
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VlkdError(f"'{path}' is no JSON ({error}): download it again.") from error
    if not isinstance(entries, dict):
        raise VlkdError(
            f"'{path}' holds a {type(entries).__name__}, but named entries are expected: download it again."
        )
    return entries


def _config(entries: Mapping[str, Any], path: Path, task: str, settings: Mapping[str, Any]) -> VLConfig:
    """The ``entries`` of Oscar's ``config.json`` in our terms; what only its training used is left out."""

    def must(accepted: bool, name: str, expected: str) -> None:
        if not accepted:
            arrived = repr(entries[name]) if name in entries else "nothing"
            raise VlkdError(f"'{path}' has {arrived} as '{name}', but Oscar's has {expected}: mend that entry.")

    counts = _COUNTS | {name: name for name in _OPTIONAL_COUNTS if name in entries}
    if task == "vqa" and "num_answers" not in settings:
        counts["num_answers"] = "num_labels"
    for name in counts.values():
        must(type(entries.get(name)) is int and entries[name] > 0, name, "a whole number above 0")
    numbers = [name for name in _NUMBERS if name in entries]
    for name in numbers:
        must(type(entries[name]) in (int, float) and entries[name] >= 0, name, "a number from 0")
    heads, activation = entries["num_attention_heads"], str(entries.get("hidden_act", "gelu"))
    must(entries["hidden_size"] % heads == 0, "hidden_size", f"a multiple of its {heads} attention heads")
    must(activation in ACT2FN, "hidden_act", "the name of an activation, such as 'gelu'")
    codes = str(entries.get("img_feature_type")).startswith("dis_code")
    must(not codes, "img_feature_type", "'faster_r-cnn' where regions have features instead of codes")
    ours = {name: entries[theirs] for name, theirs in counts.items()} | {name: entries[name] for name in numbers}
    ours |= {"hidden_act": activation, "region_layer_norm": bool(entries.get("use_img_layernorm"))}
    if ours["region_layer_norm"]:
        eps = entries.get("img_layer_norm_eps")
        must(type(eps) is float and eps > 0, "img_layer_norm_eps", "beside use_img_layernorm a number such as 1e-12")
        ours["region_layer_norm_eps"] = eps
    return VLConfig(**{**ours, **settings})


def _weights_file(folder: Path) -> Path:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise VlkdError(f"'{folder}' holds no tensors: {' or '.join(_WEIGHTS)} is expected beside config.json.")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by their names there. Nothing that a pickle would run is run."""
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        # Files of torch before 1.6 are no archives and cannot be mapped.
        tensors = torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except _UNREADABLE as error:
        raise VlkdError(
            f"'{path}' cannot be read as tensors ({type(error).__name__}), and nothing else in it was run: a state dict "
            "as torch.save writes it is expected; download the file again."
        ) from error
    if not isinstance(tensors, Mapping):
        raise VlkdError(f"'{path}' holds a {type(tensors).__name__}, but a state dict, tensors by name, is expected.")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise VlkdError(
                f"'{path}' holds a {type(tensor).__name__} under {name!r}, but a state dict, tensors by name, is "
                "expected: save model.state_dict() alone."
            )
    return dict(tensors)


def _our_names(theirs: Mapping[str, Tensor], source: Path) -> dict[str, str]:
    """Our name -> theirs, for every tensor of the file, whether the model has it or not."""
    found: dict[str, str] = {}
    for name in theirs:
        ours = _our_name(name)
        if ours in found:
            raise VlkdError(
                f"'{source}' holds '{found[ours]}' and '{name}', which are both our '{ours}': remove one of the two."
            )
        found[ours] = name
    return found


def _our_name(name: str) -> str:
    name = name.removeprefix("module.")  # of DataParallel
    for theirs, ours in _ENDINGS.items():
        if name.endswith(theirs):
            name = name.removesuffix(theirs) + ours
    for theirs, ours in _PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _is_tied(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the decoder is that of the word embeddings: Oscar's configuration says so only now and then."""
    pairs = ((_DECODER, _WORDS), (_DECODER_BIAS, _BIAS))
    both = [(tensors[left], tensors[right]) for left, right in pairs if left in tensors and right in tensors]
    return all(torch.equal(left, right) for left, right in both)


def _account(
    model: VLModelWithHead,
    names: Mapping[str, str],
    theirs: Mapping[str, Tensor],
    source: Path,
    may_differ: tuple[str, ...],
) -> LoadReport:
    """Which tensor goes where; nothing is copied yet."""
    own: dict[str, Tensor] = model.state_dict()
    if _DECODER_BIAS in own and _BIAS not in own:  # an untied decoder adds the one bias there is
        if _DECODER_BIAS in names:
            may_differ = (*may_differ, _BIAS)
        else:
            names = {_DECODER_BIAS if ours == _BIAS else ours: name for ours, name in names.items()}
    matched, other_shape = {}, {}
    for ours, name in names.items():
        if ours in own:
            fits = theirs[name].shape == own[ours].shape and theirs[name].is_floating_point()
            (matched if fits else other_shape)[ours] = name
    tied = dict(model.all_tied_weights_keys)
    without_bias = (
        not {_BIAS, _DECODER_BIAS} & names.keys()
        and names.get(_DECODER, "").removeprefix("module.") == "decoder.weight"
    )
    zero = [name for name in (_BIAS, _DECODER_BIAS) if without_bias and name in own and name not in {*matched, *tied}]
    missing = [name for name in own if name not in {*matched, *tied, *zero}]
    unexpected = [ours for ours in names if ours not in matched]

    def refused(candidates: Iterable[str]) -> list[str]:
        return [name for name in candidates if not name.startswith(may_differ)]

    kind = type(model).__name__
    _refuse_mlp([names[ours] for ours in refused(unexpected) if ours.startswith("classifier.")], source, kind)
    for ours in refused(other_shape):
        raise VlkdError(
            f"'{names[ours]}' in '{source}' is {_described(theirs[names[ours]])}, but a {kind} of the config.json beside "
            f"it has {_described(own[ours])}: mend config.json, or start that part afresh ({_naming(ours.rpartition('.')[0] + '.')})."
        )
    _refuse_strangers(refused(missing), [names[ours] for ours in refused(unexpected)], source, kind)
    reversed_rows = tuple(name for name in _MATCHING if name in matched)
    strange = tuple(names[ours] for ours in unexpected)
    return LoadReport(source, kind, matched, tied, tuple(zero), tuple(missing), strange, reversed_rows)


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _naming(name: str) -> str:
    """How the command and how Python is told that a part may differ."""
    return f"--may-differ {name}, in Python may_differ={name!r}"


def _refuse_mlp(classifier: Sequence[str], source: Path, kind: str) -> None:
    if any(re.search(r"classifier\.\d", name) for name in classifier):
        raise VlkdError(
            f"'{source}' has a classifier of several layers ('{classifier[0]}', from Oscar's --classifier mlp), but a "
            f"{kind} has one linear layer: give a checkpoint with --classifier linear, or start that layer afresh "
            f"({_naming('classifier.')})."
        )


def _refuse_strangers(missing: Sequence[str], unexpected: Sequence[str], source: Path, kind: str) -> None:
    states = []
    if missing:
        states.append(f"lacks {len(missing)} tensors of a {kind}, first '{missing[0]}'")
    if unexpected:
        states.append(f"has {len(unexpected)} tensors that a {kind} has not, first '{unexpected[0]}'")
    if states:
        raise VlkdError(
            f"'{source}' {' and '.join(states)}: load it for the task it was trained for, mend config.json, or name what may "
            f"start afresh or go unused ({_naming('NAME.')})."
        )


def _copy(model: VLModelWithHead, report: LoadReport, theirs: Mapping[str, Tensor]) -> None:
    weights = {ours: theirs[name] for ours, name in report.matched.items()}
    weights |= {name: weights[name].flip(0) for name in report.reversed_rows}
    weights |= {name: torch.zeros(model.config.vocab_size) for name in report.zero}
    model.load_state_dict(weights, strict=False)
