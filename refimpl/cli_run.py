"""The command ``run``."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import click

from refimpl import env, terminal
from refimpl.cli_shared import FILE_NAME, PATH, check_new
from refimpl.errors import RecipeError
from refimpl.recipe import parse_shape


@click.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--inputs",
    type=FILE_NAME,
    metavar="FILE.npz|random",
    required=True,
    help="Arrays by input name, or 'random' to make some up.",
)
@click.option("--output", type=PATH, help="Write the outputs to this new .npz file.")
@click.option("--signature", default="", help="Signature to run.  [serving_default]")
@click.option("--engine", "engines", multiple=True, help="Engines that may run, in order of preference.  [all]")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1x224x224x3", help="Shapes for --inputs random.")
@click.option("--intra-op-threads", type=click.IntRange(min=1), metavar="N", help="CPU threads per op.  [one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary of the outputs as JSON.")
def run(
    bundle: Path,
    inputs: str,
    output: Path | None,
    signature: str,
    engines: tuple[str, ...],
    shapes: tuple[str, ...],
    intra_op_threads: int | None,
    as_json: bool,
) -> None:
    """Run BUNDLE once and say what each island ran on."""
    import refimpl
    from refimpl.converter.samples import read_npz
    from refimpl.report.outputs import describe_run, print_run, write_outputs

    fixed = dict(map(parse_shape, shapes))
    if fixed and inputs != "random":
        raise RecipeError("--shape is for --inputs random", hint="the arrays of a file have shapes of their own")
    check_new(output)
    with contextlib.redirect_stdout(sys.stderr):
        env.limit_tensorflow_threads(intra_op_threads)
        env.require_tensorflow()
        loaded = refimpl.load(bundle, engines=engines or None, intra_op_threads=intra_op_threads or 0)
        spec = loaded.signature(signature)
        values = random_inputs(spec, fixed) if inputs == "random" else read_npz(Path(inputs))
        result = loaded.run(values, spec.key)
    if output is not None:
        write_outputs(output, result)
    if as_json:
        click.echo(json.dumps(describe_run(result), indent=2))
    else:
        print_run(terminal.stdout_console(), result)


def random_inputs(spec: Any, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Made-up arrays for a signature, by input name: floats in [0, 1), ones for other dtypes; open dimensions are 1.

    Args:
        spec: the signature.
        shapes: shapes by input name that are to be used instead.

    Raises:
        RecipeError: a name is no input, a dimension is negative, or an input takes strings.
    """
    import numpy as np

    known = [item.name for item in spec.inputs]
    for name, shape in shapes.items():
        if name not in known:
            raise RecipeError(
                f"--shape names {name!r}, which is no input", hint=f"inputs: {', '.join(known) or 'none'}"
            )
        if min(shape, default=0) < 0:
            raise RecipeError(f"--shape {name}: a dimension of {list(shape)} is negative", hint="sizes are 0 or more")
    rng = np.random.default_rng(0)
    values = {}
    for item in spec.inputs:
        shape = shapes.get(item.name, tuple(1 if size is None else size for size in item.shape or ()))
        dtype = item.numpy_dtype()
        if item.dtype == "string":
            raise RecipeError(f"input {item.name!r} takes strings", hint="give real ones: --inputs FILE.npz")
        values[item.name] = rng.random(shape).astype(dtype) if dtype.kind == "f" else np.ones(shape, dtype)
    return values
