"""Advice on one signature spares the others: options of a conversion hold for all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from refimpl import bundle
from refimpl.advice import Advice, advise_bundle
from refimpl.advice.what_if import Partitioner
from refimpl.bundle import SignatureRecord
from refimpl.graph_record import read_graphs
from refimpl.recipe import Recipe
from tests.bundles import make_bundle

FOLDER = ("several_signatures", Recipe(signatures=("*",)))


def sizes() -> dict[str, int]:
    """Signature -> the size of its island."""
    folder = make_bundle(*FOLDER)
    recipe = bundle.read(folder).recipe
    return {key: max(Partitioner(graph, recipe).sizes().values()) for key, graph in read_graphs(folder).items()}


def slow_alone(key: str) -> Advice:
    """The advice when the islands of one signature cost more than they can win, and those of the others do not."""
    folder = make_bundle(*FOLDER)
    manifest = bundle.read(folder)

    def timed(record: SignatureRecord) -> SignatureRecord:
        tensorflow = 1e-6 if record.signature.key == key else 1e-3
        timing = {"crossing": 1e-5, "tensorflow": tensorflow, "bytes": 8}
        return replace(record, islands=tuple(replace(island, timing=timing) for island in record.islands))

    manifest = replace(manifest, signatures=tuple(map(timed, manifest.signatures)))
    (found,) = (item for item in advise_bundle(manifest, read_graphs(folder)) if item.family == "slow-islands")
    assert found.signature == key
    return found


@pytest.mark.parametrize("pick", [min, max])
def test_a_size_is_named_only_where_it_spares_every_other_signature(pick):
    found = sizes()
    assert len(set(found.values())) > 1
    chosen = pick(found, key=lambda key: found[key])
    alone = all(size > found[chosen] for key, size in found.items() if key != chosen)
    assert ("--min-segment-size" in slow_alone(chosen).action) == alone
