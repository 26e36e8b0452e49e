"""Judge: which ops an engine can take. TensorRT's own ONNX parser decides; without it, a table made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import onnx

from refimpl.converter import graphdefs as gd
from refimpl.converter import onnxgraphs
from refimpl.converter.atoms import Atoms
from refimpl.converter.lower import OpGraph, subgraph_nodes
from refimpl.engines import rounding, tensorrt
from refimpl.progress import Counter, Tell, silent


class Judge(Protocol):
    """Decides about one ONNX graph at a time."""

    name: str

    def refused_nodes(self, model: Any, folder: Path = Path()) -> tuple[dict[str, str], bool]:
        """Node names with reasons, and whether the whole graph is taken; large weights lie in ``folder``."""

    def takes(self, file: Path) -> bool:
        """Whether a stored ONNX model is taken as a whole."""


class ParserJudge:
    """TensorRT's ONNX parser."""

    def __init__(self) -> None:
        self.name = f"{tensorrt.version()} parser"

    def refused_nodes(self, model: Any, folder: Path = Path()) -> tuple[dict[str, str], bool]:
        refusals, whole = tensorrt.parser_refusals(model.SerializeToString(), str(folder / "model.onnx"))
        return {refusal.node: f"TensorRT refuses {refusal.reason}" for refusal in refusals}, whole

    def takes(self, file: Path) -> bool:
        return tensorrt.parser_takes(file)


class TableJudge:
    """A table of ONNX ops and dtypes, made from TensorRT's parser by ``tools/make_support_table.py``; a prediction.

    It sees op types and dtypes only. The parser also looks at attributes, ranks and at what is constant, so it refuses
    some nodes that the table lets pass.
    """

    def __init__(self) -> None:
        text = resources.files("refimpl.converter").joinpath("support_table.json").read_text(encoding="utf-8")
        self._table = json.loads(text)
        self.name = f"table of ops ({self._table['made_from']}); install refimpl[rtx] for the parser itself"

    def refused_nodes(self, model: Any, folder: Path = Path()) -> tuple[dict[str, str], bool]:
        del folder  # it looks at no weight
        refused = self._refused(model.graph, {})
        return refused, not refused

    def takes(self, file: Path) -> bool:
        # What is stored says nothing of its dtypes; they are inferred, and where they cannot be, atoms will tell.
        graph = onnx.load(file, load_external_data=False)
        known = rounding.tensor_types(graph)
        graph.graph.ClearField("value_info")
        for name, kind in known.items():
            graph.graph.value_info.append(onnx.helper.make_tensor_value_info(name, kind, None))
        made = {name for node in graph.graph.node for name in node.output if name}
        return made <= known.keys() and not self._refused(graph.graph, {})

    def _refused(self, graph: Any, outer: Mapping[str, str]) -> dict[str, str]:
        dtypes = {**outer, **_known_dtypes(graph)}
        return {node.name: reason for node in graph.node if (reason := self._reason(node, dtypes))}

    def _reason(self, node: Any, dtypes: Mapping[str, str]) -> str:
        row = self._table["ops"].get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if row is None:
            return f"TensorRT has no {node.op_type} (by table)"
        if not row["taken"]:
            return f"TensorRT refuses {node.op_type}: {row['says']} (by table)"
        for parameter, tensor in type_parameters(node, self._table["opset"]):
            dtype = dtypes.get(tensor, "")
            if dtype in row["dtypes"].get(parameter, {}).get("refused", ()):
                return f"TensorRT refuses {node.op_type} of {dtype} (by table)"
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                for reason in self._refused(body, dtypes).values():
                    return f"{reason}, inside {node.op_type}"
        return ""


def _known_dtypes(graph: Any) -> dict[str, str]:
    """The dtype of every tensor of one graph that it is recorded for."""
    typed = {item.name: item.type.tensor_type.elem_type for item in [*graph.input, *graph.output, *graph.value_info]}
    typed.update({item.name: item.data_type for item in graph.initializer})
    return {name: onnx_dtype(kind) for name, kind in typed.items() if kind}


def onnx_dtype(kind: int) -> str:
    """TensorFlow's and NumPy's name of an ONNX element type: ``float32`` for ``TensorProto.FLOAT``."""
    name = str(onnx.TensorProto.DataType.Name(kind)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def type_parameters(node: Any, opset: int) -> list[tuple[str, str]]:
    """Inputs and outputs of a node whose dtype its op leaves open: (type parameter of the op's schema, tensor name).

    Raises:
        onnx.defs.SchemaError: the op is not in that opset.
    """
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    parameters = {item.type_param_str for item in schema.type_constraints}
    found = []
    for formal, names in ((schema.inputs, node.input), (schema.outputs, node.output)):
        for index, name in enumerate(names):
            declared = formal[min(index, len(formal) - 1)]  # the last one may stand for many
            if name and declared.is_homogeneous and declared.type_str in parameters:
                found.append((declared.type_str, name))
    return found


def pick_judge() -> Judge:
    """The parser where ``tensorrt`` or ``tensorrt_rtx`` is installed, else the table."""
    return ParserJudge() if tensorrt.version() else TableJudge()


def refused_ops(graph: OpGraph, atoms: Atoms, judge: Judge, ops: Sequence[str], tell: Tell = silent) -> dict[str, str]:
    """Ask about one island; when it is refused as a whole, about each of its ops, which is slow: ``tell`` is told.

    Returns:
        Ops that must leave it, with reasons; empty when all of it is taken. The parser names one cause per region, so
        what is left must be asked again.
    """
    named, whole = _ask(graph, atoms, judge, ops)
    if whole or named:
        return named
    # Refused without a name: ask op by op, and give up the island if none of them is refused alone.
    groups = list(dict.fromkeys(graph.ops[name].group for name in ops))
    asked = Counter(tell, f"asking the {judge.name} op by op", len(groups), "op")
    for group in groups:
        asked.advance()
        members = [name for name in ops if graph.ops[name].group == group]
        found, taken = _ask(graph, atoms, judge, members)
        if not taken:
            named.update(found or dict.fromkeys(members, "TensorRT refuses it without saying why"))
    return named or dict.fromkeys(ops, "TensorRT refuses this combination of ops without saying why")


def _ask(graph: OpGraph, atoms: Atoms, judge: Judge, ops: Sequence[str]) -> tuple[dict[str, str], bool]:
    _, entering, leaving = subgraph_nodes(graph, ops, marked=False)
    carried = atoms.graph.tensors()
    lost = {gd.parse_ref(t).node for t in [*entering, *leaving] if graph.onnx_name(t) not in carried}
    if lost:
        blamed = [name for name in ops if name in lost or lost & {gd.parse_ref(t).node for t in graph.ops[name].inputs}]
        return dict.fromkeys(blamed or ops, "tf2onnx folds its tensors away, so that nothing can be cut there"), False
    model = onnxgraphs.cut_out(
        atoms.graph,
        [node for name in ops for node in atoms.nodes[name]],
        {graph.onnx_name(tensor): graph.specs[tensor] for tensor in entering},
        {graph.onnx_name(tensor): graph.specs[tensor] for tensor in leaving},
    )
    refused, whole = judge.refused_nodes(model, atoms.folder)
    owners: dict[str, list[str]] = {}
    for name in ops:
        for node in atoms.nodes[name]:
            owners.setdefault(node.name, []).append(name)
    return _by_op(refused, owners), whole


def _by_op(refused: Mapping[str, str], owners: Mapping[str, list[str]]) -> dict[str, str]:
    return {op: reason for node, reason in refused.items() for op in owners.get(node, [])}
