"""A bundle that is taken apart: its runtime, TensorFlow's side of each signature, and its engines without a guard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refimpl import bundle, engines
from refimpl.bundle import IslandRecord, Manifest, SignatureRecord
from refimpl.engines import OpenEngine
from refimpl.engines.inner import Inner
from refimpl.errors import BundleError, RefimplError
from refimpl.oracle.arrays import Array
from refimpl.oracle.bisect.reference import ReferenceGraph, Segment
from refimpl.oracle.golden import GoldenCase
from refimpl.runtime import LoadedBundle


@dataclass(frozen=True, slots=True)
class Direct:
    """The engine of an island that is looked at, opened without the runtime's proof; or why it cannot be."""

    kind: str
    precision: str
    engine: OpenEngine | None
    problem: str = ""

    def run(self, inputs: Sequence[Array]) -> tuple[list[Array], str]:
        """Its outputs, or none and why."""
        if self.engine is None:
            return [], self.problem
        try:
            return self.engine.run(inputs), ""
        except RefimplError as error:
            return [], error.message


class Opened:
    """One bundle, for as long as it is searched.

    Args:
        path: its directory.
        loaded: the same, loaded, with its checksums compared.
        kinds: the engines that may be looked at, the preferred one first.
    """

    def __init__(self, path: Path, loaded: LoadedBundle, kinds: Sequence[str]) -> None:
        self.path, self.loaded = path, loaded
        self.kinds = tuple(kinds) or engines.KINDS
        self._references: dict[str, ReferenceGraph] = {}
        self._direct: dict[str, Direct] = {}
        self._inner: dict[str, Inner] = {}

    @property
    def manifest(self) -> Manifest:
        return self.loaded.manifest

    def close(self) -> None:
        for reference in self._references.values():
            reference.close()

    def signature(self, key: str) -> SignatureRecord | None:
        """What the manifest says of a signature; None when it has none of this name."""
        return next((item for item in self.manifest.signatures if item.signature.key == key), None)

    def reference(self, key: str) -> ReferenceGraph:
        """TensorFlow's side of a converted signature."""
        if key not in self._references:
            record = self.signature(key)
            assert record is not None
            outputs = [spec.name for spec in record.signature.outputs]
            self._references[key] = ReferenceGraph(self.path, self.manifest.tags, key, outputs)
        return self._references[key]

    def direct(self, island: IslandRecord) -> Direct:
        """The first kind of engine that is stored for an island and can execute here."""
        if island.name not in self._direct:
            self._direct[island.name] = self._open(island)
        return self._direct[island.name]

    def inner(self, island: IslandRecord, without: str = "") -> Inner:
        """The island's ONNX; ``without`` a node, and what depends on it."""
        key = f"{island.name}\0{without}"
        if key not in self._inner:
            self._inner[key] = Inner(self._file(self.onnx(island)), without)
        return self._inner[key]

    def values(self, case: GoldenCase, segment: Segment, entering: Sequence[Array]) -> dict[str, Array]:
        """Every value of an island in TensorFlow, from the given inputs of it."""
        reference = self.reference(case.signature)
        names = [name for op in segment.ops if op in reference.ops for name in reference.ops[op].outputs]
        fed = dict(zip(segment.entering, entering, strict=True))
        return reference.run(case.inputs, [*names, *segment.leaving], fed) | fed

    def onnx(self, island: IslandRecord) -> str:
        """The island's ONNX file.

        Raises:
            BundleError: it has none.
        """
        for engine in island.engines:
            if engine.kind == "onnxruntime":
                return engine.file
        raise BundleError(f"island {island.name} has no ONNX file to look into", hint="convert the model again")

    def _open(self, island: IslandRecord) -> Direct:
        stored = {engine.kind: engine for engine in island.engines if engine.file}
        if "onnxruntime" in stored:
            stored["numpy"] = stored["onnxruntime"]
        missing = []
        for kind in self.kinds:
            if kind not in stored:
                missing.append(f"{kind}: none is stored")
                continue
            module = engines.kind(kind)
            if why := module.why_not_here():
                missing.append(f"{kind}: {why}")
                continue
            try:
                return Direct(kind, stored[kind].precision, module.open(self._file(stored[kind].file)))
            except RefimplError as error:
                return Direct(kind, stored[kind].precision, None, error.message)
        return Direct("", island.precision, None, "; ".join(missing))

    def _file(self, name: str) -> Path:
        if name + bundle.WEIGHTS_SUFFIX in self.manifest.files:
            bundle.check_file(self.path, self.manifest, name + bundle.WEIGHTS_SUFFIX)
        return bundle.check_file(self.path, self.manifest, name)


def segments_of(record: SignatureRecord, reference: ReferenceGraph) -> Mapping[str, tuple[IslandRecord, Segment]]:
    """The islands of a signature in topological order."""
    islands = {island.name: island for island in record.islands}
    return {segment.name: (islands[segment.name], segment) for segment in reference.segments}
