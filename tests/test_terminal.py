"""What commands print for people, with hostile names, at 60, 80 and 200 columns, with and without colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import numpy as np
import pytest
from rich.cells import cell_len as columns  # not our own: it is under test
from rich.console import Console

from refimpl import calibration, cli_calibration, cli_doctor, doctor
from refimpl.bundle import EngineRecord, IslandRecord, LeftOp, Manifest, SignatureRecord
from refimpl.converter.precision import calibrate
from refimpl.report.outputs import print_run
from refimpl.report.summary import PlanSummary, print_manifest, print_plan
from refimpl.runtime import RunResult
from refimpl.runtime.island import IslandRun
from refimpl.specs import Signature, TensorSpec

DEEP = "StatefulPartitionedCall/" * 12 + "functional_1/conv/Conv2D"
WIDE = "模型/畳み込み/" * 20
EVIL = "in\x1b[31mput\n" + "x" * 200
REASON = f"the rank of {DEEP}:0 is unknown, and engines need a fixed one (export with a fixed rank)"
ESCAPED = EVIL.encode("unicode_escape").decode()

SIGNATURE = Signature(
    "serve\x1b[2J" + "k" * 100,
    (TensorSpec(EVIL, "float32", (None, 224, 224, 3)), TensorSpec(WIDE, "int32", None)),
    (TensorSpec("o" * 300, "float32", (None,) * 8),),
)
LEFT = (
    LeftOp(name=DEEP, type="CombinedNonMaxSuppression" * 3, reason=REASON),
    LeftOp(name=WIDE, type="Svd", reason="tf2onnx has no lowering for Svd"),
    *(LeftOp(name=f"op{number}", type=f"Type{number}", reason=f"reason {number}") for number in range(13)),
)


def island(number: int) -> IslandRecord:
    engines = (
        EngineRecord(kind="onnxruntime", file=f"refimpl/islands/{number}.onnx", version="1", precision="fp32"),
        EngineRecord(kind="tensorrt", file="", version="1", precision="int8"),
    )
    return IslandRecord(
        name=f"TRTEngineOp_000_{number:03d}",
        ops=tuple((f"{DEEP}{i}", "Conv2D") for i in range(1, 4)),
        inputs=(),
        outputs=(),
        engines=engines,
        probe="",
        finite_only=False,
        precision="int8",
        verified="1 sample agrees with TensorFlow",
        notes=(f"note of {DEEP}: {WIDE}",),
        layers=((DEEP, "Conv", "fp16", REASON), ("b", "Gemm", "fp32", WIDE)),
    )


TRIED = ({"name": WIDE, "metric": 0.5, "drop": 0.1, "cost": 0.5, "verdict": f"disagrees with TensorFlow: {DEEP}"},)
MANIFEST = Manifest(
    bundle_id="0" * 16,
    created="2026-01-01T00:00:00+00:00",
    refimpl="0.1.0",
    versions={},
    source_name=WIDE,
    source_sha256="",
    tags=("serve",),
    precision="int8",
    judge="tensorrt_rtx 1.7.1.116 parser",
    verified=True,
    recipe={},
    signatures=(
        SignatureRecord(
            signature=SIGNATURE,
            converted=True,
            reason="",
            islands=tuple(map(island, range(14))),
            left=LEFT,
            ops_total=99,
            tried=TRIED,
        ),
        SignatureRecord(signature=Signature("other", (), ()), converted=False, reason=REASON),
    ),
    notes=(REASON, EVIL),
    files={"a": ""},
)
PLAN = PlanSummary(SIGNATURE, tuple(((DEEP, "Conv2D" * 30),) for _ in range(13)), LEFT, 99)
RESULT = RunResult(
    {EVIL: np.zeros((1, 2, 3), np.float32), WIDE: np.ones((1,) * 20), "text": np.array([b"a"], object)},
    (IslandRun("a", "onnxruntime", ""), IslandRun("b", "native", REASON)),
)
HEALTH = doctor.Health(
    versions={"numpy": "2", "onnx": "1" * 90},
    tensorflow="",
    processor=WIDE,
    gpus=(doctor.Gpu("G" * 90, "9.0", 80 << 30),),
    cuda_driver="13.0",
    engines=(
        doctor.EngineHealth(
            "tensorrt", "tensorrt_rtx 1.7.1.116", builds=False, executes=False, problem=REASON, seconds=1
        ),
    ),
    tensorrt=(("builds for", "sm75, " * 30), ("int8 Conv", REASON)),
    temp="/" + "t" * 90,
    temp_free_bytes=1,
)


def ranges() -> calibration.CalibrationTable:
    seen = calibrate.Histogram()
    seen.add(np.linspace(-2, 3, 5000, dtype=np.float32))
    found = {
        calibration.range_key("island", name): calibrate.range_of(seen, "minmax") for name in (DEEP, WIDE, "x" * 300)
    }
    return calibration.make_table("0" * 64, EVIL, found, method="minmax", percentile=99.99, batches=1)


PRINTED: dict[str, Callable[[Console], None]] = {
    "explain": lambda console: print_plan(console, [PLAN], MANIFEST.judge),
    "inspect": lambda console: print_manifest(console, MANIFEST, {"a": 1}),
    "run": lambda console: print_run(console, RESULT),
    "doctor": lambda console: cli_doctor.show(HEALTH, console),
    "calibration": lambda console: cli_calibration._print_table(console, ranges()),
}


def lines(name: str, width: int, **options: object) -> list[str]:
    target = Console(file=io.StringIO(), width=width, highlight=False, markup=False, **options)
    PRINTED[name](target)
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue().split("\n")


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("name", PRINTED)
def test_it_fits_and_ends_without_blanks_or_control_characters(name, width):
    found = lines(name, width)
    assert len(found) > 3
    assert [line for line in found if columns(line) > width] == []
    assert [line for line in found if line != line.rstrip()] == []
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", "\n".join(found))


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("name", ["explain", "inspect", "run", "doctor"])
def test_a_reason_can_be_read_to_its_end(name, width):
    """Its letters stand in one column: what is left and right of it is taken away."""
    found = lines(name, width)
    starts = [line.index("the rank of") for line in found if "the rank of" in line]
    assert starts, "the reason begins in no line"
    assert any(_whole(found, start) for start in {0, 2, *starts})


def _whole(found: list[str], start: int) -> bool:
    joined = "".join(line[start:] for line in found).replace(" ", "")
    return REASON.replace(" ", "") in joined


@pytest.mark.parametrize("name", PRINTED)
def test_nothing_is_said_by_colour_alone(name):
    plain = lines(name, 80)
    coloured = lines(name, 80, force_terminal=True, color_system="truecolor")
    assert [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in coloured] == plain


def test_what_is_hidden_is_counted():
    text = "\n".join(lines("inspect", 80))
    assert "... and 2 more islands" in text
    assert "... and 3 more reasons (all of them with --json)" in text
    assert "in 14 islands" in text
    assert "1 file," in text
    assert "... and 1 more island\n" in "\n".join(lines("explain", 80))


def test_one_is_singular():
    text = "\n".join(lines("run", 80))
    assert "1 island ran on onnxruntime" in text
    assert "1 islands" not in text
    assert "1 tensor," not in text
    assert "3 tensors, minmax, 1 batch" in lines("calibration", 300)[0]


def test_the_names_that_a_table_is_keyed_by_are_whole():
    """Calibration tables are edited by hand: no letter of a tensor's name may be missing."""
    text = "".join(line[:60].split("  ")[0] for line in lines("calibration", 80)).replace(" ", "")
    assert DEEP in text
