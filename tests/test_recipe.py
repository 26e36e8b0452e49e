"""The recipe: what it refuses, its digest, and the TOML file that it may come from."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from refimpl.errors import RecipeError
from refimpl.recipe import Recipe, load_recipe, parse_shape, recipe_with

OTHER = {
    "signatures": ("a",),
    "tags": ("train",),
    "precision": "fp16",
    "engines": ("onnxruntime", "tensorrt"),
    "min_segment_size": 4,
    "max_engines": 2,
    "keep_in_tf": ("Relu",),
    "shapes": (("x", (1, 2)),),
    "profile": "optimal",
    "calibration": "samples.npz",
    "verify": False,
    "workspace_bytes": 1 << 20,
    "tf32": True,
    "keep_fp32": ("Softmax",),
    "calibrator": "minmax",
    "percentile": 99.9,
    "use_calibration": False,
    "calibration_table": "ranges.json",
    "max_drop": 0.01,
    "metric": "top1",
    "op_set": "tf-trt",
    "max_cached_engines": 4,
    "build_at_runtime": True,
    "targets": ("sm86",),
}


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_every_field_changes_the_digest():
    base = Recipe()
    assert set(OTHER) == {item.name for item in fields(Recipe)}, "a new field needs another value here"
    digests = {replace(base, **{name: value}).digest() for name, value in OTHER.items()}
    assert len(digests | {base.digest()}) == len(OTHER) + 1
    assert Recipe().digest() == base.digest()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"precision": "fp12"}, "precision 'fp12' is not known"),
        ({"engines": ("onnxruntime", "openvino")}, "engine 'openvino' is not known"),
        ({"profile": "largest"}, "profile 'largest' is not known"),
        ({"min_segment_size": 0}, "min_segment_size is 0"),
        ({"max_engines": -1}, "cannot be negative"),
        ({"op_set": "tensorrt-8"}, "op_set 'tensorrt-8' is not known"),
        ({"max_cached_engines": -1}, "cannot be negative"),
        ({"workspace_bytes": -1}, "cannot be negative"),
        ({"shapes": (("x", (1, 0)),)}, "shape of 'x'"),
        ({"shapes": (("x", (-1, 3)),)}, "shape of 'x'"),
    ],
)
def test_impossible_choices(changes, says):
    with pytest.raises(RecipeError, match="hint: ") as caught:
        Recipe(**changes)
    assert says in caught.value.message


def test_a_recipe_survives_toml(tmp_path):
    made = load_recipe(
        write(
            tmp_path,
            """
            signatures = ["serving_default", "encode"]
            engines = ["onnxruntime", "tensorrt"]
            min_segment_size = 5
            keep_in_tf = ["Svd", "head/*"]
            profile = "range+optimal"
            verify = false
            [shapes]
            image = [1, 224, 224, 3]
            "a=b" = [[1, 8], [16, 8]]
            scalar = []
            """,
        )
    )
    assert made == Recipe(
        signatures=("serving_default", "encode"),
        engines=("onnxruntime", "tensorrt"),
        min_segment_size=5,
        keep_in_tf=("Svd", "head/*"),
        profile="range+optimal",
        verify=False,
        shapes=(("image", (1, 224, 224, 3)), ("a=b", (1, 8)), ("a=b", (16, 8)), ("scalar", ())),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("min_segmentsize = 3", "unknown key 'min_segmentsize'"),
        ("min_segment_size = '3'", "min_segment_size is '3'"),
        ("min_segment_size = true", "min_segment_size is True"),
        ("min_segment_size = 3.0", "min_segment_size is 3.0"),
        ("verify = 1", "verify is 1"),
        ("keep_in_tf = 'Svd'", "keep_in_tf is 'Svd'"),
        ("keep_in_tf = [1]", "keep_in_tf is [1]"),
        ("engines = [['tensorrt']]", "engines is [['tensorrt']]"),
        ("shapes = 3", "shapes is 3"),
        ("shapes = ['x']", "shapes is ['x']"),
        ("[shapes]\nx = 3", "shape of 'x' is 3"),
        ("[shapes]\nx = '1x3'", "shape of 'x' is '1x3'"),
        ("[shapes]\nx = [1, '3']", "shape of 'x' is [1, '3']"),
        ("[shapes]\nx = [[1], 3]", "shape of 'x' is [[1], 3]"),
        ("[shapes]\nx = [0]", "shape of 'x' is (0,)"),
        ("engines = ['tensorflow']", "engine 'tensorflow' is not known"),
        ("verify = ", "cannot read the recipe"),
    ],
)
def test_a_wrong_toml_is_one_clear_error(tmp_path, text, says):
    file = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert says in caught.value.message
    assert (
        "recipe.toml" in caught.value.message or "every dimension" in caught.value.hint or "choose" in caught.value.hint
    )


def test_a_recipe_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*missing.toml"):
        load_recipe(tmp_path / "missing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(tmp_path / "binary.toml")


def test_an_unknown_key_lists_the_known_ones():
    with pytest.raises(RecipeError) as caught:
        recipe_with(Recipe(), {"precison": "fp32"}, "here")
    assert all(item.name in caught.value.hint for item in fields(Recipe))


def test_options_win_over_the_base():
    base = Recipe(max_engines=3, tags=("a",))
    assert recipe_with(base, {"max_engines": 5}, "here") == Recipe(max_engines=5, tags=("a",))


def test_a_recipe_taken_apart_can_be_put_together():
    recipe = Recipe(shapes=(("x", (1, 2)), ("x", (3, 4))), tags=("serve", "gpu"))
    assert recipe_with(Recipe(), recipe.to_json(), "a manifest") == recipe


def test_shapes_on_the_command_line():
    assert parse_shape("x=1x224x224x3") == ("x", (1, 224, 224, 3))
    assert parse_shape("a=b=7") == ("a=b", (7,))
    assert parse_shape("x=") == ("x", ())
    for wrong in ("x", "=1x2", "x=1,2", "x=1x", "x=axb", "1x2"):
        with pytest.raises(RecipeError, match="is not of the form"):
            parse_shape(wrong)
