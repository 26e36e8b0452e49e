"""Are the golden records in golden/ still what their recipes give?

    python tools/golden.py                       # rebuild every model, record it, and compare; exit 1 if one differs
    python tools/golden.py --only lstm,words     # some of them
    python tools/golden.py --write               # replace golden/ by what the recipes give now

Weights, inputs and everything in the index but dates and machines must be the same bit for bit. Outputs may differ as
another processor or version may sum in another order: by the fp32 row of the tolerance table. The report says which.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the refimpl and the recipes of this checkout

from refimpl.numerics import disagreement  # noqa: E402
from refimpl.oracle import Golden, read_golden, record  # noqa: E402
from refimpl.oracle.arrays import digest, dtype_name  # noqa: E402
from refimpl.oracle.golden import GoldenCase  # noqa: E402
from refimpl.oracle.runners import require_reference_tf, tree_sha256  # noqa: E402
from refimpl.tolerance import tolerance_for  # noqa: E402

FOLDER = ROOT / "golden"


@dataclass(frozen=True)
class Regenerated:
    """What came of making one record again; ``faults`` is empty when it is still the shipped one."""

    name: str
    faults: tuple[str, ...]
    cases: int
    outputs: int
    equal: int  # outputs that are the same bit for bit

    def __str__(self) -> str:
        if self.faults:
            return "\n".join([f"{self.name}: DIFFERS", *(f"  {fault}" for fault in self.faults)])
        rest = "" if self.equal == self.outputs else ", the others within the fp32 row of the tolerance table"
        return (
            f"{self.name}: weights and inputs of {self.cases} cases are equal bit for bit, "
            f"{self.equal} of {self.outputs} outputs too{rest}"
        )


def names() -> tuple[str, ...]:
    """The models that have a recipe."""
    from golden import recipes

    return tuple(recipes.RECIPES)


def make(name: str, folder: Path) -> Path:
    """Write ``NAME/saved_model`` and ``NAME/golden`` from the recipe into a folder; returns ``folder/NAME``."""
    require_reference_tf()
    from golden import recipes

    place = folder / name
    place.mkdir(parents=True)
    recipes.build(name, place / "saved_model")
    record(place / "saved_model", place / "golden")
    return place


def regenerate(name: str, shipped: Path = FOLDER) -> Regenerated:
    """Make a model and its record again, in a temporary folder, and compare them with the shipped ones.

    Args:
        name: a key of ``golden.recipes.RECIPES``.
        shipped: the folder with ``NAME/saved_model`` and ``NAME/golden``.

    Raises:
        GoldenError: the shipped record is missing or damaged.
    """
    kept = read_golden(shipped / name / "golden")
    with tempfile.TemporaryDirectory(prefix="refimpl-golden-") as folder:
        place = make(name, Path(folder))
        made = read_golden(place / "golden")
        faults = [
            *_source_faults(kept, shipped / name / "saved_model"),
            *_weight_faults(shipped / name / "saved_model", place / "saved_model"),
            *_index_faults(kept, made),
        ]
    pairs = {case.name: (case, other) for case, other in zip(kept.cases, made.cases, strict=False)}
    if not faults:
        faults += [fault for pair in pairs.values() for fault in _case_faults(*pair)]
    outputs = [
        digest(array) == digest(other.outputs[name])
        for case, other in pairs.values()
        for name, array in case.outputs.items()
        if name in other.outputs
    ]
    return Regenerated(name, tuple(faults), len(kept.cases), len(outputs), sum(outputs))


def _source_faults(kept: Golden, saved_model: Path) -> Iterator[str]:
    if kept.provenance.source_sha256 != tree_sha256(saved_model):
        yield "the record was not made from the SavedModel beside it"


def _weight_faults(kept: Path, made: Path) -> Iterator[str]:
    """Bit for bit: a weight can change by less than any output's tolerance."""
    old, new = _weights(kept), _weights(made)
    if old.keys() != new.keys():
        yield f"the weights are {sorted(new)}, shipped are {sorted(old)}"
    for name in sorted(old.keys() & new.keys()):
        if digest(old[name]) != digest(new[name]):
            yield f"weight {name} is another one"


def _weights(saved_model: Path) -> dict[str, Any]:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(saved_model / "variables" / "variables"))
    kinds = reader.get_variable_to_dtype_map()
    return {name: reader.get_tensor(name) for name, kind in kinds.items() if kind != tf.string}


def _index_faults(kept: Golden, made: Golden) -> Iterator[str]:
    """What is neither an array nor a fact about the day and the machine."""
    if kept.signatures != made.signatures:
        yield "the signatures differ"
    if kept.provenance.seed != made.provenance.seed:
        yield "the seeds differ"
    if kept.dropped != made.dropped:
        yield f"dropped now: {made.dropped}, then: {kept.dropped}"
    facts = [
        [(case.signature, case.name, case.kind, case.note, case.seed, dict(case.unstable)) for case in golden.cases]
        for golden in (kept, made)
    ]
    if facts[0] != facts[1]:
        there, here = (sorted(str(fact) for fact in side) for side in facts)
        yield f"only shipped: {[x for x in there if x not in here]}; only made: {[x for x in here if x not in there]}"


def _case_faults(kept: GoldenCase, made: GoldenCase) -> Iterator[str]:
    for name, array in kept.inputs.items():
        if digest(array) != digest(made.inputs[name]):
            yield f"{kept.name}: input {name} is not equal bit for bit"
    for name, array in kept.outputs.items():
        other, tolerance = made.outputs[name], tolerance_for("fp32", dtype_name(array))
        if name not in kept.unstable and (why := disagreement(array, other, tolerance)):
            yield f"{kept.name}: output {name}: {why}"


def write(name: str, shipped: Path = FOLDER) -> None:
    """Replace the shipped model and record by new ones; the old ones stay when that fails."""
    with tempfile.TemporaryDirectory(prefix="refimpl-golden-") as folder:
        place = make(name, Path(folder))
        shutil.rmtree(shipped / name, ignore_errors=True)
        shutil.copytree(place, shipped / name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, or write; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make the records of golden/ again.")
    parser.add_argument("--only", help="models, with commas")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="compare only (what is done when nothing is asked for)")
    action.add_argument("--write", action="store_true", help="replace the shipped models and records")
    given = parser.parse_args(arguments)
    require_reference_tf()  # before anything else imports TensorFlow
    chosen = given.only.split(",") if given.only else list(names())
    unknown = sorted(set(chosen) - set(names()))
    if unknown:
        parser.error(f"no recipe for {', '.join(unknown)}; there are: {', '.join(names())}")
    failed = False
    for name in chosen:
        if given.write:
            write(name)
            print(f"{name}: written")
        else:
            found = regenerate(name)
            failed |= bool(found.faults)
            print(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
