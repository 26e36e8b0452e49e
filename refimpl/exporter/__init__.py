"""The islands of a bundle as files that stock tools read: ONNX, engines, samples, and scripts for ``polygraphy run``.

An export is for the person who debugs. It knows the bundle on disk and nothing of how it was made; what needs the
original model (other precisions, values of real calls) is handed in. ``docs/exporting.md`` describes the folder.
"""

from __future__ import annotations

from refimpl.exporter.export import export_bundle
from refimpl.exporter.island import Extras, Form, form_of
from refimpl.exporter.place import check_place, check_room, export_plans, export_to_place
from refimpl.exporter.samples import Sample

__all__ = [
    "Extras",
    "Form",
    "Sample",
    "check_place",
    "check_room",
    "export_bundle",
    "export_plans",
    "export_to_place",
    "form_of",
]
