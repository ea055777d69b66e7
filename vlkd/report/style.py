"""One look for every figure: matplotlib without a display, PNG bytes out."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1b2430"
MUTED = "#6b7684"
FAINT = "#e4e8ee"
CONTROLS = {"none": "#c3cad4", "other": "#98a3b3"}
MODEL_COLOURS = ("#16324f", "#8fb3d9", "#2f6fb0", "#eaa33b", "#d1435b", "#5b8c5a", "#7d5ba6", "#6b7684")
TERM_COLOURS = {
    "language": "#2f6fb0",
    "captioning": "#2f6fb0",
    "answers": "#2f6fb0",
    "matching": "#8fb3d9",
    "attention": "#d1435b",
    "hidden": "#5b8c5a",
    "classes": "#eaa33b",
}

_RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#b8c0cb",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def model_colours(names: Sequence[str]) -> dict[str, str]:
    """One colour a model, by its place in the table."""
    return {name: MODEL_COLOURS[i % len(MODEL_COLOURS)] for i, name in enumerate(names)}


def term_colour(term: str, place: int) -> str:
    return TERM_COLOURS.get(term, MODEL_COLOURS[place % len(MODEL_COLOURS)])


@contextmanager
def drawing(width: float, height: float, rows: int = 1, columns: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """A styled figure of ``width`` x ``height`` inches with its panels in reading order."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
        yield figure, list(axes.flat)


def png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG bytes; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
