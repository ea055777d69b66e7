"""An HTML page that stands alone: style inside, pictures as base64, no link and no script."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from vlkd.report.page_css import CSS


def document(title: str, sections: Iterable[str], more_css: str = "") -> str:
    """The whole page; ``sections`` are HTML, ``title`` is text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}{more_css}</style></head>\n"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def figure_html(png: bytes, description: str, caption: str = "") -> str:
    """A picture with a line of text below it; ``description`` is what is read aloud in its place."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{image_html(png, description)}{below}</figure>"


def image_html(png: bytes, description: str) -> str:
    """A picture alone."""
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'


def folded_settings(settings: Mapping[str, Any]) -> str:
    """All settings, to be opened by a click."""
    text = escape(json.dumps(settings, indent=2, default=str))
    return f"<details><summary>All settings</summary><pre>{text}</pre></details>"
