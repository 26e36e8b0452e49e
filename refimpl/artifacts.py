"""What passes between the stages of a conversion: frozen records, no behaviour, no vendor imports.

Protobuf and ONNX objects ride along as ``Any``; a stage that receives one treats it as read-only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.specs import Shape, Signature, TensorSpec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Arg:
    """An argument of a signature's graph; a Placeholder of this name stands for it there."""

    name: str  # node name in SignatureGraph.graph_def
    kind: str  # "input", "variable" (a handle), "value" (a TF1 reference variable), "resource" (a table)
    key: str  # the signature's key of an input, else ""
    dtype: str  # of the tensor or of the variable's value; "resource" for tables
    tensor: str  # tensor of the SavedModel's own graph that feeds it
    shape: Shape


@dataclass(frozen=True, slots=True)
class SignatureGraph:
    """One signature with every function call inlined (load)."""

    signature: Signature
    graph_def: Any  # tensorflow GraphDef
    args: tuple[Arg, ...]
    results: tuple[str, ...]  # tensor names in graph_def, one per signature output


@dataclass(frozen=True, slots=True)
class Op:
    """A TensorFlow op of a signature's graph, as the partitioner sees it."""

    name: str
    type: str
    inputs: tuple[str, ...]  # tensors "node:index" it reads, constants left out
    controls: tuple[str, ...]  # ops that must run before it
    outputs: tuple[TensorSpec, ...]  # its tensors, named "node:index"
    constants: tuple[str, ...]  # constant nodes it reads
    group: int  # ops of one group share an atom and are never parted
