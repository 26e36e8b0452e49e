"""Imports point down, the two wings do not see each other, and each vendor library has its rooms."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.contract.sources import PACKAGE, imports, python_files

LAYER = {
    "errors": 0, "places": 0, "text": 0,
    "accuracy": 1, "specs": 1, "tolerance": 1, "env": 1, "gpus": 1, "memory": 1, "npz": 1, "progress": 1, "tables": 1,
    "trees": 1, "user_code": 1, "vendoring": 1,
    "troubleshooting": 1,
    "terminal": 2, "progress_bar": 2,
    "recipe": 2, "artifacts": 2, "calibration": 2, "metrics": 2, "numerics": 2,
    "cache": 2, "engines": 3, "partition": 3, "tf_private": 3, "tftrt_env": 3,
    "bundle": 4, "engine_cache": 4, "graph_record": 4, "profiles": 4,
    "advice": 5, "diff": 5, "runtime": 5,
    "converter": 6, "oracle": 6, "report": 6, "doctor": 6, "hook": 6, "exporter": 6,
    "export_extras": 7, "polygraphy_runners": 7, "cli_shared": 7,
    "api": 8, "cli_record": 8, "cli_report": 8, "cli_help": 8,
    "trt_convert": 9, "cli_bisect": 9, "cli_cache": 9, "cli_calibration": 9, "cli_convert": 9, "cli_check": 9,
    "cli_completion": 9, "cli_diff": 9, "cli_doctor": 9, "cli_group": 9, "cli_run": 9,
    "cli_explain": 10, "cli_export": 10, "cli_picture": 9,
    "cli": 11,
}  # fmt: skip

# Who may import a library. A folder stands for everything in it. What is not named here, anybody may import.
ROOMS = {
    "tensorflow.python": ["tf_private.py"],
    "tensorflow": [
        "converter/",
        "polygraphy_runners.py",
        "oracle/runners.py",
        "runtime/",
        "tf_private.py",
        "trt_convert/",
    ],
    "keras": [],
    "tensorrt": ["engines/tensorrt/"],
    "tensorrt_rtx": ["engines/tensorrt/"],
    "jinja2": ["report/html/render.py"],
    "markupsafe": ["report/html/render.py"],
    "onnxruntime": ["converter/", "engines/onnxruntime.py"],
    "onnx": ["converter/", "engines/", "doctor.py"],
    "onnx_graphsurgeon": ["converter/"],
    "tf2onnx": ["converter/"],
    "polygraphy": ["engines/", "oracle/second_opinion.py", "exporter/", "polygraphy_runners.py"],
    "click": [
        "cli.py",
        "cli_bisect.py",
        "cli_cache.py",
        "cli_calibration.py",
        "cli_convert.py",
        "cli_diff.py",
        "cli_explain.py",
        "cli_export.py",
        "cli_help.py",
        "cli_picture.py",
        "cli_check.py",
        "cli_record.py",
        "cli_report.py",
        "cli_completion.py",
        "cli_doctor.py",
        "cli_group.py",
        "cli_run.py",
        "cli_shared.py",
    ],
    "rich": [
        "cli.py",
        "cli_bisect.py",
        "cli_cache.py",
        "cli_calibration.py",
        "progress_bar.py",
        "terminal.py",
        "cli_check.py",
        "cli_doctor.py",
        "oracle/bisect/render.py",
        "oracle/render.py",
        "report/",
    ],
}
FILES = {file.relative_to(PACKAGE).as_posix(): file for file in python_files(PACKAGE)}


def room_of(name: str) -> str:
    return name.split("/", maxsplit=1)[0].removesuffix(".py")


def test_every_room_has_a_layer():
    rooms = {room_of(name) for name in FILES} - {"__init__", "__main__"}
    assert rooms <= LAYER.keys(), f"give {sorted(rooms - LAYER.keys())} a layer"


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_point_down(name):
    me = room_of(name)
    if me in {"__init__", "__main__"}:
        return  # they only re-export
    for module in imports(FILES[name]):
        parts = module.split(".")
        if parts[0] != "refimpl" or len(parts) < 2 or parts[1] == "__version__":
            continue
        other = parts[1]
        assert other in LAYER, f"{name} imports {module}: not a room"
        assert other == me or LAYER[other] < LAYER[me], f"{me} may not import {other}"


def owner_of(module: str) -> str | None:
    """The longest name in ``ROOMS`` that a module lies under."""
    under = [library for library in ROOMS if module == library or module.startswith(library + ".")]
    return max(under, key=len, default=None)


@pytest.mark.parametrize("name", sorted(FILES))
def test_vendors_stay_in_their_rooms(name):
    for module in imports(FILES[name]):
        if (library := owner_of(module)) is not None:
            allowed = ROOMS[library]
            assert any(name == room or (room.endswith("/") and name.startswith(room)) for room in allowed), (
                f"{name} imports {module}; only {allowed} may"
            )


@pytest.mark.parametrize("module", ["refimpl", "refimpl.cli"])
def test_importing_imports_no_vendor(module):
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {set(ROOMS) - {'click', 'rich'}!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_walls_would_notice():
    assert owner_of("tensorflow.python.framework.ops") == "tensorflow.python"
    assert owner_of("tensorflow.core.framework") == "tensorflow"
    assert owner_of("tensorflow_text") is None
    assert LAYER["converter"] == LAYER["oracle"], "neither wing may import the other"
