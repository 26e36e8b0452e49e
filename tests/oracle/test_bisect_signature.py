"""``refimpl bisect --signature``: only its cases are searched, and the report names the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from refimpl import bundle, oracle
from refimpl.errors import RecipeError
from refimpl.oracle.bisect import bisect
from tests.bundles import main
from tests.models_ops import normal, spec
from tests.oracle.planting import edit_island, operand, scaled, unguard
from tests.precision.helpers import convert, images


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle with an island for each of two signatures, the second of which is wrong, and its record."""
    folder = tmp_path_factory.mktemp("two")
    weights = [tf.Variable(normal(3, 3, 4, 8, seed=seed, scale=0.2)) for seed in (1, 2)]

    def head(number: int) -> object:
        def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
            x = tf.nn.relu(tf.nn.conv2d(x, weights[number], 1, "SAME", name=f"conv{number}"))
            return {"y": tf.tanh(tf.reduce_mean(x, [1, 2]))}

        return tf.function(call, input_signature=[spec((None, 8, 8, 4), name="x")])

    module = tf.Module()
    module.weights, module.calls = weights, [head(0), head(1)]  # type: ignore[attr-defined]
    first, second = module.calls
    tf.saved_model.save(module, str(folder / "model"), signatures={"serving_default": first, "embed": second})
    convert(folder / "model", folder / "bundle", signatures=("*",))
    np.savez(folder / "x.npz", **images(2, seed=3))  # type: ignore[arg-type]
    oracle.record(folder / "model", folder / "golden", cases=str(folder / "x.npz"))
    manifest = bundle.read(folder / "bundle")
    keys = [item.signature.key for item in manifest.signatures for _ in item.islands]
    edit_island(folder / "bundle", operand("conv1", 1, scaled(1.5)), island=keys.index("embed"))
    unguard(folder / "bundle")
    return folder / "bundle", folder / "golden"


def test_the_chosen_one_is_searched(two: tuple[Path, Path]) -> None:
    right = bisect(*two, signature="serving_default")
    assert right.finding is None
    assert right.cases == ("serving_default/x",)
    assert "signature 'embed' was not searched: left out by --signature or --case" in right.notes
    wrong = bisect(*two, signature="embed")
    assert wrong.finding is not None
    assert wrong.finding.op[0].endswith("conv1")
    assert wrong.finding.signature == "embed"
    assert not [note for note in bisect(*two).notes if "not searched" in note]


def test_on_the_command_line(two: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    assert main("bisect", *two, "--signature", "serving_default") == 0
    assert "signature 'embed' was not searched" in capfd.readouterr().out
    assert main("bisect", *two, "--signature", "embed", "--json") == 1
    assert json.loads(capfd.readouterr().out)["finding"]["signature"] == "embed"
    assert main("bisect", *two, "--signature", "nope") == 2
    assert "it has cases of: embed, serving_default" in capfd.readouterr().err


def test_a_name_that_golden_does_not_have(two: tuple[Path, Path]) -> None:
    with pytest.raises(RecipeError, match="has no case of signature 'nope'"):
        bisect(*two, signature="nope")
