"""Models from a recipe, and models from a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from vlkd.errors import VlkdError
from vlkd.models.configuration import VLConfig
from vlkd.models.encoder import VLPreTrainedModel
from vlkd.models.heads import VLForPreTraining
from vlkd.recipes.schema import Encoder

Model = TypeVar("Model", bound=VLPreTrainedModel)

# What one stage's model has and the next one's has not (or starts afresh).
_HEADS = ("cls.", "classifier.", "bert.pooler.")


def build_config(
    encoder: Encoder, region_dim: int, vocab_size: int, *, num_answers: int = 0, answer_mask_id: int | None = None
) -> VLConfig:
    """The configuration of an encoder of the recipe's shape; everything else as in BERT.

    BERT draws its weights with a standard deviation of 0.02 at a width of 768. Narrower encoders keep the variance of
    their activations, 0.02 √(768 / width): with 0.02 as it is, a width of 64 attends uniformly for hundreds of steps.
    """
    return VLConfig(
        initializer_range=0.02 * (768 / encoder.width) ** 0.5,
        vocab_size=vocab_size,
        hidden_size=encoder.width,
        num_hidden_layers=encoder.layers,
        num_attention_heads=encoder.heads,
        intermediate_size=encoder.ffn,
        hidden_dropout_prob=encoder.dropout,
        attention_probs_dropout_prob=encoder.dropout,
        region_dim=region_dim,
        num_answers=num_answers,
        answer_mask_id=answer_mask_id,
    )


def build_encoder(
    encoder: Encoder,
    region_dim: int,
    vocab_size: int,
    *,
    model_class: type[Model] = VLForPreTraining,
    **settings: Any,
) -> Model:
    """A new model of the recipe's shape, initialised as BERT from torch's global generator: seed it first.

    ``settings`` are the optional ones of :func:`build_config`.
    """
    return model_class(build_config(encoder, region_dim, vocab_size, **settings))


def load_model(model_class: type[Model], folder: Path | str) -> Model:
    """The model that ``save_pretrained`` left in ``folder``, complete, in eval mode.

    Raises:
        VlkdError: no such model there, another kind of model, or tensors that are missing or too many.
    """
    return _load(model_class, Path(folder), may_differ=())


def start_from(model_class: type[Model], folder: Path | str, **settings: Any) -> Model:
    """A model that takes over the weights which ``folder``'s model shares with it; a head not in there is new.

    A new head is initialised from torch's global generator: seed it first. ``settings`` replace entries of the
    folder's configuration, such as ``num_answers``.

    Raises:
        VlkdError: no such model there, or one whose encoder does not fit.
    """
    return _load(model_class, Path(folder), may_differ=_HEADS, **settings)


def _load(model_class: type[Model], folder: Path, may_differ: tuple[str, ...], **settings: Any) -> Model:
    if not (folder / "config.json").is_file():
        raise VlkdError(
            f"'{folder}' holds no model (no config.json): give the folder that a finished training stage wrote."
        )
    try:
        with quiet_transformers():
            options = {"output_loading_info": True, "use_safetensors": True, "local_files_only": True}
            loaded: Any = model_class.from_pretrained(folder, **options, **settings)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise VlkdError(f"The model in '{folder}' cannot be read as a {model_class.__name__}: {reason}") from error
    model, report = loaded
    for what in ("missing_keys", "unexpected_keys"):
        strange = sorted(key for key in report[what] if not key.startswith(may_differ or ("\0",)))
        if strange:
            state = "lacks" if what == "missing_keys" else "has, beyond what is expected,"
            raise VlkdError(
                f"The model in '{folder}' {state} {len(strange)} tensors of a {model_class.__name__}, "
                f"first '{strange[0]}': give the folder of a model of that kind."
            )
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars for small files, and no table of keys: what differs is judged by whoever reads or writes."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
