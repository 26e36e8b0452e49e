"""Answer calls without TensorFlow: where one island is the whole signature, its engine is called directly.

python docs/examples/infer_without_tensorflow.py
"""

import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import refimpl


def make_bundle(place: Path) -> None:
    """What happens on another machine, or on another day: this part needs TensorFlow."""
    import keras

    layers = [keras.layers.Dense(64, activation="relu"), keras.layers.Dense(8, activation="softmax")]
    keras.Sequential([keras.Input((32,), name="x"), *layers]).export(place / "model", verbose=False)
    refimpl.convert(place / "model", place / "bundle")


if __name__ == "__main__":
    place = Path(tempfile.mkdtemp(prefix="refimpl-"))
    process = multiprocessing.get_context("spawn").Process(target=make_bundle, args=(place,))
    process.start()
    process.join()

    began = time.perf_counter()
    bundle = refimpl.load(place / "bundle")  # every file is compared with its checksum
    answer = bundle.infer(np.ones((1, 32), np.float32))
    print(f"loaded and answered in {time.perf_counter() - began:.2f} s")
    print({name: value.shape for name, value in answer.items()}, bundle.counts())
    print("TensorFlow was imported:", "tensorflow" in sys.modules)
