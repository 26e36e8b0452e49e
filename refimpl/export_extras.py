"""What an export can hold beyond the bundle: every island in float32, and what passes its cuts in real calls."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from refimpl import bundle, env, exporter
from refimpl.bundle import IslandRecord, Manifest
from refimpl.errors import RunError, SourceError
from refimpl.exporter import Extras, Form, Sample
from refimpl.exporter.export import pick_islands
from refimpl.recipe import Recipe, recipe_with

StrPath = str | os.PathLike[str]
Tell = Callable[[str], None]
_SUBNORMALS = "its answer hangs on what a machine makes of subnormal numbers"
Found = tuple[dict[str, Extras], tuple[str, ...]]


@contextlib.contextmanager
def gathered(
    source: Path, golden: StrPath | None, saved_model: StrPath | None, islands: Sequence[str], tell: Tell
) -> Iterator[Found]:
    """Extras by island, and notes for the README; the files live as long as the block.

    Args:
        source: the bundle.
        golden: a golden record, for samples.
        saved_model: the original model, for float32 forms.
        islands: names of the islands that are wanted; empty means all.
        tell: receives a line whenever a step begins.

    Raises:
        BundleError, RecipeError, SourceError, GoldenError, UnsupportedError, RunError: see :func:`refimpl.api.export`.
    """
    manifest = bundle.read(source)
    wanted = {record.name: signature for record, signature in pick_islands(source, manifest, islands)}
    with tempfile.TemporaryDirectory(prefix="refimpl-export-") as scratch:
        samples: Mapping[str, Sequence[Sample]] = {}
        forms: Mapping[str, Form] = {}
        notes: list[str] = []
        if golden is not None:
            samples = _cut_samples(source, manifest, golden, wanted, tell, notes)
        if saved_model is not None:
            forms = _float_forms(manifest, Path(saved_model), wanted, Path(scratch), tell, notes)
        extras = {
            name: Extras((forms[name],) if name in forms else (), tuple(samples.get(name, ()))) for name in wanted
        }
        yield extras, tuple(notes)


def _cut_samples(
    source: Path, manifest: Manifest, golden: StrPath, wanted: Mapping[str, str], tell: Tell, notes: list[str]
) -> dict[str, list[Sample]]:
    """What enters and leaves every island when TensorFlow alone runs the cases of a golden record."""
    from refimpl import oracle
    from refimpl.oracle.check import require_same_source
    from refimpl.oracle.conditioning import SUBNORMALS
    from refimpl.oracle.runners import require_reference_tf

    record = oracle.read_golden(golden)
    require_same_source(record, manifest.source_sha256)
    require_reference_tf()  # first: what comes next imports TensorFlow
    from refimpl.oracle.bisect.reference import ReferenceGraph

    found: dict[str, list[Sample]] = {}
    for key in dict.fromkeys(wanted.values()):
        tell(f"running the golden cases of {key} in TensorFlow")
        signature = next(item.signature for item in manifest.signatures if item.signature.key == key)
        outputs = [spec.name for spec in signature.outputs]
        with closing(ReferenceGraph(source, manifest.tags, key, outputs)) as graph:
            segments = [item for item in graph.segments if item.name in wanted]
            fetches = [name for item in segments for name in (*item.entering, *item.leaving)]
            for case in (case for case in record.cases if case.signature == key):
                try:
                    values = graph.run(case.inputs, fetches)
                except RunError as error:  # such as an empty batch where oneDNN is on
                    notes.append(f"Golden case {key}/{case.name} is left out: {error.message}")
                    continue
                unfit = _SUBNORMALS if SUBNORMALS in case.unstable.values() else ""
                for item in segments:
                    entering, leaving = (tuple(values[name] for name in side) for side in (item.entering, item.leaving))
                    found.setdefault(item.name, []).append(Sample(case.name, entering, leaving, unfit))
    return found


def _float_forms(
    manifest: Manifest, saved_model: Path, wanted: Mapping[str, str], scratch: Path, tell: Tell, notes: list[str]
) -> dict[str, Form]:
    """The islands in float32, by converting the model again as the bundle's recipe says; matched by their ops."""
    env.require_tensorflow()
    from refimpl.converter import pipeline
    from refimpl.oracle.runners import tree_sha256

    if tree_sha256(saved_model) != manifest.source_sha256:
        raise SourceError(
            f"{saved_model} is not the model that the bundle was made from",
            hint=f"it was made from {manifest.source_name}, SHA-256 {manifest.source_sha256[:12]}...",
        )
    lowered = [item for item in manifest.islands if item.name in wanted and item.precision not in ("fp32", "tf32")]
    if not lowered:
        notes.append("The islands ship in float32, so --saved-model adds nothing.")
        return {}
    tell("converting the model again, in float32")
    changes = {"precision": "fp32", "tf32": False, "engines": ["onnxruntime"]}
    changes |= {"calibration": "", "calibration_table": ""}
    recipe = recipe_with(Recipe(), {**manifest.recipe, **changes}, "the bundle's recipe")
    made = pipeline.convert(saved_model, scratch / "float32", recipe, tell)
    by_ops = {_ops(item): item for item in made.islands}
    forms = {
        item.name: exporter.form_of(scratch / "float32", made, by_ops[_ops(item)])
        for item in lowered
        if _ops(item) in by_ops
    }
    if lost := [item.name for item in lowered if item.name not in forms]:
        notes.append(f"In float32 the model is cut elsewhere, so these have no float32 form: {', '.join(lost)}.")
    return forms


def _ops(island: IslandRecord) -> frozenset[str]:
    """The ops of an island; islands of different signatures may have ops of one name, so its cut tensors count too."""
    cuts = (f"in {spec.name}" for spec in island.inputs), (f"out {spec.name}" for spec in island.outputs)
    return frozenset([*(name for name, _ in island.ops), *cuts[0], *cuts[1]])
