"""A report of a made-up bundle of any size: blocks of a residual network, cut by ops that stay in TensorFlow."""

from __future__ import annotations

import random

from refimpl.advice import advise_bundle
from refimpl.bundle import EngineRecord, IslandRecord, LeftOp, Manifest, SignatureRecord
from refimpl.graph_record import GraphOp, SignatureGraph
from refimpl.recipe import Recipe
from refimpl.report.html.document import Material
from refimpl.specs import Signature, TensorSpec

_REASON = "strings have no place in TensorRT"
_KINDS = ("Conv2D", "BiasAdd", "Relu", "AddV2", "Mul", "MaxPool")


def synthetic(ops: int, cut_every: int = 500, seed: int = 0) -> Material:
    """What a report of that many ops is made from.

    Args:
        ops: how many.
        cut_every: after how many of them one stays in TensorFlow.
        seed: of the shortcuts between blocks.
    """
    random_source = random.Random(seed)
    made: list[GraphOp] = []
    for index in range(ops):
        number = index // cut_every
        cut = index % cut_every == cut_every - 1
        start = number * cut_every
        inputs = [index - 1] if index else []
        if not cut and index % 6 == 3 and index - start > 8:
            inputs.append(index - random_source.randint(2, 8))
        made.append(
            GraphOp(
                name=f"model/stage_{number}/block_{index // 6}/{'AsString' if cut else _KINDS[index % 6]}_{index}",
                type="AsString" if cut else _KINDS[index % 6],
                island="" if cut else f"TRTEngineOp_000_{number:03d}",
                reason=_REASON if cut else "",
                inputs=tuple(inputs),
                outputs=("string[?,56,56,64]" if cut else "float32[?,56,56,64]",),
                slots=(0,) * len(inputs),
                feeds=() if index else ("image",),
                group=index,
            )
        )
    spec_in, spec_out = TensorSpec("image", "float32", (None, 56, 56, 64)), TensorSpec("output", "float32", (None, 10))
    graph = SignatureGraph("serving_default", tuple(made), (spec_in,), (spec_out,), ((ops - 1, 0),))
    manifest = _manifest(graph)
    graphs = {graph.key: graph}
    advice = tuple(item.to_json() for item in advise_bundle(manifest, graphs))
    sizes = {engine.file: 1 << 20 for island in manifest.islands for engine in island.engines}
    return Material(name="synthetic", manifest=manifest, sizes=sizes, graphs=graphs, advice=advice)


def _manifest(graph: SignatureGraph) -> Manifest:
    signature = Signature(graph.key, graph.inputs, graph.outputs)
    record = SignatureRecord(
        signature=signature,
        converted=True,
        reason="",
        islands=tuple(_island(graph, name) for name in graph.islands),
        left=tuple(LeftOp(name=op.name, type=op.type, reason=op.reason) for op in graph.ops if op.reason),
        ops_total=len(graph.ops),
    )
    return Manifest(
        bundle_id="0" * 16,
        created="2026-01-01T00:00:00+00:00",
        refimpl="0.1.0",
        versions={"python": "3.11"},
        source_name="synthetic",
        source_sha256="0" * 64,
        tags=("serve",),
        precision="fp32",
        judge="nobody: this bundle is made up",
        verified=True,
        recipe=Recipe().to_json(),
        signatures=(record,),
        timings={"load": 1.0, "plan": 2.0, "build": 4.0},
        peak_megabytes={"load": 500, "plan": 800, "build": 1200},
    )


def _island(graph: SignatureGraph, name: str) -> IslandRecord:
    engine = EngineRecord(kind="onnxruntime", file=f"refimpl/islands/{name}.onnx", version="made up", precision="fp32")
    return IslandRecord(
        name=name,
        ops=tuple((op.name, op.type) for op in graph.ops if op.island == name),
        inputs=graph.inputs,
        outputs=graph.outputs,
        engines=(engine,),
        probe="",
        finite_only=False,
        precision="fp32",
        verified="9 samples agree with TensorFlow",
    )
