"""The ``TF_TRT_*`` variables of TF-TRT: one table, and the one place where their values get a meaning.

Scripts that set them go on working. They are read when they are needed, as TF-TRT read them, so a script may also
change them between two calls. ``docs/migrating-from-tf-trt.md`` shows the table to users; a test compares the two.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refimpl import env
from refimpl.errors import RecipeError

PREFIX = "TF_TRT_"
# What TF_TRT_EXPERIMENTAL_FEATURES may name, and why some of it does nothing here.
FEATURES = {
    "disable_graph_freezing": "",
    "reject_all_fp_cast_ops": "",
    "remove_native_segments": "TensorFlow runs an island's native segment when no engine can, so none is removed",
    "disable_logger_filtering": "TensorRT's messages are in the errors and the log of the build that they belong to",
}
_log = logging.getLogger("refimpl.trt_convert")


@dataclass(frozen=True, slots=True)
class Variable:
    """One row of the table.

    Attributes:
        name: of the variable.
        kind: ``bool`` (0, 1, true, false), ``int``, ``csv`` (a list with commas) or ``text``.
        default: the text that leaving it unset means; "" for nothing at all.
        ours: our name for the choice, or "" where it has no effect here.
        meaning: what it does, or why it does nothing.
    """

    name: str
    kind: str
    default: str
    ours: str
    meaning: str


_TACTICS = "TensorRT chooses its tactics itself"
TABLE = (
    Variable(
        "TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION",
        "bool",
        "true",
        "refimpl.load(engines=...)",
        "false: an island that no engine can run is an error instead of running in TensorFlow",
    ),
    Variable(
        "TF_TRT_ABORT_CUDA_ENGINE_BUILD",
        "bool",
        "false",
        "Recipe.build_at_runtime",
        "true: every build of a TensorRT engine fails (for tests)",
    ),
    Variable("TF_TRT_MAX_ALLOWED_ENGINES", "int", "20", "Recipe.max_engines", "keep the N largest; 0 or less: all"),
    Variable("TF_TRT_OP_DENYLIST", "csv", "", "Recipe.keep_in_tf", "op types that stay in TensorFlow"),
    Variable("TF_TRT_OP_FAKELIST", "csv", "", "", "an op cannot be pretended to convert: every island is verified"),
    Variable(
        "TF_TRT_SHOW_DETAILED_REPORT",
        "text",
        "",
        "refimpl explain",
        "a number from 1 on: the report says reasons; text: it is also written there as CSV",
    ),
    Variable(
        "TF_TRT_EXPERIMENTAL_FEATURES",
        "csv",
        "",
        "Recipe.keep_in_tf",
        "reject_all_fp_cast_ops keeps Cast in TensorFlow; the other features have no effect",
    ),
    Variable(
        "TF_TRT_EXPORT_TRT_ENGINES_PATH",
        "text",
        "",
        "refimpl export",
        "folder for raw TensorRT plans, at save(), and beside them an export of the bundle",
    ),
    Variable("TF_TRT_EXPORT_GRAPH_VIZ_PATH", "text", "", "refimpl inspect", "Graphviz file of the converted graph"),
    Variable("TF_TRT_ENABLE_LAYOUT_OPTIMIZER", "bool", "true", "", "layouts are chosen by TensorRT"),
    Variable("TF_TRT_SPARSE_MODE", "int", "1", "", "weights are never pruned"),
    Variable("TF_TRT_FIXED_ALGORITHM_ID", "int", "", "", _TACTICS),
    Variable("TF_TRT_ALLOW_NMS_TOPK_OVERRIDE", "bool", "false", "", "today's TensorRT has no such limit"),
    Variable("TF_TRT_BENCHMARK_EARLY_QUIT", "int", "", "", "only NVIDIA's benchmark scripts read it"),
)
_BY_NAME = {row.name: row for row in TABLE}
NATIVE = "TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION"
ABORT = "TF_TRT_ABORT_CUDA_ENGINE_BUILD"
# Names that people set and TF-TRT never read, and what they meant.
MISTAKEN = {
    "TF_TRT_DISABLE": "minimum_segment_size=-1",
    "TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT": NATIVE,
    "TF_TRT_USE_NATIVE_SEGMENT_EXECUTION": NATIVE,
    "TF_TRT_ALLOW_CUSTOM_OPS": "nothing: ops without a lowering stay in TensorFlow",
    "TF_TRT_USE_IMPLICIT_BATCH": "use_dynamic_shape",
    "TF_TRT_ENABLE_FULL_PRECISION": "precision_mode='FP32'",
    "TF_TRT_IS_AVAILABLE": "the command refimpl doctor",
    "TF_TRT_USE_EFFICIENT_NMS_PLUGIN": "nothing: it was chosen when TensorFlow was compiled",
    "TF_TRT_TIMING_CACHE_DIR": "nothing: only forks of TensorFlow read it",
    "TF_TRT_FORCE_BILINEAR_RESIZE_WAR": "nothing: only forks of TensorFlow read it",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the variables say, with TF-TRT's defaults."""

    native_allowed: bool = True
    abort_builds: bool = False
    max_engines: int = 20  # 0: no limit
    denylist: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    detailed_report: bool = False
    csv_path: str = ""
    engines_path: str = ""
    dot_path: str = ""


def read(environ: Mapping[str, str] | None = None) -> Settings:
    """The variables as they are now.

    Raises:
        RecipeError: a value cannot be understood; the message names the variable.
    """
    given = env.variables(PREFIX) if environ is None else environ
    report = _value(given, "TF_TRT_SHOW_DETAILED_REPORT").strip()
    number = _as_number(report)
    return Settings(
        native_allowed=_boolean(given, NATIVE),
        abort_builds=_boolean(given, ABORT),
        max_engines=max(0, _integer(given, "TF_TRT_MAX_ALLOWED_ENGINES")),
        denylist=_items(given, "TF_TRT_OP_DENYLIST"),
        features=_items(given, "TF_TRT_EXPERIMENTAL_FEATURES"),
        detailed_report=bool(report) and (number is None or number >= 1),
        csv_path=report if report and number is None else "",
        engines_path=_value(given, "TF_TRT_EXPORT_TRT_ENGINES_PATH"),
        dot_path=_value(given, "TF_TRT_EXPORT_GRAPH_VIZ_PATH"),
    )


# Asked while a model runs, so alone: another variable's typing error must not stop a call.


def native_allowed() -> bool:
    """Whether islands may run in TensorFlow when no engine can."""
    return _boolean(env.variables(NATIVE), NATIVE)


def abort_builds() -> bool:
    """Whether every build of a TensorRT engine is to fail."""
    return _boolean(env.variables(ABORT), ABORT)


def warnings(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """One sentence for every variable that is set and does nothing: unknown names, and choices that are gone."""
    given = env.variables(PREFIX) if environ is None else environ
    return tuple(text for name in sorted(given) if (text := _idle(name, given[name])))


_told: set[str] = set()


def warn_once() -> None:
    """Log :func:`warnings`, each sentence once per process."""
    for text in warnings():
        if text not in _told:
            _told.add(text)
            _log.warning(text)


def _idle(name: str, value: str) -> str:
    if name in MISTAKEN:
        return f"{name} is set, but nothing reads it and TF-TRT never did; use {MISTAKEN[name]}"
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, n=1)
        return f"{name} is set, but nothing reads it" + (f"; did you mean {near[0]}?" if near else "")
    row = _BY_NAME[name]
    if not row.ours and value.strip() not in ("", row.default):
        return f"{name}={value} has no effect: {row.meaning}"
    return _idle_features(name, _split(value)) if row.name.endswith("_FEATURES") else ""


def _idle_features(name: str, features: Sequence[str]) -> str:
    if unknown := [item for item in features if item not in FEATURES]:
        return f"{name} names {unknown[0]!r}, which is no feature; there are {', '.join(FEATURES)}"
    idle = [f"{item} has no effect: {FEATURES[item]}" for item in features if FEATURES[item]]
    return f"{name}: {'; '.join(idle)}" if idle else ""


def _value(given: Mapping[str, str], name: str) -> str:
    """An empty value is none: ``NAME=`` is how a container's settings unset a variable."""
    value = given.get(name, "")
    return value if value.strip() else _BY_NAME[name].default


def _boolean(given: Mapping[str, str], name: str) -> bool:
    text = _value(given, name).strip().lower()
    if text not in ("0", "1", "true", "false"):
        raise RecipeError(f"environment variable {name} is {given[name]!r}", hint="set it to 0, 1, true or false")
    return text in ("1", "true")


def _integer(given: Mapping[str, str], name: str) -> int:
    number = _as_number(_value(given, name))
    if number is None:
        raise RecipeError(f"environment variable {name} is {given[name]!r}", hint="set it to an integer")
    return number


def _as_number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _items(given: Mapping[str, str], name: str) -> tuple[str, ...]:
    return _split(_value(given, name))


def _split(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())
