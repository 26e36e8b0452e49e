"""The judge: records what TensorFlow answers, and checks a bundle against it. It never imports the maker.

* :func:`record` runs a SavedModel in plain TensorFlow and keeps the answers (a *golden* record);
* :func:`check` runs a bundle on the same inputs, compares, and gives a :class:`Verdict`;
* :func:`judge` does that once, or once per engine, and adds the facts: a :class:`VerdictSet`;
* :func:`read_baseline` and :func:`compare_with` say what became worse since an earlier one.
"""

from refimpl.oracle.baseline import Snapshot, read_baseline, require_same_model
from refimpl.oracle.check import CheckOptions, check
from refimpl.oracle.drift import Drift, allowances, compare_with
from refimpl.oracle.golden import Golden, read_golden
from refimpl.oracle.recording import record
from refimpl.oracle.verdict import Outcome, Verdict
from refimpl.oracle.verdict_set import VerdictSet, judge

__all__ = [
    "CheckOptions",
    "Drift",
    "Golden",
    "Outcome",
    "Snapshot",
    "Verdict",
    "VerdictSet",
    "allowances",
    "check",
    "compare_with",
    "judge",
    "read_baseline",
    "read_golden",
    "record",
    "require_same_model",
]
