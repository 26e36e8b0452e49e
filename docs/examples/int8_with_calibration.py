"""INT8 with calibration: train a small network, calibrate on real samples, look at what computes in int8.

python docs/examples/int8_with_calibration.py
"""

import tempfile
from pathlib import Path

import keras
import numpy as np

import refimpl

place = Path(tempfile.mkdtemp(prefix="refimpl-"))
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)

# Images of four textures in noise: something that a network can learn in a second.
labels = rng.integers(0, 4, 768)
stripes = np.sin(np.arange(16) * np.array([0.5, 1.0, 1.8, 2.6])[labels, None])
images = (stripes[:, :, None, None] + rng.normal(0, 0.7, (768, 16, 16, 3))).astype(np.float32)
model = keras.Sequential(
    [
        keras.Input((16, 16, 3), name="image"),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(4),
    ]
)
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(images[:512], labels[:512], epochs=3, verbose=0)
model.export(place / "model", verbose=False)

# A few hundred rows of what the model will meet, prepared as it will be prepared.
samples = [{"image": images[start : start + 32]} for start in range(0, 512, 32)]
manifest = refimpl.convert(place / "model", place / "int8", refimpl.Recipe(precision="int8"), samples=samples)
for island in manifest.islands:
    for node, op, precision, reason in island.layers:
        print(f"{precision}  {op}  {node.split('/')[-2]}  {reason}")

held_out = images[512:]
(scores,) = refimpl.load(place / "int8").infer(held_out).values()
for name, answers in (("TensorFlow", model.predict(held_out, verbose=0)), ("int8", scores)):
    print(f"{name:10} {np.mean(answers.argmax(1) == labels[512:]):.1%} right on images that it has not seen")
