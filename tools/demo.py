"""Convert, run and check a real network, step by step, with the commands that a person would type.

    make demo                    or: python tools/demo.py

Everything lands in demo_out/, which is removed first if a former demo left it. A step that fails ends the demo and is
named. The exit code is that of the last step, ``refimpl check``: 0 when the bundle gives TensorFlow's answers.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "demo_out"
MARK = OUT / ".made-by-the-demo"

MAKE_MODEL = """\
import keras
import numpy as np

keras.utils.set_random_seed(7)
image = keras.Input((224, 224, 3), name="image")
model = keras.applications.MobileNetV2(weights=None, input_tensor=image)
# No download: the weights are random. One batch of noise gives the normalisations the statistics of real
# activations; without them every image would get the same answer.
for layer in model.layers:
    if isinstance(layer, keras.layers.BatchNormalization):
        layer.momentum = 0.0
noise = np.random.default_rng(7).standard_normal((8, 224, 224, 3)).astype("float32")
model(noise, training=True)
model.export("demo_out/model", verbose=False)
print(f"MobileNetV2, {model.count_params():,} parameters, exported to demo_out/model")
"""

USE_BUNDLE = """\
import numpy as np
import tensorflow as tf

import refimpl  # this line is all that a program needs beside TensorFlow

image = tf.constant(np.random.default_rng(8).standard_normal((4, 224, 224, 3)).astype("float32"))
answers = {}
for name in ("model", "bundle"):
    signature = tf.saved_model.load(f"demo_out/{name}").signatures["serving_default"]
    (answers[name],) = signature(image=image).values()
    print(f"{name:6}  best classes {tf.argmax(answers[name], axis=1).numpy().tolist()}")
print(f"largest difference {np.abs(answers['model'] - answers['bundle']).max():.1e}")
"""


@dataclass(frozen=True)
class Step:
    """One step: its title, and a command line or a Python program."""

    title: str
    command: tuple[str, ...] = ()
    program: str = ""


def steps() -> tuple[Step, ...]:
    """The steps of the demo; a TensorRT engine is built where TensorRT is installed, GPU or not."""
    has_tensorrt = any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx"))
    engine = ("--engine", "tensorrt") if has_tensorrt else ()
    return (
        Step("Make a SavedModel", program=MAKE_MODEL),
        Step("Convert it into a bundle", ("convert", "demo_out/model", "demo_out/bundle", *engine)),
        Step("Use the bundle in a fresh process, as any SavedModel", program=USE_BUNDLE),
        Step("See what ran it", ("run", "demo_out/bundle", "--inputs", "random")),
        Step("Record TensorFlow's answers", ("record", "demo_out/model", "demo_out/golden")),
        Step("Check the bundle against them", ("check", "demo_out/bundle", "demo_out/golden")),
    )


def show(step: Step) -> None:
    """Print a step as it would be typed."""
    if step.command:
        print(f"$ refimpl {' '.join(step.command)}", flush=True)
    else:
        print("$ python", *(f"    {line}".rstrip() for line in step.program.splitlines()), "", sep="\n", flush=True)


def perform(step: Step) -> int:
    """Run one step in a process of its own and return its exit code."""
    if step.command:
        return subprocess.run([sys.executable, "-m", "refimpl", *step.command], cwd=ROOT, check=False).returncode
    # TensorFlow greets on stderr; it is of interest only when something goes wrong.
    done = subprocess.run(
        [sys.executable, "-c", step.program], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    return done.returncode


def clear() -> None:
    """Make an empty demo_out/; only what a former demo made is removed."""
    if OUT.exists() and not MARK.exists():
        sys.exit(f"{OUT} was not made by this demo; move it away first")
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    MARK.touch()


def main() -> int:
    clear()
    began, plan = time.monotonic(), steps()
    for number, step in enumerate(plan, 1):
        print(f"\n=== {number} of {len(plan)}: {step.title} ===\n")
        show(step)
        started = time.monotonic()
        if code := perform(step):
            print(f"\nThe demo failed at step {number}, {step.title!r}, with exit code {code}.", file=sys.stderr)
            return code if code > 0 else 128 - code  # a signal, as a shell reports it
        print(f"({time.monotonic() - started:.0f} s)")
    print(f"\nDone in {time.monotonic() - began:.0f} s. All of it is in demo_out/; look closer with:\n")
    python = Path(sys.executable)
    shown = python.relative_to(ROOT) if python.is_relative_to(ROOT) else python
    for command in ("inspect demo_out/bundle", "explain demo_out/model", "doctor"):
        print(f"  {shown} -m refimpl {command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
