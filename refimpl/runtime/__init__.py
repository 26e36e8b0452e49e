"""Run a bundle: the function behind every engine node, and :func:`load` for people who want names, traces and checks.

``import refimpl`` registers :func:`call_engine` with TensorFlow; from then on ``tf.saved_model.load`` on a bundle is
enough.
"""

from __future__ import annotations

from refimpl.runtime.direct import direct_answer
from refimpl.runtime.island import BY_DESIGN, DISALLOWED, EMPTY, MADE_NOT_FINITE, NATIVE, NOT_FINITE, IslandRun
from refimpl.runtime.loaded import LoadedBundle, RunResult, load
from refimpl.runtime.opened import TOKEN, BundleRuntime, IslandCall, call_engine, engines_off, forget, runtime_of
from refimpl.runtime.opened import open_bundles as _open_bundles
from refimpl.runtime.opened import runtime_of as _runtime
from refimpl.runtime.probes import read_probe, write_probe

__all__ = [
    "BY_DESIGN",
    "DISALLOWED",
    "EMPTY",
    "MADE_NOT_FINITE",
    "NATIVE",
    "NOT_FINITE",
    "TOKEN",
    "BundleRuntime",
    "IslandCall",
    "IslandRun",
    "LoadedBundle",
    "RunResult",
    "_open_bundles",
    "_runtime",
    "call_engine",
    "direct_answer",
    "engines_off",
    "forget",
    "load",
    "read_probe",
    "runtime_of",
    "write_probe",
]
