"""Who takes part in `distillation_step`: one optimizer step of the student, with our losses, with eager ones, and without.

Shapes: B samples of a micro-batch, L tokens, H heads, E the teacher's width, K queue rows, N tokens that count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.bert.modeling_bert import BertSelfAttention

from benchmarks.distillation_samples import RandomSamples, StepBatches
from vlkd.models import build_encoder, capture_attention
from vlkd.objectives import Term
from vlkd.recipes import Recipe, load_recipe
from vlkd.regions.paired import GEOMETRY_DIM
from vlkd.training.feed import QueueFeed
from vlkd.training.method import Method
from vlkd.training.teaching import Teacher
from vlkd.training.trained import Forward, Trained
from vlkd_kernels import RingQueue

PADDED = "vlkd, padded"  # what padding is counted from
BASE = "teacher forward, no distillation"  # what the overhead is counted from
PARTS = ("student", "teacher", "losses", "backward", "optimizer", "enqueue")
SEED = 0
Part = Callable[[str], AbstractContextManager[object]]
Capture = Callable[[nn.Module, Sequence[int]], AbstractContextManager[Any]]


class Contender(NamedTuple):
    """What sets one apart.

    Attributes:
        taught: the teacher's forward runs.
        distils: its states are compared with the student's.
        eager: by plain PyTorch.
        padded: one batch as long as the budgets, else micro-batches as long as their longest row.
    """

    taught: bool = True
    distils: bool = True
    eager: bool = False
    padded: bool = False


CONTENDERS = {
    "vlkd": Contender(),
    PADDED: Contender(padded=True),
    "eager, padded": Contender(eager=True, padded=True),
    BASE: Contender(distils=False),
    "student alone": Contender(distils=False, taught=False),
}
NAMES = tuple(CONTENDERS)


class Case(NamedTuple):
    """What is trained: the paper's recipe with overrides, without dropout, so that every contender computes the same.

    Attributes:
        batch: samples of a step.
        micro_batches: how many a step is cut into, by length; where all is padded it is not cut.
        every_layer: all layers' attention is compared, not the last one's alone.
    """

    batch: int
    micro_batches: int
    dtype: torch.dtype = torch.float32
    overrides: tuple[str, ...] = ()
    contenders: tuple[str, ...] = NAMES
    every_layer: bool = False

    def recipe(self, micro_batches: int | None = None) -> Recipe:
        """Of a step in so many micro-batches, the case's by default."""
        accumulation = self.micro_batches if micro_batches is None else micro_batches
        schedule = (f"schedules.student.batch={self.batch}", f"schedules.student.accumulation={accumulation}")
        still = ("teacher.dropout=0", "student.dropout=0")
        return load_recipe("paper/distillvlm", (*self.overrides, *still, *schedule))

    def parts(self, contender: str) -> int:
        """Micro-batches of a step of a contender."""
        return 1 if CONTENDERS[contender].padded else self.micro_batches


class EagerMethod(Method):
    """The same losses as one would write them: from stored maps, and from one matrix of logits."""

    def _attention(self, student: Forward, teacher: Forward, batch: Any, backend: str | None = None) -> Term:
        maps: Any = student.attention, teacher.attention  # [B, H, L, L] each
        visible = batch["attention_mask"].sum(-1)  # [B, 1 or L] keys
        counted = batch["distill_mask"] & (visible > 0)  # [B, L]
        rows = F.mse_loss(*maps, reduction="none").sum(-1) / visible.clamp(min=1).unsqueeze(1)  # [B, H, L]
        return Term((rows * counted.unsqueeze(1)).sum(), self.heads * counted.sum())

    def _hidden(self, student: Forward, teacher: Forward, batch: Any, backend: str | None = None) -> Term:
        queue, mask = self.queue, batch["distill_mask"]
        assert queue is not None
        s, t = (F.normalize(x[mask], dim=-1) for x in (student.projected, teacher.hidden))  # [N, E]
        logits = torch.cat([(s * t).sum(-1, keepdim=True), s @ queue.rows.mT], dim=1) / self.distillation.temperature
        own = batch["picture_ids"].unsqueeze(1).expand(mask.shape)[mask].unsqueeze(1) == queue.ids  # [N, K]
        logits = logits.float().masked_fill(F.pad(own, (1, 0)), -torch.inf)
        first = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        return Term(F.cross_entropy(logits, first, reduction="sum"), mask.sum())


@contextmanager
def attention_maps(model: nn.Module, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """Every layer's map [B, H, L, L] in their order, kept by the hooks that `output_attentions=True` sets in transformers."""
    maps: list[Tensor] = []
    attentions = [module for module in model.modules() if isinstance(module, BertSelfAttention)]
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: maps.append(output[1])) for module in attentions
    ]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def untimed(_part: str) -> AbstractContextManager[object]:
    return nullcontext()


class Step:
    """One optimizer step on the same samples, of other pictures each time, as `vlkd.training` does it.

    Args:
        trained: on the samples' device.
        samples: its micro-batches.
        layers: whose attention is compared, the last one first.
        capture: how the attention of these layers is had from a model.
        dtype: of autocast; float32 is without.

    Attributes:
        done: how many steps.
    """

    def __init__(
        self,
        recipe: Recipe,
        trained: Trained,
        teacher: Teacher | None,
        method: Method,
        samples: StepBatches,
        *,
        layers: Sequence[int] = (),
        capture: Capture = capture_attention,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        schedule, settings, queue = recipe.schedules.student, recipe.distillation, method.queue
        self.trained, self.teacher, self.method, self.dtype = trained.train(), teacher, method, dtype
        self.layers, self._capture = layers, capture
        self._of_layer = type(method)({"attention": settings.alpha}, method.heads, method.distillation)
        self.samples, self._clip, self.done = samples, schedule.clip, 0
        self._feed = QueueFeed(queue, settings.queue_tokens, SEED, samples.max_length) if queue is not None else None
        parameters = list(trained.parameters())
        self.optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True)
        counts = torch.stack([method.rows_counted(batch) for batch in samples.batches]).sum(0)
        self._counts = dict(zip(method.weights, counts, strict=True))

    def __call__(self, part: Part = untimed) -> dict[str, Tensor]:
        """The mean of every term before the step."""
        means, taught = self.backward(part)
        self.update(taught, part)
        return means

    def forward(self) -> dict[str, Tensor]:
        """The mean of every term over the whole step, without a gradient."""
        with torch.no_grad():
            return _sums(self._terms(batch, untimed)[0] for batch in self.batches())

    def backward(self, part: Part = untimed) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The same; the student's gradients are there. And the teacher's last hidden state of each micro-batch."""
        weights, found, taught = self.method.weights, [], []
        for batch in self.batches():
            terms, teacher = self._terms(batch, part)
            with part("backward"):
                torch.stack([weights[_kind(name)] * term for name, term in terms.items()]).sum().backward()
            found.append({name: term.detach() for name, term in terms.items()})
            taught += [] if teacher is None else [teacher.hidden]
        return _sums(found), taught

    def update(self, taught: Sequence[Tensor], part: Part = untimed) -> None:
        """Clip, AdamW, and into the queue what the teacher said."""
        with part("optimizer"):
            nn.utils.clip_grad_norm_(self.trained.parameters(), self._clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self._feed is not None:
            with part("enqueue"):
                for hidden, batch in zip(taught, self.batches(), strict=True):
                    self._feed.collect(hidden, batch["distill_mask"], batch["picture_ids"])
                self._feed.enqueue(self.done, self.samples.order)
        self.done += 1

    def batches(self) -> list[dict[str, Tensor]]:
        """The same numbers of new pictures, so that the queue never fills with the step's own."""
        # The ids are hashes: whatever is done to their low bits makes them those of other pictures.
        return [batch | {"picture_ids": batch["picture_ids"] ^ self.done} for batch in self.samples.batches]

    def held(self) -> int:
        """Bytes of what stays from step to step: weights, AdamW's moments, queue."""
        states = [x for state in self.optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]
        teacher = () if self.teacher is None else self.teacher.model.parameters()
        queue = () if self.method.queue is None else self.method.queue.buffers()
        return sum(x.nbytes for x in (*self.trained.parameters(), *teacher, *queue, *states))

    def _terms(self, batch: dict[str, Tensor], part: Part) -> tuple[dict[str, Tensor], Forward | None]:
        """What a micro-batch adds to the mean of every term, and what the teacher said."""
        device = self.samples.batches[0]["input_ids"].device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            with self._captured(self.trained) as of_student, part("student"):
                student = self.trained(batch)
            teacher, of_teacher = None, None
            if self.teacher is not None:
                with self._captured(self.teacher.model) as of_teacher, part("teacher"):
                    teacher = self.teacher(batch)
            with part("losses"):
                return self._means(student, teacher, batch, of_student, of_teacher), teacher

    def _captured(self, model: nn.Module) -> AbstractContextManager[Any]:
        return self._capture(model, self.layers) if self.layers else nullcontext()

    def _means(self, student: Forward, teacher: Any, batch: Any, of_student: Any, of_teacher: Any) -> dict[str, Tensor]:
        pairs = [
            (student._replace(attention=of_student[layer]), teacher._replace(attention=of_teacher[layer]))
            for layer in self.layers
        ] or [(student, teacher)]
        terms = self.method.terms(*pairs[0], batch)
        for layer, pair in zip(self.layers[1:], pairs[1:], strict=True):
            terms[f"attention {layer}"] = self._of_layer.terms(*pair, batch)["attention"]
        return {name: term.sum / self._counts[_kind(name)] for name, term in terms.items()}


def _sums(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Term by term, of all micro-batches."""
    first, *others = parts
    return {name: sum((other[name] for other in others), term) for name, term in first.items()}


def _kind(term: str) -> str:
    """`attention` of `attention 3`."""
    return term.split(" ")[0]


def contenders(case: Case, device: str) -> dict[str, Step]:
    """Steps of the same weights and the same samples; no two share a student or a queue."""
    recipe = case.recipe()
    samples = RandomSamples(recipe, SEED)
    cut = samples.batches("longest", case.micro_batches).to(device)
    padded = samples.batches("max_length", 1).to(device)
    torch.manual_seed(SEED)
    student_dim, teacher_dim = (
        getattr(recipe.detectors, role).feature_dim + GEOMETRY_DIM for role in ("student", "teacher")
    )
    student = build_encoder(recipe.student, student_dim, recipe.text.vocabulary)
    frozen = Teacher(build_encoder(recipe.teacher, teacher_dim, recipe.text.vocabulary), torch.device(device), False)
    layers = [-1, *range(recipe.student.layers - 1)] if case.every_layer else [-1]
    result = {}
    for name in case.contenders:
        of = CONTENDERS[name]
        own, teacher = copy.deepcopy(student), frozen if of.taught else None
        if of.eager:
            teacher = Teacher(copy.deepcopy(frozen.model), torch.device(device), False)
            for model in (own, teacher.model):
                model.set_attn_implementation("eager")
        torch.manual_seed(SEED)  # the projection and the queue
        width = recipe.teacher.width if of.distils else None
        trained = Trained(own, "student", width, attends=of.distils and not of.eager).to(device)
        result[name] = Step(
            recipe,
            trained,
            teacher,
            _method(recipe, of.distils, EagerMethod if of.eager else Method, device),
            padded if of.padded else cut,
            layers=layers if of.distils else (),
            capture=attention_maps if of.eager else capture_attention,
            dtype=case.dtype,
        )
    return result


def _method(recipe: Recipe, distils: bool, kind: type[Method], device: str) -> Method:
    weights = {"language": 1.0, "matching": 1.0}
    if not distils:
        return kind(weights, recipe.student.heads, recipe.distillation)
    weights |= {"attention": recipe.distillation.alpha, "hidden": recipe.distillation.beta}
    queue = RingQueue(recipe.teacher.width, recipe.distillation.queue_size)
    queue.enqueue_(torch.randn(queue.rows.shape))
    return kind(weights, recipe.student.heads, recipe.distillation, queue.to(device))
