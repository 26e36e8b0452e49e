"""From the document to the page: one file with its styles, scripts and data in it, which fetches nothing.

Names come from models, so they are hostile until proven otherwise: templates escape everything, data travels as JSON
without a ``<``, the page's scripts write text and never markup, and a content security policy lets nothing run but
those scripts, by their checksums.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refimpl import __version__, vendoring

_HERE = Path(__file__).resolve().parent
_SCRIPTS = ("picture.js", "graph.js", "page.js")
_SPACE = "\N{NO-BREAK SPACE}"  # between a number and its unit


def render(document: Mapping[str, Any], *, library: str | None, picture: str = "") -> str:
    """The page.

    Args:
        document: what ``make_document`` gives.
        library: source of Cytoscape.js; None makes a page with a still picture of the graph.
        picture: that picture, as SVG that is safe to put into a page.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        bytes=format_bytes,
        cosine=format_cosine,
        number=format_number,
        percent=format_percent,
        seconds=format_seconds,
        sentence=format_sentence,
    )
    scripts = [_script(_HERE / "static" / name) for name in _SCRIPTS]
    if library is not None:
        scripts.insert(0, library.replace("</script", "<\\/script"))
    policy = " ".join(f"'sha256-{_digest(text)}'" for text in scripts)
    page: str = environment.get_template("page.html").render(
        doc=document,
        version=__version__,
        style=Markup((_HERE / "static" / "style.css").read_text(encoding="utf-8")),
        scripts=[Markup(text) for text in scripts],
        policy=policy,
        data=Markup(safe_json(document["graph"])),
        picture=Markup(picture),
        drawn=library is not None,
        licence=vendoring.licence() if library is not None else "",
        how_to_get_it=vendoring.HOW_TO_GET_IT,
        library_name=f"{vendoring.NAME} {vendoring.VERSION}",
    )
    return page


def safe_json(data: Any) -> str:
    """JSON that can stand in a ``<script>`` element whatever its texts are."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _script(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def format_bytes(size: int | None) -> str:
    """``1.5 MiB``; a dash for nothing known."""
    if size is None:
        return "-"
    if size >= 1 << 29:
        return f"{size / (1 << 30):.2f}{_SPACE}GiB"
    return f"{size / (1 << 20):.1f}{_SPACE}MiB" if size >= 1 << 19 else f"{size / 1024:.1f}{_SPACE}KiB"


def format_number(value: object) -> str:
    """Four digits; a dash for nothing known, and the texts that stand for infinities as they are."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def format_cosine(value: object) -> str:
    """Six decimals, since all that matters is how far it is from 1."""
    return f"{value:.6f}" if isinstance(value, int | float) else format_number(value)


def format_percent(value: object) -> str:
    """``97.3 %``; whole when it is all or nothing."""
    if not isinstance(value, int | float):
        return format_number(value)
    if value in (0.0, 1.0):
        return f"{100 * value:.0f}{_SPACE}%"
    return f"{100 * value:.1f}{_SPACE}%" if value >= 0.0005 else f"{100 * value:.2g}{_SPACE}%"


def format_seconds(value: float | None) -> str:
    """``1.20 s``; a dash for nothing known."""
    return "-" if value is None else f"{value:.2f}{_SPACE}s"


def format_sentence(text: str, stop: bool = True) -> str:
    """A phrase with a capital at its beginning and, unless it is a heading, a full stop at its end."""
    first = text[:1].upper() + text[1:]
    return first if not stop or first.endswith((".", "!", "?")) else f"{first}."
