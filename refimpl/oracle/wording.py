"""How verdicts are put into words and numbers; text, Markdown and JUnit share it. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from refimpl.oracle.compare import Scalar, TensorDiff
from refimpl.oracle.drift import Change, Drift, Row
from refimpl.oracle.facts import SignatureFacts
from refimpl.oracle.latency import Latency
from refimpl.oracle.statistics import Places
from refimpl.oracle.task_metric import TaskMetric
from refimpl.oracle.verdict import NATIVE, CaseResult, Outcome, Verdict
from refimpl.oracle.verdict_set import VerdictSet

_MB = 1e6


def conclusion(verdicts: VerdictSet) -> str:
    """The whole check in one line."""
    if not verdicts.passed:
        return f"FAILED: {'; '.join(verdicts.problems)}"
    if len(verdicts.verdicts) == 1:
        return f"PASSED: {summary(verdicts.verdicts[0])}"
    ran = [verdict.engine for verdict in verdicts.verdicts if not verdict.excused]
    idle = [verdict.engine for verdict in verdicts.verdicts if verdict.excused]
    return f"PASSED: {', '.join(ran)} match TensorFlow" + (f"; not run: {', '.join(idle)}" if idle else "")


def summary(verdict: Verdict) -> str:
    """One verdict in one line."""
    if verdict.excused:
        return f"not run: {verdict.excused}"
    if not verdict.passed:
        return "; ".join(verdict.problems)
    count = len(verdict.judged)
    text = f"{count} of {count} cases match TensorFlow"
    text += "" if verdict.accelerated or verdict.reference else ", nothing was accelerated"
    for outcome, what in (
        (Outcome.FALLBACK_USED, "with a fallback"),
        (Outcome.CONVERSION_FAILED, "of signatures that were not converted"),
    ):
        found = sum(case.outcome is outcome for case in verdict.cases)
        text += f", {found} {what}" if found else ""
    left = len(verdict.cases) - count
    return text + (f", {left} left out" if left else "")


def heading(verdicts: VerdictSet) -> str:
    """What was compared with what, and where."""
    bundle, golden = verdicts.facts.bundle, verdicts.facts.golden
    gpus = verdicts.facts.machine["gpus"]
    where = f"{verdicts.facts.machine['processor']}" + "".join(f", {name}" for name in gpus)
    return f"bundle {bundle.name} ({bundle.precision}) against golden {golden['name']}, on {where}"


def engine_heading(verdict: Verdict) -> str:
    """Whom a verdict is about, and how strictly it was judged."""
    who = {"any": "the engines that the bundle prefers", "tensorflow": "TensorFlow itself, no engine"}
    used = sorted({case.precision for case in verdict.cases if case.precision})
    rows = f", tolerances of {', '.join(used)}" if used else ""
    return f"{who.get(verdict.engine, verdict.engine)}{rows}"


def bundle_lines(verdicts: VerdictSet) -> list[str]:
    """How much of the bundle is converted, and how large it is."""
    bundle = verdicts.facts.bundle
    parts = {part: f"{size / _MB:.2f} MB" for part, size in bundle.bytes.items()}
    sizes = [f"{part.removeprefix('engines/')} {text}" for part, text in parts.items() if part != "total"]
    return [*map(_converted, bundle.signatures), f"{parts['total']} on disk: {', '.join(sizes)}"]


def _converted(item: SignatureFacts) -> str:
    if not item.converted:
        return f"{item.key}: not converted: {item.reason}"
    islands = count(item.islands, "island")
    return f"{item.key}: {item.ops_converted} of {item.ops_total} ops ({item.share:.0%}) in {islands}"


def latency_text(item: Latency) -> str:
    """``2.1 ms a call, 0.81 of TensorFlow's 2.6 ms (serving_default/normal-b3, median of 5)``."""
    return (
        f"{item.seconds * 1e3:.3g} ms a call, {item.ratio:.2f} of TensorFlow's {item.native_seconds * 1e3:.3g} ms "
        f"({item.signature}/{item.case}, median of {item.runs})"
    )


def task_text(task: TaskMetric) -> str:
    """The metric of both, the drop, and how sure it is."""
    if task.drop is None or task.bundle is None or task.tensorflow is None:
        return f"{task.metric} was not measured: {task.unmeasured}"
    text = f"{task.metric} on {count(task.examples, 'example')} of signature {task.signature!r}: "
    text += f"TensorFlow {_with(task.tensorflow, task.tensorflow_interval)}"
    text += f", bundle {_with(task.bundle, task.bundle_interval)}, drop {_with(task.drop, task.drop_interval)}"
    if task.max_drop is not None:
        text += f", allowed {task.max_drop:.4g}"
    return text + ("; more examples would tell whether that holds" if task.uncertain else "")


def _with(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.4g}" + (f" (95 %: {interval[0]:.4g} to {interval[1]:.4g})" if interval else "")


def case_name(case: CaseResult, verdict: Verdict) -> str:
    """``SIGNATURE/CASE``, or the case alone where there is only one signature."""
    several = len({other.signature for other in verdict.cases}) > 1
    return f"{case.signature}/{case.case}" if several else case.case


def engines_text(case: CaseResult) -> str:
    """``onnxruntime 3, TensorFlow 1``: how many islands ran where."""
    return ", ".join(f"{'TensorFlow' if name == NATIVE else name} {n}" for name, n in case.engines.items()) or "-"


def worst_tensor(case: CaseResult) -> TensorDiff | None:
    """The output that is wrong, or else the one whose error takes the largest share of its tolerance."""
    tensors: Sequence[TensorDiff] = case.comparison.tensors if case.comparison else ()
    return max(tensors, key=lambda t: (not t.ok, t.over, t.share or 0.0, t.max_abs or 0.0), default=None)


def worst_lines(case: CaseResult) -> list[str]:
    """Where the wrong outputs of a case are worst, and how their errors are spread."""
    lines = []
    for t in case.comparison.tensors if case.comparison else ():
        if t.ok or t.worst_index is None:
            continue
        lines.append(f"{t.name}{list(t.worst_index)}: want {_scalar(t.want)}, got {_scalar(t.got)}")
        known = {
            "max abs": t.max_abs,
            "mean abs": t.mean_abs,
            "max rel": t.max_rel,
            "RMSE": t.rmse,
            "PSNR": t.psnr_db,
            "cosine": t.cosine,
            "ULP": t.max_ulp,
            "top 1": t.top1,
            "top 5": t.top5,
        }
        lines.append(", ".join(f"{name} {value:.4g}" for name, value in known.items() if value is not None))
        lines += [f"{what}: {_places(found)}" for what, found in _odd(t) if found]
    return [line for line in lines if line]


def _scalar(value: Scalar) -> str:
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def _odd(t: TensorDiff) -> tuple[tuple[str, Places | None], ...]:
    return (
        ("NaN in golden", t.nan_want),
        ("NaN in the bundle", t.nan_got),
        ("infinities in golden", t.inf_want),
        ("infinities in the bundle", t.inf_got),
    )


def _places(found: Places) -> str:
    more = ", ..." if found.count > len(found.first) else ""
    return f"{found.count}, at {', '.join(str(list(index)) for index in found.first)}{more}"


def told_rows(drift: Drift) -> list[Row]:
    """The rows of a drift that a reader wants to see: all that changed."""
    return [row for row in drift.rows if row.change is not Change.SAME]


def drift_heading(drift: Drift) -> str:
    """How much stayed, and how much did not."""
    same = sum(row.change is Change.SAME for row in drift.rows)
    return f"since baseline {drift.baseline}: {count(same, 'number')} of {len(drift.rows)} the same"


def row_cells(row: Row) -> tuple[str, str, str, str, str, str]:
    """Quantity, name, was, is, allowed, and what became of it."""
    was, now, limit = (_value(row, value) for value in (row.was, row.now, row.limit))
    return row.quantity, row.name, was, now, limit, row.change.value


def _value(row: Row, value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    if row.quantity == "size":
        return f"{value / _MB:.3f} MB"
    return f"{value:.1%}" if row.quantity in ("share", "accuracy") else f"{value:.4g}"


def number(value: float | None) -> str:
    """``1.2e-05``, ``0``, or ``-`` for none."""
    return "-" if value is None else f"{value:.2e}" if value else "0"


def share_text(tensor: TensorDiff | None) -> str:
    """The error as a share of the tolerance."""
    return "-" if tensor is None or tensor.share is None else f"{tensor.share:.0%}" if tensor.share < 100 else ">100x"


def count(n: int, what: str) -> str:
    """``1 island``, ``2 islands``."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
