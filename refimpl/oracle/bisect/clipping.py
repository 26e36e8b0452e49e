"""Whether int8 clips what a wrong layer reads, and whether that is what makes it wrong.

A quantized tensor holds what lies within its scale times 127; the rest becomes the end of the range. That there are
values beyond it proves nothing: a few of them may not matter. So TensorFlow is asked what it makes of clipped values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from refimpl.engines.inner import Inner, Node
from refimpl.oracle.arrays import Array
from refimpl.oracle.bisect.finding import Clipped
from refimpl.oracle.bisect.inside import Inside, Layer
from refimpl.oracle.bisect.measure import FINE, share, tolerance_of

# A TensorFlow tensor, and TensorFlow tensors before it with other values -> its value then.
Ask = Callable[[str, Mapping[str, Array]], Array]


def clippings(inside: Inside, layer: Layer, ask: Ask) -> Iterator[Clipped]:
    """The tensors that a wrong layer reads in int8 whose clipped values alone break its tolerance."""
    for node in layer.nodes:
        source = node.inputs[0] if node.op == "QuantizeLinear" else ""
        bounds = _range(inside.inner, node) if source else None
        tf = _in_tensorflow(inside, source)
        if bounds is None or not tf:
            continue
        value = inside.values[tf].astype(np.float64)
        held = np.clip(value, *bounds)
        step = (bounds[1] - bounds[0]) / 255
        beyond = np.abs(value - held) > step / 2  # what is nearer to the end of the range is rounded to it
        if not beyond.any():
            continue
        want = inside.values[layer.match.tf]
        got = ask(layer.match.tf, {tf: held.astype(inside.values[tf].dtype)})
        error = share(want, got, tolerance_of(inside.precision, want))
        if error > FINE:
            yield Clipped(
                tensor=tf,
                count=int(beyond.sum()),
                values=value.size,
                limit=max(map(abs, bounds)),
                reaches=float(np.abs(value[np.isfinite(value)]).max(initial=0.0)),
                share=error,
            )


def _range(inner: Inner, node: Node) -> tuple[float, float] | None:
    """The least and the largest value that a QuantizeLinear keeps; None when it has a scale for each channel."""
    scale = inner.scalar(node.inputs[1])
    zero = inner.scalar(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.uint8)
    if scale is None or zero is None:
        return None
    held = np.iinfo(zero.dtype)
    return float(scale) * (held.min - int(zero)), float(scale) * (held.max - int(zero))


def _in_tensorflow(inside: Inside, tensor: str) -> str:
    """The TensorFlow tensor that an ONNX tensor stands for; "" when it stands for none that is known."""
    if tensor in inside.inner.inputs:
        return inside.segment.entering[inside.inner.inputs.index(tensor)]
    return inside.matches[tensor].tf if tensor in inside.matches else ""
