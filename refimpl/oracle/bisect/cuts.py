"""One case: the first tensor that enters or leaves an island and is not TensorFlow's, and what is to blame for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.bundle import IslandRecord
from refimpl.errors import RefimplError, RunError
from refimpl.oracle.arrays import Array
from refimpl.oracle.bisect.finding import Finding, Origin, Place
from refimpl.oracle.bisect.island import Cut, IslandSearch, first_bad
from refimpl.oracle.bisect.measure import FINE, is_float, share, tolerance_of
from refimpl.oracle.bisect.opened import Opened, segments_of
from refimpl.oracle.bisect.reference import ReferenceGraph, Segment
from refimpl.oracle.compare import Comparison, compare, diff
from refimpl.oracle.golden import GoldenCase
from refimpl.oracle.precision import precision_of_run
from refimpl.oracle.verdict import NATIVE, IslandNote
from refimpl.runtime import IslandCall
from refimpl.tolerance import tolerance_for

_OTHER_TENSORFLOW = (
    "TensorFlow itself, without any engine, gives another answer on this machine than when golden was recorded: record "
    "again here, or compare on a machine like that one"
)
_OTHER_ARRAYS = (
    "the engine is right when it runs alone on the same inputs, but the graph got something else: report it as a bug"
)
_MUCH_OF_LITTLE = (
    "every island is within its tolerance; this op, which stays in TensorFlow, is given {:.2g} of the tolerance and "
    "makes {:.3g} of it"
)


@dataclass(frozen=True, slots=True)
class Ran:
    """What the bundle did with one case: every island's arrays, and the outputs or why there are none."""

    calls: Mapping[str, IslandCall]
    notes: Mapping[str, IslandNote]
    precision: str
    comparison: Comparison | None
    problem: str = ""


class CaseSearch:
    """The search on one case of a converted signature."""

    def __init__(self, opened: Opened, case: GoldenCase) -> None:
        self.opened, self.case = opened, case
        record = opened.signature(case.signature)
        assert record is not None
        self.reference: ReferenceGraph = opened.reference(case.signature)
        self.islands = segments_of(record, self.reference)
        cuts = [name for _, segment in self.islands.values() for name in (*segment.entering, *segment.leaving)]
        self.golden = self.reference.run(case.inputs, [*cuts, *self.reference.results.values()])

    def find(self) -> Finding | None:
        """The first place where the bundle leaves TensorFlow on this case; None when it does not."""
        if found := self._environment():
            return found
        ran = self._run()
        if ran.comparison is not None and ran.comparison.ok and not self._refused(ran):
            return None
        for island, segment in self.islands.values():
            if found := self._island(island, segment, ran):
                return found
        return self._between(ran, "")

    def _environment(self) -> Finding | None:
        """TensorFlow here against golden: a difference is nobody's fault who is judged here."""
        here = {name: self.golden[tensor] for name, tensor in self.reference.results.items()}
        found = compare(self.case.outputs, here, lambda dtype: tolerance_for("fp32", dtype), self.case.unstable)
        wrong = next((tensor for tensor in found.tensors if not tensor.ok), None)
        if wrong is None:
            return None
        return self._finding(
            place=Place.ENVIRONMENT,
            tensor=wrong.name,
            difference=wrong,
            remarks=(_OTHER_TENSORFLOW,),
        )

    def _run(self) -> Ran:
        notes: dict[str, IslandNote] = {}
        comparison, problem = None, ""
        with self.opened.loaded.recording() as tape:
            try:
                inputs = {name: array.copy() for name, array in self.case.inputs.items()}
                ran = self.opened.loaded.run(inputs, self.case.signature)
            except RefimplError as error:
                problem = error.message
            else:
                notes = {run.island: IslandNote(run.island, run.engine, run.reason) for run in ran.islands}
        precision = precision_of_run(self.opened.manifest, self.case.signature, notes.values())
        if not problem:
            comparison = compare(
                self.case.outputs, ran.outputs, lambda dtype: tolerance_for(precision, dtype), self.case.unstable
            )
        return Ran({call.island: call for call in tape}, notes, precision, comparison, problem)

    def _refused(self, ran: Ran) -> bool:
        """Whether TensorFlow ran an island that an engine should have run."""
        for name, note in ran.notes.items():
            _, segment = self.islands[name]
            plain = all(finite(self.golden[tensor]) for tensor in (*segment.entering, *segment.leaving))
            if note.engine == NATIVE and (not note.expected or (plain and "finite" in note.reason)):
                return True
        return False

    def _island(self, island: IslandRecord, segment: Segment, ran: Ran) -> Finding | None:
        """What is wrong with one island, all those before it being right."""
        cut = self.cut(island, segment, ran.notes.get(island.name))
        if any(not value.size for value in cut.entering) or (island.finite_only and not all(map(finite, cut.entering))):
            return None  # TensorFlow runs it, by design
        call, direct = ran.calls.get(island.name), self.opened.direct(island)
        if call and (bad := first_bad(cut.entering, call.inputs, ran.precision)) is not None:
            return self._between(ran, island.inputs[bad].name)
        search = IslandSearch(self.opened, self.case, cut)
        outputs, problem = direct.run(cut.entering)
        bad = None if problem else first_bad(cut.leaving, outputs, direct.precision)
        if problem or bad is not None:
            return search.born("" if bad is None else island.outputs[bad].name, problem)
        if call is None or call.outputs is None:
            return None
        bad = first_bad(cut.leaving, call.outputs, direct.precision)
        if bad is None:
            return None
        again, _ = direct.run(call.inputs)
        if first_bad(again, call.outputs, direct.precision) is None:
            return search.amplified(call.inputs, island.outputs[bad].name)
        want, got = cut.leaving[bad], call.outputs[bad]
        return self._finding(
            place=Place.RUNTIME,
            island=island.name,
            engine=direct.kind,
            cut=island.outputs[bad].name,
            tensor=segment.leaving[bad],
            difference=diff(segment.leaving[bad], want, got, tolerance_of(direct.precision, want)),
            remarks=(_OTHER_ARRAYS,),
        )

    def cut(self, island: IslandRecord, segment: Segment, note: IslandNote | None = None) -> Cut:
        """An island with TensorFlow's values on both sides."""
        refused = note.reason if note is not None and note.engine == NATIVE else ""
        entering = tuple(self.golden[name] for name in segment.entering)
        return Cut(island, segment, entering, tuple(self.golden[name] for name in segment.leaving), refused)

    def _between(self, ran: Ran, cut: str) -> Finding:
        """The first op in TensorFlow that makes much of little, fed with what the islands before it gave."""
        fed = {
            name: value
            for island, call in ran.calls.items()
            for name, value in zip(self.islands[island][1].leaving, call.outputs or (), strict=False)
        }
        inside = {op for _, segment in self.islands.values() for op in segment.ops}
        ops = [op for name, op in self.reference.ops.items() if name not in inside]
        names = [name for op in ops for name in op.outputs]
        want = self.reference.run(self.case.inputs, names)
        shares: dict[str, float] = {
            name: share(self.golden[name], value, tolerance_of(ran.precision, self.golden[name]))
            for name, value in fed.items()
        }
        try:
            got = self.reference.run(self.case.inputs, names, fed)
        except RunError as error:
            return self._finding(
                place=Place.TENSORFLOW, cut=cut, remarks=(f"with what the islands give, {error.message}",)
            )
        for op in ops:
            before = max((shares.get(name, 0.0) for name in op.inputs), default=0.0)
            for name in op.outputs:
                tolerance = tolerance_of(ran.precision, want[name])
                shares[name] = share(want[name], got[name], tolerance)
                if shares[name] > FINE and before <= FINE:
                    return self._finding(
                        place=Place.TENSORFLOW,
                        origin=Origin.AMPLIFIED,
                        cut=cut,
                        tensor=name,
                        op=(op.name, op.type),
                        ops=((op.name, op.type),),
                        share=shares[name],
                        difference=diff(name, want[name], got[name], tolerance),
                        remarks=(_MUCH_OF_LITTLE.format(before, shares[name]),),
                    )
        remark = ran.problem or "every op alone is right: the graph differs, as Grappler and oneDNN have changed it"
        wrong = next((t for t in ran.comparison.tensors if not t.ok), None) if ran.comparison else None
        return self._finding(place=Place.TENSORFLOW, cut=cut, difference=wrong, remarks=(remark,))

    def _finding(self, **facts: Any) -> Finding:
        return Finding(signature=self.case.signature, case=self.case.name, **facts)


def finite(value: Array) -> bool:
    """Whether an array holds no NaN and no infinity."""
    if not is_float(value):
        return True
    return bool(np.isfinite(value if value.dtype.kind == "c" else value.astype(np.float64)).all())
