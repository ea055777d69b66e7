"""Who takes part in `distillation_step`: one optimizer step of the student, with our losses, with eager ones, and without.

Shapes: B samples, T text and tag tokens, R regions, L = T + R tokens, H heads, E the teacher's width, K queue rows, N tokens that count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.bert.modeling_bert import BertSelfAttention

from vlkd.data import IGNORED
from vlkd.models import build_encoder, capture_attention
from vlkd.objectives import Term, rows_counted
from vlkd.recipes import Recipe, load_recipe
from vlkd.regions.paired import GEOMETRY_DIM
from vlkd.training.feed import QueueFeed
from vlkd.training.method import Method
from vlkd.training.teaching import Teacher
from vlkd.training.trained import Forward, Trained
from vlkd_kernels import RingQueue

NAMES = ("vlkd", "eager", "teacher forward, no distillation", "student alone")
PARTS = ("student", "teacher", "losses", "backward", "optimizer", "enqueue")
SEED = 0
Part = Callable[[str], AbstractContextManager[object]]
Capture = Callable[[nn.Module, Sequence[int]], AbstractContextManager[Any]]


class Case(NamedTuple):
    """What is trained: the paper's recipe with overrides, without dropout, so that every contender computes the same.

    Attributes:
        every_layer: all layers' attention is compared, not the last one's alone.
    """

    batch: int
    dtype: torch.dtype = torch.float32
    overrides: tuple[str, ...] = ()
    contenders: tuple[str, ...] = NAMES
    every_layer: bool = False

    def recipe(self) -> Recipe:
        settings = ("teacher.dropout=0", "student.dropout=0", f"schedules.student.batch={self.batch}")
        return load_recipe("paper/distillvlm", (*self.overrides, *settings, "schedules.student.accumulation=1"))


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
    """One optimizer step on one batch, of other pictures each time, as `vlkd.training` does it.

    Args:
        trained: on the batch's device.
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
        batch: dict[str, Tensor],
        *,
        layers: Sequence[int] = (),
        capture: Capture = capture_attention,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        schedule, queue = recipe.schedules.student, method.queue
        self.trained, self.teacher, self.method, self.dtype = trained.train(), teacher, method, dtype
        self.layers, self._capture = layers, capture
        self._of_layer = type(method)({"attention": recipe.distillation.alpha}, method.heads, method.distillation)
        self._batch, self._clip, self.done = batch, schedule.clip, 0
        self._feed = QueueFeed(queue, recipe.distillation.queue_tokens, SEED) if queue is not None else None
        parameters = list(trained.parameters())
        self.optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True)
        counts = rows_counted(batch, tuple(method.weights), method.heads)
        self._counts = dict(zip(method.weights, counts, strict=True))

    def __call__(self, part: Part = untimed) -> dict[str, Tensor]:
        """The mean of every term before the step."""
        means, teacher = self.backward(part)
        self.update(teacher, part)
        return means

    def forward(self, part: Part = untimed) -> tuple[dict[str, Tensor], Forward | None]:
        """The mean of every term, and what the teacher said."""
        batch, device = self.batch, self._batch["input_ids"].device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            with self._captured(self.trained) as of_student, part("student"):
                student = self.trained(batch)
            teacher, of_teacher = None, None
            if self.teacher is not None:
                with self._captured(self.teacher.model) as of_teacher, part("teacher"):
                    teacher = self.teacher(batch)
            with part("losses"):
                means = self._means(student, teacher, batch, of_student, of_teacher)
        return means, teacher

    def backward(self, part: Part = untimed) -> tuple[dict[str, Tensor], Forward | None]:
        """The same; the student's gradients are there."""
        means, teacher = self.forward(part)
        weights = self.method.weights
        with part("backward"):
            loss = torch.stack([weights[_kind(name)] * mean for name, mean in means.items()]).sum()
            loss.backward()
        return {name: mean.detach() for name, mean in means.items()}, teacher

    def update(self, teacher: Forward | None, part: Part = untimed) -> None:
        """Clip, AdamW, and into the queue what the teacher said."""
        with part("optimizer"):
            nn.utils.clip_grad_norm_(self.trained.parameters(), self._clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self._feed is not None and teacher is not None:
            with part("enqueue"):
                self._feed.collect(teacher.hidden, self._batch["distill_mask"], self.batch["picture_ids"])
                self._feed.enqueue(self.done)
        self.done += 1

    @property
    def batch(self) -> dict[str, Tensor]:
        """The same numbers of new pictures, so that the queue never fills with the batch's own."""
        ids = self._batch["picture_ids"]
        return self._batch | {"picture_ids": ids + self.done * len(ids)}

    def held(self) -> int:
        """Bytes of what stays from step to step: weights, AdamW's moments, queue."""
        states = [x for state in self.optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]
        teacher = () if self.teacher is None else self.teacher.model.parameters()
        queue = () if self.method.queue is None else self.method.queue.buffers()
        return sum(x.nbytes for x in (*self.trained.parameters(), *teacher, *queue, *states))

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


def _kind(term: str) -> str:
    """`attention` of `attention 3`."""
    return term.split(" ")[0]


def contenders(case: Case, device: str) -> dict[str, Step]:
    """Steps of the same weights and the same batch; each has a student and a queue of its own."""
    recipe = case.recipe()
    batch = random_batch(recipe, device)
    torch.manual_seed(SEED)
    student_dim, teacher_dim = (
        getattr(recipe.detectors, role).feature_dim + GEOMETRY_DIM for role in ("student", "teacher")
    )
    student = build_encoder(recipe.student, student_dim, recipe.text.vocabulary)
    frozen = Teacher(build_encoder(recipe.teacher, teacher_dim, recipe.text.vocabulary), torch.device(device), False)
    layers = [-1, *range(recipe.student.layers - 1)] if case.every_layer else [-1]
    result = {}
    for name in case.contenders:
        distils, eager = name in ("vlkd", "eager"), name == "eager"
        own, teacher = copy.deepcopy(student), None if name == "student alone" else frozen
        if eager:
            teacher = Teacher(copy.deepcopy(frozen.model), torch.device(device), False)
            for model in (own, teacher.model):
                model.set_attn_implementation("eager")
        torch.manual_seed(SEED)  # the projection and the queue
        trained = Trained(own, "student", recipe.teacher.width if distils else None, attends=name == "vlkd").to(device)
        result[name] = Step(
            recipe,
            trained,
            teacher,
            _method(recipe, distils, EagerMethod if eager else Method, device),
            batch,
            layers=layers if distils else (),
            capture=attention_maps if eager else capture_attention,
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


def random_batch(recipe: Recipe, device: str) -> dict[str, Tensor]:
    """As the collator gives it for pre-training: captions and tags from half their budget on, every pair matches."""
    torch.manual_seed(SEED)
    text, regions, count = recipe.text, recipe.detectors.max_regions, recipe.schedules.student.batch
    valid = [torch.arange(most) < torch.randint(most // 2, most + 1, (count, 1)) for most in (text.caption, text.tags)]
    seen = torch.cat([*valid, torch.ones(count, regions, dtype=torch.bool)], dim=1)  # [B, L]
    length = text.caption + text.tags
    ids = torch.randint(text.vocabulary, (count, length))
    masked = (torch.rand(count, length) < text.masking) & seen[:, :length]
    masked[:, 0] = True  # whatever the draw, there is something to predict
    batch = {
        "input_ids": ids,
        "token_type_ids": (torch.arange(length) >= text.caption).long().repeat(count, 1),
        "position_ids": torch.arange(length).repeat(count, 1),
        "attention_mask": seen.unsqueeze(1),
        "distill_mask": seen,
        "picture_ids": torch.arange(count),
        "mlm_labels": torch.where(masked, ids, IGNORED),
        "matched": torch.ones(count, dtype=torch.int64),
    }
    for role in ("student", "teacher"):
        width = getattr(recipe.detectors, role).feature_dim + GEOMETRY_DIM
        batch[f"{role}_regions"] = torch.randn(count, regions, width)
    return {name: tensor.to(device) for name, tensor in batch.items()}
