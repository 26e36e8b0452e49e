"""The README.txt of an export."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from refimpl import __version__
from refimpl.bundle import Manifest
from refimpl.exporter.island import StoredIsland

_FILES = """
In the folder of each island:

  PRECISION.onnx          the island; what refimpl and TensorRT build engines from. Opens in Netron
  PRECISION.half.onnx     the same, with float16 or bfloat16 tensors in it, or int8 beside them
  PRECISION.tf32.onnx     the same, when its float32 products may be rounded to TF32
  PRECISION.plain.onnx    the same, of an island that agrees with TensorFlow only while ONNX Runtime does not optimize
  PRECISION.cpu.onnx      a half island as refimpl's embedded engine runs it: see below
  *.onnx.data             weights of the ONNX file of that name, when they are too large to lie in it
  KIND.PRECISION.engine   an engine file; it opens with the version that built it (manifest.json says which)
  profiles.json           TensorRT's optimization profiles: a list, by input min, opt and max, as Polygraphy has them;
                          of an input that is a shape, its values
  layers.json             what TensorRT says of the layers: of the built engine where a GPU is at hand, and of the
                          network that its parser makes of the ONNX, before anything is fused
  ops.json                the TensorFlow ops that the island replaces, its cut tensors, its precision layer by layer
  ranges.json             int8 only: the range of each calibrated tensor, and TensorRT's scale for it
  samples/                inputs of the island and TensorFlow's outputs for them: NNN-NAME.npz for NumPy (inputs/TENSOR,
                          outputs/TENSOR); .inputs.json for polygraphy run --load-inputs; .outputs.json for
                          --load-outputs
  reproduce.sh            compares the files above with TensorFlow's outputs, by stock polygraphy run
  trt_config.py           what refimpl asks of TensorRT and Polygraphy has no option for; used by reproduce.sh --trt

calibration.json, when it is there, is the bundle's table of int8 ranges; manifest.json lists every file with its
SHA-256, the limits of every comparison, and the versions.
"""
_ROUNDING = """
How refimpl rounds. In a half island a tensor of float16 (bfloat16) is rounded at every op, to nearest, ties to even,
and what exceeds the largest finite number becomes an infinity. A stock ONNX Runtime has few CPU kernels for half
precision: it computes chains of ops in float32 and never rounds between them, and it knows no bfloat16 ones. So
refimpl's embedded engine spells the graph out: every op in float32, a cast to half and back after it. That graph is
PRECISION.cpu.onnx, and reproduce.sh runs it on the CPU; TensorRT gets the half file itself. Models with
QuantizeLinear in them run with ONNX Runtime's optimizations off, since its fused kernels would saturate where the
graph does not.
"""


def text(manifest: Manifest, islands: Sequence[StoredIsland], notes: Sequence[str]) -> str:
    """The whole file.

    Args:
        manifest: of the bundle.
        islands: what was written.
        notes: sentences of whoever asked for the export.
    """
    head = (
        f"Islands of a bundle that refimpl {manifest.refimpl} made of {manifest.source_name} on {manifest.created},"
        f" exported by refimpl {__version__}."
    )
    parts = [textwrap.fill(head, 118), "", "  bash reproduce.sh            every island in ONNX Runtime, on the CPU"]
    parts += ["  bash reproduce.sh --trt      built and run by TensorRT, on an NVIDIA GPU"]
    parts += ["  bash reproduce.sh --engine   the stored TensorRT engines, on the GPU that they are for", ""]
    parts += ["Needed for that: polygraphy, onnxruntime and numpy; for the GPU TensorRT too. refimpl is not."]
    if not manifest.verified:
        parts += ["", "THE BUNDLE IS UNVERIFIED: nobody has compared its islands with TensorFlow (--no-verify)."]
    parts += [_FILES.rstrip(), _ROUNDING.rstrip(), "", *(textwrap.fill(note, 118) for note in notes)]
    for island in islands:
        parts += ["", *_of_island(island)]
    return "\n".join([*parts, ""])


def _of_island(island: StoredIsland) -> list[str]:
    record = island.record
    names = zip((*island.inputs, *island.outputs), (*record.inputs, *record.outputs), strict=True)
    lines = [f"{record.name}: {len(record.ops)} TensorFlow ops of signature {island.signature}"]
    for index, (name, spec) in enumerate(names):
        side = "takes" if index < len(island.inputs) else "gives"
        lines.append(f"  {side} {name}, in TensorFlow {spec.describe()}")
    lines += [f"  form: {form.file}" for form in island.forms]
    lines += [f"  engine: {engine.file} ({engine.version})" for engine in island.engines]
    lines += [f"  sample: {item.sample.name}" + (f" ({item.unfit})" if item.unfit else "") for item in island.samples]
    return lines + [f"  missing: {item}" for item in island.missing]
