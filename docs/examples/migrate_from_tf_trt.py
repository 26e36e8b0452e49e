"""Code written for TF-TRT, with one line changed.

python docs/examples/migrate_from_tf_trt.py
"""

import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

# Before: from tensorflow.python.compiler.tensorrt import trt_convert as trt
from refimpl import trt_convert as trt

place = Path(tempfile.mkdtemp(prefix="refimpl-"))
model = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ]
)
model.export(place / "model", verbose=False)
images = np.random.default_rng(0).random((32, 28, 28, 1), np.float32)

# From here on nothing was changed.
precision = trt.TrtPrecisionMode.FP32
converter = trt.TrtGraphConverterV2(input_saved_model_dir=str(place / "model"), precision_mode=precision)
converter.convert()


def input_fn():
    for batch in (1, 32):
        yield (images[:batch],)


converter.build(input_fn=input_fn)
converter.summary()
converter.save(str(place / "model_trt"))

infer = tf.saved_model.load(str(place / "model_trt")).signatures["serving_default"]
name = next(iter(infer.structured_input_signature[1]))
(logits,) = infer(**{name: tf.constant(images)}).values()
print(f"largest difference from Keras: {np.abs(logits - model.predict(images, verbose=0)).max():.1e}")
