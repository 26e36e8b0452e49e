"""The judge: records what TensorFlow answers, and checks a bundle against it. It never imports the maker.

* :func:`record` runs a SavedModel in plain TensorFlow and keeps the answers (a *golden* record);
* :func:`check` runs a bundle on the same inputs, compares, and gives a :class:`Verdict`.
"""

from refimpl.oracle.check import check
from refimpl.oracle.golden import Golden, read_golden
from refimpl.oracle.recording import record
from refimpl.oracle.verdict import Outcome, Verdict

__all__ = ["Golden", "Outcome", "Verdict", "check", "read_golden", "record"]
