"""What a recipe may say. Unknown keys are errors; every default that the paper gives is named as such."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: Settings that change no number that is trained or examined; a run that is taken up may be given others.
CHANGES_NO_NUMBER = ("save_every", "log_every")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class World(_Section):
    """The rendered pictures (``vlkd.scenes``)."""

    seed: int = Field(default=0, ge=0, description="which pictures are drawn")
    picture_size: int = Field(default=192, ge=64, le=512, description="side of a rendered picture, pixels")
    train: int = Field(default=1200, ge=1, description="pictures to train on")
    validation: int = Field(default=200, ge=1)
    test: int = Field(default=240, ge=1)


class Detector(_Section):
    """A torchvision Faster R-CNN."""

    backbone: Literal["resnet10", "shufflenet"] = "resnet10"
    input_size: int = Field(default=192, ge=64, le=1333, description="side the picture is resized to, pixels")
    feature_dim: int = Field(default=256, ge=16, description="width of the box head's output")
    steps: int = Field(default=3000, ge=1, description="optimizer steps when trained from scratch")
    batch: int = Field(default=8, ge=1)
    lr: float = Field(default=2e-3, gt=0)


class Detectors(_Section):
    """The two detectors. ``packaged`` starts from the weights that ship with the package."""

    weights: Literal["packaged", "train"] = "packaged"
    student: Detector = Detector(backbone="shufflenet", input_size=112, feature_dim=128)
    teacher: Detector = Detector(backbone="resnet10", input_size=192, feature_dim=256)
    max_regions: int = Field(default=12, ge=1, description="regions kept per picture (the paper: 50)")
    score_threshold: float = Field(default=0.2, ge=0, lt=1)


class Text(_Section):
    """Token budgets, all in WordPieces."""

    vocabulary: int = Field(default=600, ge=64, description="most WordPieces that the tokenizer has")
    caption: int = Field(default=24, ge=4, description="[CLS] + caption + [SEP] (Oscar: 40)")
    question: int = Field(default=20, ge=4)
    tags: int = Field(default=16, ge=1, description="tags + [SEP] (Oscar: 30)")
    masking: float = Field(default=0.15, gt=0, lt=1, description="share of the caption's tokens that are masked")
    tags_masking: float = Field(
        default=0.15, ge=0, lt=1, description="share of the tags that are masked in pre-training"
    )
    mismatched: float = Field(
        default=0.5, ge=0, lt=1, description="share of pre-training pairs with another picture's caption"
    )
    caption_masked: int = Field(
        default=3, ge=1, description="most tokens masked in a caption when captioning (Oscar: 3)"
    )
    answer_from: Literal["cls", "mask"] = Field(
        default="cls",
        description="the token whose state answers a question: [CLS] through the pooler (Oscar), or a [MASK] behind the "
        "question (VL-BERT, arXiv 1908.08530), which starts from what masked language modelling taught",
    )


class Encoder(_Section):
    """The shape of a BERT encoder."""

    layers: int = Field(ge=1)
    width: int = Field(ge=8)
    heads: int = Field(ge=1)
    ffn: int = Field(ge=8)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Encoder:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


class Distillation(_Section):
    """Weights and settings of L_ATT, L_HID and L_CLS (arXiv 2104.02096)."""

    alpha: float = Field(default=1.0, ge=0, description="weight of the attention loss")
    beta: float = Field(default=1.0, ge=0, description="weight of the hidden loss")
    gamma: float = Field(default=1.0, ge=0, description="weight of the class loss, fine-tuning only")
    distance: Literal["mse", "kl"] = "mse"
    layers: Literal["last", "all"] = Field(
        default="last",
        description="whose attention is compared: the last layer's, or every layer's of the student, each with the teacher's "
        "of the same relative depth",
    )
    hidden: Literal["nce", "mse"] = Field(
        default="nce",
        description="the hidden loss: contrast with a queue, or mean squared difference, which has no queue",
    )
    pooling: Literal["token", "mean"] = Field(
        default="token", description="what the hidden loss compares: every token, or the mean over a sequence's tokens"
    )
    temperature: float = Field(default=0.07, gt=0, description="tau of the NCE")
    class_temperature: float = Field(default=1.0, gt=0, description="tau_d of the class loss")
    queue_size: int = Field(default=4096, ge=0, description="K, rows of teacher hidden states")
    queue_tokens: int = Field(default=512, ge=1, description="most rows enqueued an optimizer step, drawn uniformly")
    in_batch: bool = Field(default=False, description="the other rows of the batch are negatives too")


class Schedule(_Section):
    """One training stage: AdamW, linear decay."""

    steps: int = Field(ge=1, description="optimizer steps")
    batch: int = Field(
        default=64, ge=1, description="samples an optimizer step, all accumulated micro-batches together"
    )
    accumulation: int = Field(
        default=1, ge=1, description="micro-batches the batch is split into, samples of like length together"
    )
    length_window: int = Field(
        default=1,
        ge=1,
        description="steps whose samples are sorted by length before they are cut into batches: less padding, but other batches; "
        "1 leaves every batch as it was drawn",
    )
    lr: float = Field(default=5e-5, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup: float = Field(default=0.0, ge=0, lt=1, description="share of the steps")
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    save_every: int = Field(default=100, ge=1, description="steps between checkpoints")
    log_every: int = Field(default=10, ge=1, description="steps between lines of metrics.jsonl")
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="in this stage; else the encoder's (Oscar's VQA: 0.3)"
    )

    @model_validator(mode="after")
    def _accumulation_divides_batch(self) -> Schedule:
        if self.batch % self.accumulation:
            raise ValueError(f"batch {self.batch} must be a multiple of accumulation {self.accumulation}")
        return self


class Schedules(_Section):
    """Both students (with and without distillation) share ``student`` and the ``student_*`` schedules."""

    teacher: Schedule = Schedule(steps=300, lr=5e-5)
    adapt: Schedule = Schedule(steps=100, lr=5e-5)
    student: Schedule = Schedule(steps=300, lr=5e-5)
    teacher_captioning: Schedule = Schedule(steps=150, lr=3e-5)
    teacher_vqa: Schedule = Schedule(steps=200, lr=5e-5)
    student_captioning: Schedule = Schedule(steps=150, lr=3e-5)
    student_vqa: Schedule = Schedule(steps=200, lr=5e-5)


class Training(_Section):
    """How every stage is trained, beside its schedule. Precision, sharding and compilation change the numbers, the rest does not."""

    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="of autocast's products; weights and sums stay fp32; fp16 needs a GPU"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute the trained model's activations in the backward: less memory, more time"
    )
    sharded: bool = Field(
        default=False,
        description="split weights, gradients and AdamW's moments among the GPUs (FSDP2), not a copy each (DDP)",
    )
    compile: bool = Field(default=False, description="torch.compile of the layers of the trained model and its teacher")
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=("tensorboard",), description="where metrics go beside metrics.jsonl; tensorboard where it is installed"
    )
    check_steps: int = Field(
        default=0, ge=0, description="first steps whose fused losses and gradients are compared with their reference"
    )

    def numerics(self) -> dict[str, Any]:
        """The settings that the trained bits depend on and that are not their default."""
        return self.model_dump(include={"precision", "sharded", "compile"}, exclude_defaults=True)


class Evaluation(_Section):
    beam: int = Field(default=3, ge=1, description="beam width of captioning; 1 is greedy (the paper: 5)")
    max_tokens: int = Field(default=20, ge=1, description="longest generated caption (Oscar: 20)")
    batch: int = Field(default=64, ge=1)


class Recipe(_Section):
    """All settings of one run of the whole method."""

    name: str
    seed: int = Field(default=0, ge=0, description="of weights, order, masks, dropout and queue")
    world: World = World()
    detectors: Detectors = Detectors()
    text: Text = Text()
    teacher: Encoder = Encoder(layers=4, width=128, heads=4, ffn=512)
    student: Encoder = Encoder(layers=3, width=64, heads=4, ffn=256)
    distillation: Distillation = Distillation()
    schedules: Schedules = Schedules()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()

    def settings(self) -> dict[str, Any]:
        """All that the results depend on: of ``training``, what :meth:`Training.numerics` gives."""
        numerics = self.training.numerics()
        return self.model_dump(exclude={"training"}, exclude_none=True) | ({"training": numerics} if numerics else {})

    def trained_numbers(self) -> Recipe:
        """This recipe with the defaults of :data:`CHANGES_NO_NUMBER`: equal to another's where both train the same."""
        defaults = {name: Schedule.model_fields[name].default for name in CHANGES_NO_NUMBER}
        schedules = {name: schedule.model_copy(update=defaults) for name, schedule in self.schedules}
        return self.model_copy(update={"schedules": self.schedules.model_copy(update=schedules)})

    @model_validator(mode="after")
    def _captions_fit(self) -> Recipe:
        if self.evaluation.max_tokens > self.text.caption - 2:
            raise ValueError(
                f"evaluation.max_tokens ({self.evaluation.max_tokens}) may be at most {self.text.caption - 2}: text.caption "
                f"({self.text.caption}) holds [CLS] and [SEP] too"
            )
        return self

    @model_validator(mode="after")
    def _heads_match(self) -> Recipe:
        if self.teacher.heads != self.student.heads:
            raise ValueError(
                f"attention maps are compared head by head, so teacher.heads ({self.teacher.heads}) "
                f"and student.heads ({self.student.heads}) must be equal"
            )
        return self
