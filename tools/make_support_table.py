"""Make ``refimpl/converter/support_table.json``: which ONNX ops, of which dtypes, TensorRT's parser takes.

    python tools/make_support_table.py            writes the table for the TensorRT that is installed
    python tools/make_support_table.py --check    writes nothing; exits 1 when the table is stale
    python tools/make_support_table.py --output FILE    writes it there; see docs/support-tables/

What is asked: every node test of the onnx package whose model is one node that is valid at the opset that refimpl
lowers to. Most of those are float32, so each is asked again with every other dtype that the op's schema allows, each
with its first output only, and each with all inputs but one constant: TensorRT wants many an axis, a scale or a filter
at build time. A dtype is recorded as taken when at least one such model was.

The parser may crash on a model; it is asked in another process, which is started again behind the model that ended it.
"""

from __future__ import annotations

import argparse
import base64
import json
import subprocess
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the refimpl of this checkout, installed or not

from refimpl.converter.judge import onnx_dtype, type_parameters  # noqa: E402
from refimpl.converter.lower import OPSET  # noqa: E402
from refimpl.engines import tensorrt  # noqa: E402

TABLE = ROOT / "refimpl" / "converter" / "support_table.json"
WORKER = (sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--answer")
CRASHED = "the parser crashes on it"
SILENT = "no reason given"
# What onnx has no fitting test of: its Loops hold sequences, or bodies of older opsets; its Resizes come without the
# empty region that tf2onnx writes.
OWN = (
    (
        """own (int64 count, bool go, float[2] x) => (float[2] y) {
        y = Loop (count, go, x) <body: graph = body (int64 i, bool go_in, float[2] a) => (bool go_out, float[2] b) {
            go_out = Identity (go_in)
            b = Add (a, a)
        }>
    }""",
        (np.int64(3), np.True_, np.ones(2, np.float32)),
    ),
    (
        """own (float[1, 1, 2, 2] x, float[0] region, float[4] scales) => (float[1, 1, 4, 4] y) {
        y = Resize (x, region, scales)
    }""",
        (np.ones((1, 1, 2, 2), np.float32), np.empty(0, np.float32), np.array([1, 1, 2, 2], np.float32)),
    ),
)
_DTYPES = {onnx_dtype(kind): kind for kind in onnx.TensorProto.DataType.values()}


@dataclass(frozen=True)
class Question:
    """A model of one node, and the dtype that each type parameter of its op has in it."""

    op: str
    dtypes: Mapping[str, str]
    model: bytes


def questions() -> list[Question]:
    """All models to ask about, in a fixed order, each once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tests divide by zero on purpose
        cases = sorted(collect_testcases(None), key=lambda case: str(case.name))
    tests = [(case.model, case.data_sets[0][0] if case.data_sets else ()) for case in cases]
    head = f'<ir_version: 8, opset_import: ["": {OPSET}]> '
    own = [(onnx.parser.parse_model(head + text), values) for text, values in OWN]
    found: dict[bytes, Question] = {}
    for test, values in [*tests, *own]:
        if (model := _at_our_opset(test)) is None:
            continue
        for variant in filter(_valid, _variants(model)):
            for asked in (variant, *_with_constants(variant, values)):
                question = Question(asked.graph.node[0].op_type, _dtypes(variant), asked.SerializeToString())
                found.setdefault(question.model, question)
    return list(found.values())


def _at_our_opset(model: Any) -> Any:
    """The test's model, said to be of our opset; None when it is not one node of an op that our opset has."""
    if model is None or len(model.graph.node) != 1 or {item.domain for item in model.opset_import} != {""}:
        return None
    if not onnx.defs.has(model.graph.node[0].op_type, OPSET, ""):
        return None
    copy = _copy(model)
    copy.opset_import[0].version = OPSET
    copy.ir_version = 8
    copy.graph.node[0].name = "node"  # the parser gives its reasons by name
    return copy


def _copy(model: Any) -> Any:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _valid(model: Any) -> bool:
    """Whether the model is right at our opset; a test of a newer attribute or dtype is not."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    allowed = _allowed(model.graph.node[0].op_type)
    return all(dtype in allowed[parameter] for parameter, dtype in _dtypes(model).items())


def _allowed(op: str) -> dict[str, list[str]]:
    """Per type parameter of an op, the dtypes that its schema allows a tensor to have."""
    constraints = onnx.defs.get_schema(op, OPSET, "").type_constraints
    return {
        item.type_param_str: [name for name, kind in _DTYPES.items() if _schema_name(kind) in item.allowed_type_strs]
        for item in constraints
    }


def _schema_name(kind: int) -> str:
    return f"tensor({onnx.TensorProto.DataType.Name(kind).lower()})"


def _dtypes(model: Any) -> dict[str, str]:
    """The dtype of each type parameter of the model's op."""
    graph = model.graph
    kinds = {
        item.name: item.type.tensor_type.elem_type
        for item in [*graph.input, *graph.output]
        if item.type.HasField("tensor_type")
    }
    pairs = type_parameters(graph.node[0], OPSET)
    return {parameter: onnx_dtype(kinds[tensor]) for parameter, tensor in pairs if tensor in kinds}


def _variants(model: Any) -> Iterator[Any]:
    """The model, alone and with its first output only, each in every dtype."""
    models = [model]
    if len(model.graph.output) > 1:
        first = _copy(model)
        del first.graph.output[1:]
        del first.graph.node[0].output[1:]
        models.append(first)
    for item in models:
        yield item
        yield from _retyped(item)


def _retyped(model: Any) -> Iterator[Any]:
    """The model with one type parameter set to each other dtype, or all parameters that have the same one now."""
    current, allowed = _dtypes(model), _allowed(model.graph.node[0].op_type)
    sets = {frozenset([name]) for name in current}
    sets |= {frozenset(name for name in current if current[name] == dtype) for dtype in current.values()}
    for names in sorted(sets, key=sorted):
        old = current[min(names)]
        for new, kind in _DTYPES.items():
            # A text has no value as a number.
            if old not in (new, "string") and all(new in allowed[name] for name in names):
                yield _with_dtype(model, names, _DTYPES[old], kind)


def _with_dtype(model: Any, parameters: AbstractSet[str], old: int, new: int) -> Any:
    copy = _copy(model)
    node = copy.graph.node[0]
    bound = {tensor for parameter, tensor in type_parameters(node, OPSET) if parameter in parameters}
    for item in [*copy.graph.input, *copy.graph.output]:
        if item.name in bound:
            item.type.tensor_type.elem_type = new
    if not bound & set(node.input):  # an attribute says what comes out
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "output_datatype") and attribute.i == old:
                attribute.i = new
            elif attribute.name == "value" and new != onnx.TensorProto.STRING:
                value = onnx.numpy_helper.to_array(attribute.t)
                cast = _cast(value, onnx.helper.tensor_dtype_to_np_dtype(new))
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(cast))
    return copy


def _with_constants(model: Any, values: Sequence[Any]) -> Iterator[Any]:
    """The model with every input but one turned into a constant that holds the test's value."""
    count = len(model.graph.input)
    for kept in range(count if count > 1 else 0):
        copy = _copy(model)
        del copy.graph.input[:]
        for index, item in enumerate(model.graph.input):
            value = values[index] if index < len(values) else None
            if index == kept or not isinstance(value, np.ndarray | np.generic) or not item.type.HasField("tensor_type"):
                copy.graph.input.append(item)
                continue
            dtype = onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)
            copy.graph.initializer.append(onnx.numpy_helper.from_array(_cast(np.asarray(value), dtype), item.name))
        yield copy


def _cast(value: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if dtype.hasobject:  # ONNX's strings
        return np.array([str(item) for item in value.ravel()], dtype=object).reshape(value.shape)
    with np.errstate(all="ignore"):  # a value out of range is as good as another
        return value.astype(dtype)


def ask(models: Sequence[bytes], worker: Sequence[str] = WORKER) -> list[str]:
    """What the parser says of each model: "" when it takes it, else the reason.

    Args:
        models: serialized ModelProtos.
        worker: the command that answers; it gets two more arguments: a file with a model per line (base64), of which it
            skips as many as there are answers, and a file to which it adds an answer per line (JSON).

    Raises:
        RuntimeError: the worker fails other than by a signal.
    """
    with tempfile.TemporaryDirectory(prefix="refimpl-table-") as folder:
        asked, answered = Path(folder) / "models", Path(folder) / "answers"
        asked.write_bytes(b"".join(base64.b64encode(model) + b"\n" for model in models))
        answered.touch()
        while (done := len(answered.read_text().splitlines())) < len(models):
            result = subprocess.run([*worker, str(asked), str(answered)], capture_output=True, text=True, check=False)
            if result.returncode < 0:
                with answered.open("a") as file:
                    file.write(json.dumps(CRASHED) + "\n")
            elif result.returncode or len(answered.read_text().splitlines()) == done:
                raise RuntimeError(f"the worker failed: {result.stderr.strip()[-2000:]}")
        return [json.loads(line) for line in answered.read_text().splitlines()]


def answer(asked: Path, answered: Path) -> None:
    """The worker's side of :func:`ask`."""
    skip = len(answered.read_text().splitlines())
    with answered.open("a", buffering=1) as file:  # a line at a time: what is written survives a crash
        for line in asked.read_bytes().splitlines()[skip:]:
            refusals, whole = tensorrt.parser_refusals(base64.b64decode(line))
            reasons = [_plain(item.reason) for item in refusals] or [SILENT]
            file.write(json.dumps("" if whole else reasons[0]) + "\n")


def _plain(reason: str) -> str:
    """The parser's reason without the op, which the table names, and without what depends on this machine's driver."""
    text = reason.split(": ", 1)[1].split("[checkMacros.cpp", 1)[0]
    for noise in ("Assertion failed: ", "Invalid Node - node", "ITensor::getDimensions: "):
        text = text.replace(noise, "")
    return {"false": "not supported", "": SILENT}.get(text.strip(), text.strip()[:120].rstrip())


def make_table() -> dict[str, Any]:
    asked = questions()
    answers = ask([question.model for question in asked])
    by_op: dict[str, list[tuple[Question, str]]] = defaultdict(list)
    for question, said in zip(asked, answers, strict=True):
        by_op[question.op].append((question, said))
    return {
        "made_from": f"{tensorrt.version()} parser",
        "asked_with": f"node tests of onnx {onnx.__version__}",
        "opset": OPSET,
        "ops": {op: _row(by_op[op]) for op in sorted(by_op)},
    }


def _row(answers: Sequence[tuple[Question, str]]) -> dict[str, Any]:
    """What the table holds of one op: per type parameter the dtypes taken and refused, and the usual reason."""
    taken: dict[str, set[str]] = defaultdict(set)
    seen: dict[str, set[str]] = defaultdict(set)
    for question, said in answers:
        for parameter, dtype in question.dtypes.items():
            seen[parameter].add(dtype)
            if not said:
                taken[parameter].add(dtype)
    row: dict[str, Any] = {"taken": any(not said for _, said in answers)}
    if row["taken"]:
        row["dtypes"] = {
            name: {"taken": sorted(taken[name]), "refused": sorted(seen[name] - taken[name])} for name in sorted(seen)
        }
    texts = Counter(said for _, said in answers if said not in ("", SILENT))
    if texts or not row["taken"]:
        row["says"] = min(texts, key=lambda text: (-texts[text], text), default=SILENT)
    return row


def format_table(table: Mapping[str, Any]) -> str:
    """JSON with one op per line."""
    head = [f'  "{key}": {json.dumps(value)},' for key, value in table.items() if key != "ops"]
    rows = [f'    "{op}": {json.dumps(row, sort_keys=True)}' for op, row in table["ops"].items()]
    return "\n".join(["{", *head, '  "ops": {', ",\n".join(rows), "  }", "}"]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Make refimpl/converter/support_table.json.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the table is stale")
    parser.add_argument("--output", type=Path, default=TABLE, help="the file to write")
    parser.add_argument("--answer", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        answer(*options.answer)
        return 0
    if not tensorrt.version():
        print("neither tensorrt nor tensorrt_rtx is installed: there is no parser to ask", file=sys.stderr)
        return 2
    text = format_table(make_table())
    if not options.check:
        options.output.write_text(text, encoding="utf-8")
        return 0
    if TABLE.exists() and TABLE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{TABLE.name} is not what {tensorrt.version()} says: run tools/make_support_table.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
