"""Record TensorFlow's answers once, check bundles against them ever after: what a CI job does.

    python docs/examples/record_and_check.py

The commands are those of a shell; docs/ci.md has them as a script and as a workflow file.
"""

import contextlib
import tempfile
from pathlib import Path

import keras
import numpy as np

from refimpl import cli

place = Path(tempfile.mkdtemp(prefix="refimpl-"))
model, bundle, golden = str(place / "model"), str(place / "bundle"), str(place / "golden")
net = keras.Sequential(
    [
        keras.Input((16,), name="x"),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.Dense(4, activation="softmax"),
    ]
)
net.export(model, verbose=False)

# Labelled data, in arrays named like the inputs; "label" is kept and not fed.
rng = np.random.default_rng(0)
x = rng.random((64, 16), np.float32)
np.savez(place / "data.npz", x=x, label=net.predict(x, verbose=0).argmax(1))

# Once, with the versions that are in use: the record and the first verdict, which is the baseline.
assert cli.main(["record", model, golden, "--cases", str(place / "data.npz"), "--label", "label"]) == 0
assert cli.main(["convert", model, bundle]) == 0
with (place / "baseline.json").open("w") as file, contextlib.redirect_stdout(file):
    assert cli.main(["check", bundle, golden, "--repeat", "0", "--json"]) == 0

# In every run of the CI: 0 is a pass, 1 a mismatch or something that got worse, 2 a mistake in the command.
junit = str(place / "verdict.xml")
command = ["check", bundle, golden, "--repeat", "0", "--metric", "top1", "--max-drop", "0.5%"]
code = cli.main([*command, "--baseline", str(place / "baseline.json"), "--junit", junit])
print("exit code", code)
