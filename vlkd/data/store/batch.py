"""The tensors that the regions of a batch are read into."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlkd.data.store.layout import View
from vlkd.regions.paired import GEOMETRY_DIM, GEOMETRY_TOLERANCE


@dataclass(frozen=True)
class RegionBatch:
    """Regions of B pictures, padded with zeros to R, on the CPU; made once or once a batch by :meth:`empty`.

    Attributes:
        sizes: float32 [B, 2], the pictures' width and height in pixels.
        boxes: float32 [B, R, 4], x1, y1, x2, y2 in pixels.
        counts: int64 [B], regions of each picture.
        features: one float32 [B, R, F] a side: the student's and the teacher's (view ``paired``), or the teacher's (``own``).
    """

    sizes: Tensor
    boxes: Tensor
    counts: Tensor
    features: tuple[Tensor, ...]

    @classmethod
    def empty(cls, pictures: int, regions: int, student_dim: int, teacher_dim: int, view: View) -> RegionBatch:
        """Room for ``pictures`` of at most ``regions``."""
        widths = (student_dim, teacher_dim) if view == "paired" else (teacher_dim,)
        return cls(
            torch.empty(pictures, 2),
            torch.empty(pictures, regions, 4),
            torch.empty(pictures, dtype=torch.int64),
            tuple(torch.empty(pictures, regions, width) for width in widths),
        )

    def first(self, pictures: int) -> RegionBatch:
        """The part of the first so many pictures, in the same memory."""
        sides = tuple(side[:pictures] for side in self.features)
        return RegionBatch(self.sizes[:pictures], self.boxes[:pictures], self.counts[:pictures], sides)

    def is_sound(self) -> bool:
        """Whether every feature ends with the geometry of its box."""
        width, height = self.sizes.unbind(-1)
        corners = self.boxes / torch.stack((width, height, width, height), dim=-1)[:, None]
        expected = torch.cat((corners, corners[..., 2:] - corners[..., :2]), dim=-1)
        filled = torch.arange(self.boxes.shape[1]) < self.counts[:, None]
        return all(
            bool((((side[..., -GEOMETRY_DIM:] - expected).abs() <= GEOMETRY_TOLERANCE).all(-1) | ~filled).all())
            for side in self.features
        )
