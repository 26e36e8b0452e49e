"""Convert a Keras model, run the bundle, and compare it with Keras.

python docs/examples/convert_keras.py
"""

import tempfile
from pathlib import Path

import keras
import numpy as np

import refimpl

place = Path(tempfile.mkdtemp(prefix="refimpl-"))

# A model, exported as a SavedModel. Naming the input names it in the signature, too.
model = keras.Sequential(
    [
        keras.Input((32, 32, 3), name="image"),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.export(place / "model", verbose=False)

# Every island is compared with TensorFlow before it is stored; the manifest says what became of the model.
manifest = refimpl.convert(place / "model", place / "bundle")
record = next(record for record in manifest.signatures if record.converted)
print(f"{record.ops_converted} of {record.ops_total} ops are in {len(record.islands)} island(s)")

images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
result = refimpl.load(place / "bundle").run({"image": images})
(scores,) = result.outputs.values()
print("ran in:", ", ".join(run.engine for run in result.islands))
print(f"largest difference from Keras: {np.abs(scores - model.predict(images, verbose=0)).max():.1e}")
