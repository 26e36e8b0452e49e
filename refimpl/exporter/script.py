"""The script of an island: its (mis)match again, by stock ``polygraphy run``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from refimpl.exporter.island import StoredEngine, StoredForm, StoredIsland
from refimpl.exporter.limits import Limit, arguments, limits_for
from refimpl.exporter.samples import StoredSample

NAME = "reproduce.sh"
CONFIG = "trt_config.py"
_HEAD = r"""#!/usr/bin/env bash
# Island {name} again, by stock Polygraphy: are its answers those that TensorFlow gave?
#
#   ./reproduce.sh            the ONNX files, in ONNX Runtime on the CPU
#   ./reproduce.sh --trt      the ONNX files, built and run by TensorRT: needs an NVIDIA GPU
#   ./reproduce.sh --engine   the stored TensorRT engine: needs the GPU and the version of TensorRT that it is for
#
# Exit code: 0 they all match; 1 one does not, or cannot run; 2 there was nothing to compare.
# POLYGRAPHY=... names another polygraphy. TensorRT for RTX is a library of its own, and Polygraphy takes it when
# POLYGRAPHY_USE_TENSORRT_RTX=1 is set before it starts; set it to "" for NVIDIA TensorRT.
#
# The limits. Polygraphy passes an element when its absolute OR its relative error is within:
#     |got - want| <= max(ATOL, RTOL * |want|)
# refimpl allows the sum rtol * |want| + fixed, where fixed = of_max * max|want| + atol. The limits below are
#     ATOL = rtol * min|want| + fixed     RTOL = rtol + fixed / max|want|
# of TensorFlow's outputs, hence a run for each sample. Neither exceeds the sum for any element, so whatever passes
# here is within refimpl's tolerance. The other way Polygraphy may be stricter, by less than a factor of two.
# An output of integers whose decisions may flip has the share that must be equal as a quantile.
#
# What Polygraphy would pass over, this script does not: every output must have been compared, under its own name.

set -u
mode=${{1:---onnxrt}}
case $mode in --onnxrt | --trt | --engine) ;; *) sed -n '2,9s/^# \?//p' "${{BASH_SOURCE[0]}}" >&2; exit 2 ;; esac
cd "$(dirname "${{BASH_SOURCE[0]}}")" || exit 2
export POLYGRAPHY_USE_TENSORRT_RTX=${{POLYGRAPHY_USE_TENSORRT_RTX-{rtx}}}
[ -n "$POLYGRAPHY_USE_TENSORRT_RTX" ] || unset POLYGRAPHY_USE_TENSORRT_RTX
status=0 compared=0
log=$(mktemp) || exit 2
trap 'rm -f "$log"' EXIT

run() {{ # TITLE OUTPUTS ARGUMENTS...
    local title=$1 outputs=$2 code passed
    shift 2
    echo "--- {name}: $title"
    "${{POLYGRAPHY:-polygraphy}}" run "$@" --log-format no-colors 2>&1 | tee "$log"
    code=${{PIPESTATUS[0]}}
    passed=$(grep -c "PASSED | Output: '" "$log")
    compared=$((compared + 1))
    if grep -qE "FAILED \| (Mismatched|Output: )" "$log"; then
        echo "MISMATCH {name}: $title"
        status=1
    elif [ "$code" -ne 0 ]; then
        echo "FAILED TO RUN {name}: $title"
        status=1
    elif [ "$passed" -ne "$outputs" ] || grep -q "names did not match exactly" "$log"; then
        echo "NOT COMPARED {name}: $title: $passed of $outputs outputs, or under another name"
        status=1
    else
        echo "MATCH {name}: $title"
    fi
}}
"""
_TAIL = r"""
if [ "$compared" -eq 0 ]; then
    echo "{name}: there was nothing to compare in this mode" >&2
    exit 2
fi
exit "$status"
"""
MAIN = r"""#!/usr/bin/env bash
# Every island again, by stock Polygraphy; arguments as for the reproduce.sh of an island, which explains them.
# Exit code: 0 they all match; 1 one does not, or cannot run; 2 there was nothing to compare in one of them.

cd "$(dirname "${BASH_SOURCE[0]}")" || exit 2
status=0
for script in */reproduce.sh; do
    bash "$script" "$@"
    code=$?
    if [ "$code" -eq 1 ] || { [ "$code" -ne 0 ] && [ "$status" -eq 0 ]; }; then status=$code; fi
done
exit "$status"
"""


CONFIG_TEXT = '''"""What refimpl asks of TensorRT, for polygraphy run --trt-config-postprocess-script."""

import importlib
import os

trt = importlib.import_module(
    "tensorrt_rtx" if os.environ.get("POLYGRAPHY_USE_TENSORRT_RTX", "0") != "0" else "tensorrt"
)


def postprocess_config(builder, network, config):
    if {clear_tf32} and hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # on unless told otherwise, and its products keep 10 bits
    if hasattr(trt.BuilderFlag, "STRICT_NANS"):
        config.set_flag(trt.BuilderFlag.STRICT_NANS)  # else 0*x may become 0 and hide a NaN
'''


def config_text(*, tf32: bool) -> str:
    """The text of the builder configuration, which Polygraphy runs after its own."""
    return CONFIG_TEXT.replace("{clear_tf32}", repr(not tf32))


def script_of(island: StoredIsland, *, rtx: bool, tf32: bool) -> str:
    """The text of an island's script.

    Args:
        island: what was written of it.
        rtx: whether TensorRT for RTX is the library to take when nothing is said.
        tf32: whether its TensorRT engines may round to TF32.
    """
    name = island.record.name
    parts = [_HEAD.format(name=name, rtx="1" if rtx else "")]
    for stored in island.samples:
        if stored.unfit:
            parts.append(_told(f"--- {name}: sample {stored.sample.name} is left out: {stored.unfit}"))
            continue
        parts.append(_block("--onnxrt", [_onnxrt(island, form, stored) for form in island.forms]))
        if (profile := _profile_for(island, stored)) is None:
            parts.append(_told(f"--- {name}: no profile takes sample {stored.sample.name}: not for TensorRT"))
            continue
        parts.append(_block("--trt", [_trt(island, form, stored, profile, tf32=tf32) for form in island.forms]))
        parts.append(_block("--engine", [_engine(island, item, stored, profile) for item in island.engines]))
    return "".join([*parts, _TAIL.format(name=name)])


def _block(mode: str, calls: Sequence[str]) -> str:
    return f"\nif [ $mode = {mode} ]; then\n" + "".join(calls) + "fi\n" if calls else ""


def _told(line: str) -> str:
    return f"\necho {shlex.quote(line)}\n"


def _named(profile: int) -> list[str]:
    """Polygraphy runs by the first profile unless another is named."""
    return ["--optimization-profile", str(profile)] if profile else []


def _call(title: str, island: StoredIsland, stored: StoredSample, precision: str, options: Sequence[str]) -> str:
    """One call of ``run``, an option with its values on each line."""
    limits = limits_for(island.record, island.outputs, stored.sample, precision)
    reasons = "".join(f"    # {why}\n" for why in dict.fromkeys(item.why for item in limits))
    words = [*options, "--load-inputs", stored.inputs, "--load-outputs", stored.outputs]
    words += arguments(limits, stored.sample)
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(shlex.quote(word))
    head = f"    run {shlex.quote(f'{title}, sample {stored.sample.name}')} {len(limits)}"
    return reasons + " \\\n        ".join([head, *(" ".join(line) for line in lines if line)]) + "\n"


def _onnxrt(island: StoredIsland, form: StoredForm, stored: StoredSample) -> str:
    level = [] if form.optimize else ["--graph-optimization-level", "ORT_DISABLE_ALL"]
    title = f"{form.cpu_file} in ONNX Runtime"
    return _call(title, island, stored, form.precision, [form.cpu_file, "--onnxrt", *level])


def _trt(island: StoredIsland, form: StoredForm, stored: StoredSample, profile: int, *, tf32: bool) -> str:
    options = [form.file, "--trt", "--strongly-typed", "--trt-config-postprocess-script", CONFIG]
    for shapes in island.profiles or (_profile_of(island, stored),):
        for flag in ("min", "opt", "max") if shapes else ():
            options += [f"--trt-{flag}-shapes", *(f"{name}:{_list(part[flag])}" for name, part in shapes.items())]
    options += _named(profile)
    precision = "tf32" if tf32 and form.precision == "fp32" else form.precision
    return _call(f"{form.file} in TensorRT", island, stored, precision, options)


def _engine(island: StoredIsland, engine: StoredEngine, stored: StoredSample, profile: int) -> str:
    options = [engine.file, "--model-type", "engine", "--trt", *_named(profile)]
    return _call(f"{engine.file} ({engine.version})", island, stored, engine.precision, options)


def _profile_for(island: StoredIsland, stored: StoredSample) -> int | None:
    """The first profile that takes a sample, as TensorRT engines are run by; None when none does."""
    if not island.profiles:
        return 0
    rows = list(zip(island.inputs, stored.sample.inputs, strict=True))
    for index, profile in enumerate(island.profiles):
        taken = (
            value.reshape(-1).tolist() if name in island.value_inputs else list(value.shape) for name, value in rows
        )
        if all(_takes(profile[name], sizes) for (name, _), sizes in zip(rows, taken, strict=True)):
            return index
    return None


def _takes(part: Mapping[str, list[int]], sizes: Sequence[int]) -> bool:
    return len(part["min"]) == len(sizes) and all(
        low <= size <= high for low, size, high in zip(part["min"], sizes, part["max"], strict=True)
    )


def _profile_of(island: StoredIsland, stored: StoredSample) -> dict[str, dict[str, list[int]]]:
    """Where the bundle has no profiles: the shapes of the sample, of inputs that have no fixed shape."""
    rows = zip(island.inputs, island.record.inputs, stored.sample.inputs, strict=True)
    return {
        name: {key: list(value.shape) for key in ("min", "opt", "max")}
        for name, spec, value in rows
        if spec.shape is None or None in spec.shape
    }


def _list(sizes: Sequence[int]) -> str:
    return "[" + ",".join(map(str, sizes)) + "]"


def limits_of(island: StoredIsland) -> list[dict[str, object]]:
    """The limits that the script gives, as data for the export's manifest."""
    return [
        {"form": form.precision, "sample": stored.sample.name, "limits": [_row(item) for item in limits]}
        for form in island.forms
        for stored in island.samples
        for limits in [limits_for(island.record, island.outputs, stored.sample, form.precision)]
    ]


def _row(limit: Limit) -> dict[str, object]:
    return {"output": limit.output, "rtol": limit.rtol, "atol": limit.atol, "quantile": limit.quantile}
