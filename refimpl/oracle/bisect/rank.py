"""Layers in float16, bfloat16 or int8, ranked by the error that each brings by itself, and which to keep in float32.

A layer's own error is measured twice: in what it makes of TensorFlow's values, and in what TensorFlow makes of that,
up to the signature's outputs. Which layers to keep is found by trying: a layer is "in float32" when TensorFlow computes
its result, from the operands that it really gets, and the rest of the island goes on with that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.bundle import IslandRecord
from refimpl.errors import RunError
from refimpl.oracle.arrays import Array
from refimpl.oracle.bisect.cuts import CaseSearch, finite
from refimpl.oracle.bisect.finding import RankedLayer, Ranking
from refimpl.oracle.bisect.inside import Inside, Layer
from refimpl.oracle.bisect.keep import REDUCED, command, patterns
from refimpl.oracle.bisect.measure import is_float, relative, share, tolerance_of
from refimpl.oracle.bisect.reference import Segment

ENOUGH = 0.5  # of a tolerance; the converter, too, leaves the other half to the GPU
_TRIED = 64  # layers whose error is followed up to the outputs
_MOST = 8  # layers that are proposed to be kept


@dataclass(frozen=True, slots=True)
class _Candidate:
    inside: Inside
    tensor: str
    layer: Layer
    ranked: RankedLayer


def rank(search: CaseSearch) -> Ranking | None:
    """Rank the layers of all islands of a signature on one case.

    Returns:
        None when no layer in a reduced precision could be told apart.
    """
    candidates = [item for island, segment in search.islands.values() for item in _candidates(search, island, segment)]
    if not candidates:
        return None
    candidates.sort(key=lambda item: -_order(item.ranked.local))
    measured = [_followed(search, item) for item in candidates[:_TRIED]] + candidates[_TRIED:]
    measured.sort(key=lambda item: (-_order(item.ranked.output), -_order(item.ranked.local)))
    before = max(_left(item.inside, {}) for item in measured)
    kept, after = _repaired(search, measured) if before > ENOUGH else ([], before)
    names = patterns(search.opened.manifest, [item.ranked.layer for item in kept])
    return Ranking(
        signature=search.case.signature,
        case=search.case.name,
        layers=tuple(item.ranked for item in measured),
        before=before,
        after=after,
        keep=names,
        command=command(search.opened.manifest, names) if names else "",
    )


def _candidates(search: CaseSearch, island: IslandRecord, segment: Segment) -> list[_Candidate]:
    """The layers of one island, those that compute in a reduced precision."""
    precisions = {name: precision for name, _, precision, _ in island.layers if precision in REDUCED}
    cut = search.cut(island, segment)
    if not precisions or not all(finite(value) for value in cut.entering):
        return []
    values = search.opened.values(search.case, segment, cut.entering)
    direct = search.opened.direct(island)
    inside = Inside(search.opened.inner(island), segment, search.reference.ops, values, direct.precision)
    found = []
    for tensor in inside.order:
        layer = inside.layer(tensor)
        named = [node.name for node in layer.nodes if node.name in precisions]
        if named and is_float(values[layer.match.tf]):
            op = layer.main()
            ranked = RankedLayer(
                island=island.name,
                layer=named[-1],
                op=(op.name, op.type),
                precision=precisions[named[-1]],
                local=relative(values[layer.match.tf], layer.got),
                output=None,
            )
            found.append(_Candidate(inside, tensor, layer, ranked))
    return found


def _followed(search: CaseSearch, item: _Candidate) -> _Candidate:
    """The layer's error, as it comes out of the signature when all else is TensorFlow's."""
    tf = item.layer.match.tf
    results = search.reference.results
    wrong = item.layer.got.astype(item.inside.values[tf].dtype)
    try:
        got = search.reference.run(search.case.inputs, results.values(), {tf: wrong})
    except RunError:
        return item
    errors = [_distance(search.golden[name], got[name]) for name in results.values()]
    ranked = RankedLayer(
        island=item.ranked.island,
        layer=item.ranked.layer,
        op=item.ranked.op,
        precision=item.ranked.precision,
        local=item.ranked.local,
        output=max(errors, default=0.0),
    )
    return _Candidate(item.inside, item.tensor, item.layer, ranked)


def _distance(want: Array, got: Array) -> float:
    """The relative error; for whole numbers and strings, the share that is wrong."""
    if want.shape != got.shape:
        return math.inf
    if is_float(want) and want.dtype.kind != "c":
        finite_both = np.isfinite(want.astype(np.float64))
        return relative(want[finite_both], got[finite_both])
    return float(np.mean(np.asarray(want != got))) if want.size else 0.0


def _repaired(search: CaseSearch, ranked: Sequence[_Candidate]) -> tuple[list[_Candidate], float]:
    """As few layers as bring every island within half of its tolerance, the most costly first; none if none do."""
    kept: list[_Candidate] = []
    islands = {id(item.inside): item.inside for item in ranked}
    left = {key: _left(inside, {}) for key, inside in islands.items()}
    before = max(left.values())
    for key, inside in islands.items():
        own: list[_Candidate] = []
        for item in [item for item in ranked if item.inside is inside][:_MOST]:
            if left[key] <= ENOUGH:
                break
            own.append(item)
            left[key] = _left(inside, _in_float32(search, own))
        kept += own
    after = max(left.values())
    return (kept, after) if after < before else ([], before)


def _in_float32(search: CaseSearch, kept: Iterable[_Candidate]) -> dict[str, Array]:
    """What the tensors of some layers are when TensorFlow computes these layers, from what they really get."""
    given: dict[str, Array] = {}
    chosen = {item.tensor: item for item in kept}
    for tensor in [name for item in chosen.values() for name in item.inside.order if name in chosen]:
        if tensor in given:
            continue
        inside = chosen[tensor].inside
        found = inside.run(given)
        feeds = {}
        for source in inside.sources(tensor):
            if source in inside.matches:
                match = inside.matches[source]
                want = inside.values[match.tf]
                value = match.to_tf(given.get(source, found[source]), want.shape)
                feeds[match.tf] = value.astype(want.dtype)
        match = inside.matches[tensor]
        (value,) = search.reference.run(search.case.inputs, [match.tf], feeds).values()
        given[tensor] = match.to_onnx(value, inside.seen[tensor].shape)
    return given


def _left(inside: Inside, given: Mapping[str, Array]) -> float:
    """The largest error of an island's outputs, as a share of the tolerance, with some tensors given."""
    found = inside.run(given)
    worst = 0.0
    for name in inside.inner.outputs:
        if name in inside.matches:
            match = inside.matches[name]
            want = inside.values[match.tf]
            got = match.to_tf(given.get(name, found[name]), want.shape)
            worst = max(worst, share(want, got, tolerance_of(inside.precision, want)))
    return worst


def _order(error: float | None) -> float:
    return -1.0 if error is None else math.inf if math.isnan(error) else error
