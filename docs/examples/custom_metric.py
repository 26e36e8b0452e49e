"""Let refimpl choose the precision by a metric of your own, on labelled data.

    python docs/examples/custom_metric.py

On the command line it is: --precision auto --metric custom_metric:right --calibration custom_metric:batches
"""

import tempfile
from pathlib import Path

import numpy as np

import refimpl

rng = np.random.default_rng(0)
points = rng.normal(0, 1, (512, 8)).astype(np.float32)
labels = (points[:, 0] * points[:, 1] > 0).astype(np.int64)


def batches():
    """What calibrates and what is measured: the model's inputs by name, and whatever the metric needs beside them."""
    for start in range(0, len(points), 64):
        yield {"x": points[start : start + 64], "label": labels[start : start + 64]}


def right(outputs, sample):
    """The share of right answers of one batch; higher is better."""
    return np.mean(outputs["output_0"].argmax(1) == sample["label"])


if __name__ == "__main__":
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(64, activation="relu"), keras.layers.Dense(64, activation="relu")]
    model = keras.Sequential([keras.Input((8,), name="x"), *layers, keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(points, labels, epochs=20, verbose=0)
    place = Path(tempfile.mkdtemp(prefix="refimpl-"))
    model.export(place / "model", verbose=False)

    recipe = refimpl.Recipe(precision="auto", metric="custom_metric:right", max_drop=0.005)
    manifest = refimpl.convert(place / "model", place / "bundle", recipe, samples=batches)
    record = next(record for record in manifest.signatures if record.converted)
    for tried in record.tried:
        print(tried)
