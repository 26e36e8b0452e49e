"""A bundle's page, with the vendored library where it is, and a still picture for where it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refimpl import vendoring
from refimpl.report.html.document import Material
from refimpl.report.html.render import render
from refimpl.report.html.still import still_picture


def page_of(material: Material, document: Mapping[str, Any]) -> str:
    """The HTML file, as text.

    Args:
        material: what the document was made from.
        document: what ``make_document`` gave.
    """
    return render(document, library=vendoring.library(), picture=still_picture(material.graphs.values()))
