"""What the engines use of TensorRT's Python API is there: in the installed library, and in NVIDIA's, by its stubs.

NVIDIA TensorRT needs a GPU to be of use and is not run in tests; the package ``tensorrt-stubs`` says what it has.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from refimpl.engines.tensorrt import library
from refimpl.engines.tensorrt.capabilities import FEATURES
from tests.contract.sources import PACKAGE, ROOT, python_files
from tests.test_tensorrt import needs_tensorrt

# Name of a variable in the code -> the class that it is of.
CLASSES = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "runtime": "Runtime",
    "engine": "ICudaEngine", "context": "IExecutionContext", "tensor": "ITensor", "error": "ParserError",
    "result": "IOptimizationProfile",
}  # fmt: skip
BUILDING = {"config": "IBuilderConfig"}  # in building.py and targets.py; elsewhere it is an IRuntimeConfig
ROOM = PACKAGE / "engines" / "tensorrt"
# Used only where they are found: capabilities.py says what happens without.
PROBED = {
    "Runtime.get_engine_validity", "ICudaEngine.create_runtime_config", "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.set_runtime_cache", "IExecutionContext.is_stream_capturable",
    "IBuilderConfig.set_compute_capability", "Builder.build_serialized_network_to_stream",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy", "IBuilderConfig.num_compute_capabilities",
}  # fmt: skip


def used() -> set[str]:
    """``Class.member`` for every member that the code names."""
    found = set()
    for file in python_files(ROOM):
        classes = {**CLASSES, "config": "IRuntimeConfig"}
        if file.name in ("building.py", "targets.py"):
            classes |= BUILDING
        else:
            classes = {name: classes[name] for name in ("runtime", "engine", "context", "config")}
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and (kind := classes.get(_receiver(node.value))):
                found.add(f"{kind}.{node.attr}")
    ours = ("TrtEngine", "close", "run", "open", "exists", "message", "fatal", "code")
    return {name for name in found if name.split(".")[1] not in ours}


def _receiver(node: ast.expr) -> str:
    """``context`` of ``context``, ``self._context`` and ``slot.context``."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name.lstrip("_")


def test_the_list_is_long_and_has_the_essentials():
    assert len(used()) > 35
    essentials = {"IExecutionContext.execute_async_v3", "IExecutionContext.set_device_memory"}
    assert used() >= essentials
    assert used() >= PROBED


@needs_tensorrt
def test_the_installed_library_has_it():
    trt = library.require()
    assert [name for name in sorted(used()) if not _has(trt, name) and name not in PROBED] == []


def _has(module, name):
    kind, member = name.split(".")
    return hasattr(getattr(module, kind, None), member)


def _stubs() -> Path | None:
    made_by_make = Path(sys.prefix) / "stubs"
    folders = [made_by_make, *map(Path, filter(None, sys.path))]
    return next((file for entry in folders if (file := entry / "tensorrt_bindings" / "tensorrt.pyi").exists()), None)


@pytest.mark.skipif(_stubs() is None, reason="tensorrt-stubs is not installed: see the Makefile")
def test_nvidia_tensorrt_has_it():
    classes = re.split(
        r"^class (\w+).*:$", _stubs().read_text(encoding="utf-8"), flags=re.MULTILINE
    )  # it is no valid Python
    members = {
        name: set(re.findall(_MEMBER, text, re.MULTILINE))
        for name, text in zip(classes[1::2], classes[2::2], strict=True)
    }
    assert "execute_async_v3" in members["IExecutionContext"]
    missing = {name for name in used() if name.split(".")[1] not in members.get(name.split(".")[0], ())}
    assert missing <= PROBED, "what is missing there is asked for before it is used"


_MEMBER = r"^    (?:def )?(\w+)[:(]"


def test_a_folder_of_stubs_is_no_library(tmp_path, monkeypatch):
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.pyi").write_text("")
    real = library.importlib.import_module
    monkeypatch.setattr(library.importlib, "import_module", lambda name: real(name) if name == "tensorrt" else None)
    monkeypatch.syspath_prepend(str(tmp_path))
    library.module.cache_clear()
    try:
        assert library.module() is None
    finally:
        monkeypatch.undo()
        sys.modules.pop("tensorrt", None)
        library.module.cache_clear()


def test_the_table_of_differences_is_that_of_the_code():
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    for item in FEATURES:
        assert f"| {item.name} | {item.without} | {item.rtx} | {item.nvidia} |" in text
