"""The environment: strict flags, versions, and TensorFlow missing or present."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from refimpl import env
from refimpl.errors import RecipeError, UnsupportedError


@pytest.mark.parametrize(("raw", "expected"), [("0", False), ("1", True)])
def test_flag_reads_zero_and_one(raw, expected):
    assert env.flag("IT", default=not expected, environ={"IT": raw}) is expected


@pytest.mark.parametrize("default", [True, False])
def test_flag_that_is_not_set_has_its_default(default):
    assert env.flag("IT", default=default, environ={}) is default


@pytest.mark.parametrize("raw", ["", "yes", "true", "2", " 1", "off"])
def test_flag_refuses_everything_else(raw):
    with pytest.raises(RecipeError, match="IT") as caught:
        env.flag("IT", default=False, environ={"IT": raw})
    assert "0 or 1" in caught.value.hint


def test_versions_name_what_is_installed():
    versions = env.versions()
    assert versions["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    assert {"numpy", "onnx", "onnxruntime"} <= versions.keys()
    assert all(versions.values())


def test_fingerprint_changes_with_the_environment(monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    off = env.fingerprint_digest()
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    assert env.fingerprint_digest() != off
    assert len(off) == 12


def test_missing_tensorflow_names_the_extras(monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="not installed") as caught:
        env.require_tensorflow()
    assert "refimpl[cpu]" in caught.value.hint
    assert "refimpl[cuda]" in caught.value.hint


def _fresh(code: str, **environ: str) -> dict[str, object]:
    """Run code in a fresh process that prints JSON."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("TF_", "REFIMPL_"))}
    command = [sys.executable, "-c", f"import json, os, sys\nfrom refimpl import env\n{code}"]
    done = subprocess.run(command, env={**clean, **environ}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_tensorflow_starts_quietly_unless_asked():
    code = "env.require_tensorflow(); print(json.dumps(os.environ.get('TF_CPP_MIN_LOG_LEVEL')))"
    assert _fresh(code) == "2"
    assert _fresh(code, REFIMPL_TF_LOGS="1") is None
    assert _fresh(code, TF_CPP_MIN_LOG_LEVEL="0") == "0"  # what the user set wins


def test_onednn_can_only_be_turned_off_before_tensorflow():
    before = "print(json.dumps([env.turn_onednn_off(), os.environ['TF_ENABLE_ONEDNN_OPTS']]))"
    assert _fresh(before) == [True, "0"]
    after = "sys.modules['tensorflow'] = json; print(json.dumps(env.turn_onednn_off()))"
    assert _fresh(after) is False
