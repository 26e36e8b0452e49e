"""Calibration tables: the ranges that INT8 scales come from, as a file that can be kept, read, checked and compared.

A table holds the ranges of one signature of one model. A file holds one table or several, one for each signature::

    {"format": "refimpl calibration", "format_version": 1, "tables": [{"signature": ..., "ranges": {...}}]}

How ranges are found is in ``refimpl/converter/precision/calibrate.py``; nothing here knows about ONNX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refimpl import env
from refimpl.errors import RecipeError

FORMAT = "refimpl calibration"
FORMAT_VERSION = 1
METHODS = ("entropy", "percentile", "minmax")
PERCENTILE = 99.99  # what NVIDIA's and ONNX Runtime's tools take when nothing is said
BUCKETS = 64  # of the histogram kept for reports
QUANTILES = (99.0, 99.9, 99.99)  # of |x| over the values that are not zero, in percent

_AGAIN = "calibrate again: refimpl convert --precision int8 --calibration ..."


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRange:
    """What calibration saw of one tensor, and the symmetric range chosen for it.

    Thresholds and quantiles are in the tensor's own unit; shares are between 0 and 1.
    """

    low: float  # smallest finite value
    high: float  # largest finite value
    threshold: float  # |x| up to here is kept by INT8, the rest is clipped; 0.0: it was always zero
    clipped: float  # share of the finite values beyond the threshold
    values: int  # finite values seen
    zeros: int  # of them zero, or too small for a float32 scale
    nonfinite: int  # NaN and infinite values seen besides
    quantiles: Mapping[str, float]  # "99.99" -> what 99.99 % of the values other than zero lie within, by magnitude
    histogram: tuple[int, ...]  # counts of |x| in BUCKETS equal parts from 0 to the largest |x|

    @property
    def largest(self) -> float:
        """The largest magnitude seen."""
        return max(abs(self.low), abs(self.high))

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "histogram": list(self.histogram)}

    @staticmethod
    def from_json(data: Any) -> TensorRange:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: something is missing, of a wrong type, or impossible; the message says what.
        """
        quantiles = _get(data, "quantiles", dict)
        found = TensorRange(
            low=_number(data, "low"),
            high=_number(data, "high"),
            threshold=_number(data, "threshold", least=0.0),
            clipped=_number(data, "clipped", least=0.0, most=1.0),
            values=_count(data, "values"),
            zeros=_count(data, "zeros"),
            nonfinite=_count(data, "nonfinite"),
            quantiles={name: _number(quantiles, name, least=0.0) for name in quantiles},
            histogram=tuple(_counts(data, "histogram")),
        )
        if found.low > found.high:
            raise ValueError(f"low {found.low} is above high {found.high}")
        if found.threshold == 0 and found.zeros != found.values:
            raise ValueError("threshold 0 for a tensor that was not always zero")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationTable:
    """The ranges of one signature of one model, and where they come from."""

    source_sha256: str  # of the SavedModel
    signature: str
    method: str  # one of METHODS
    percentile: float  # used by the method of that name only
    batches: int
    created: str  # ISO 8601, UTC
    refimpl: str  # versions that made it
    onnxruntime: str
    ranges: Mapping[str, TensorRange]  # by range_key()
    warnings: tuple[str, ...] = ()
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        data = {name: getattr(self, name) for name in self.__slots__ if name not in ("format_version", "ranges")}
        ranges = {name: self.ranges[name].to_json() for name in sorted(self.ranges)}
        return {**data, "warnings": list(self.warnings), "ranges": ranges}

    @staticmethod
    def from_json(data: Any) -> CalibrationTable:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: something is missing, of a wrong type, or impossible; the message says what.
        """
        text = {
            name: _get(data, name, str)
            for name in ("source_sha256", "signature", "method", "created", "refimpl", "onnxruntime")
        }
        if text["method"] not in METHODS:
            raise ValueError(f"method {text['method']!r} is none of {', '.join(METHODS)}")
        warnings = _get(data, "warnings", list)
        if not all(isinstance(item, str) for item in warnings):
            raise ValueError("warnings holds something else than text")
        ranges = {}
        for name, item in _get(data, "ranges", dict).items():
            try:
                ranges[name] = TensorRange.from_json(item)
            except ValueError as error:
                raise ValueError(f"range of {name}: {error}") from None
        return CalibrationTable(
            **text,
            percentile=_number(data, "percentile", least=0.0, most=100.0),
            batches=_count(data, "batches"),
            warnings=tuple(warnings),
            ranges=ranges,
        )


def make_table(
    source_sha256: str,
    signature: str,
    ranges: Mapping[str, TensorRange],
    *,
    method: str,
    percentile: float,
    batches: int,
    warnings: Sequence[str] = (),
) -> CalibrationTable:
    """A table of these ranges (keys by :func:`range_key`), made now with the versions installed here."""
    versions = env.versions()
    return CalibrationTable(
        source_sha256=source_sha256,
        signature=signature,
        method=method,
        percentile=percentile,
        batches=batches,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        refimpl=versions.get("refimpl", ""),
        onnxruntime=versions.get("onnxruntime") or versions.get("onnxruntime-gpu", ""),
        ranges=dict(ranges),
        warnings=tuple(warnings),
    )


def range_key(island: str, tensor: str) -> str:
    """The key of a tensor in a table: the island's key and the tensor's name in the island's ONNX."""
    return f"{island}/{tensor}"


def ranges_of(table: CalibrationTable, island: str) -> dict[str, TensorRange]:
    """The ranges of one island, by ONNX tensor name."""
    prefix = range_key(island, "")
    return {name.removeprefix(prefix): item for name, item in table.ranges.items() if name.startswith(prefix)}


def save(tables: CalibrationTable | Sequence[CalibrationTable], path: Path) -> None:
    """Write tables, of different signatures, to one new file; it appears whole or not at all.

    The same tables always give the same bytes.

    Raises:
        RecipeError: the file exists, cannot be written, or two tables are of one signature.
    """
    tables = (tables,) if isinstance(tables, CalibrationTable) else tuple(tables)
    names = [table.signature for table in tables]
    if not names or len(set(names)) != len(names):
        raise RecipeError(
            f"a calibration file holds one table per signature, not {names}",
            hint="save the tables of each signature once",
        )
    data = {"format": FORMAT, "format_version": FORMAT_VERSION, "tables": [table.to_json() for table in tables]}
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        _write_new(path, text.encode())
    except FileExistsError:
        raise RecipeError(
            f"{path} exists already", hint="choose another name for the table; nothing is ever overwritten"
        ) from None
    except OSError as error:
        raise RecipeError(
            f"cannot write the calibration table {path}: {error.strerror or error}", hint="choose another place"
        ) from error


def _write_new(path: Path, content: bytes) -> None:
    """A link, not a rename, puts the finished file in place: it fails where a file of that name has come meanwhile."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        try:
            os.link(name, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if os.path.lexists(path):
                raise FileExistsError(path) from None
            Path(name).rename(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()


def load(path: Path) -> tuple[CalibrationTable, ...]:
    """The tables of a file, one for each signature.

    Raises:
        RecipeError: it is missing, damaged, something else, or of a newer format.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            f"calibration table {path} cannot be read: {error.strerror}", hint=f"give the path of a table, or {_AGAIN}"
        ) from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are
        raise RecipeError(f"calibration table {path} is damaged: {error}", hint=_AGAIN) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise RecipeError(f"{path} is no calibration table of refimpl", hint=_AGAIN)
    version = data.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        newer = "a newer" if isinstance(version, int) and version > FORMAT_VERSION else "an unknown"
        raise RecipeError(
            f"{path} has format {version!r}, {newer} one; this refimpl reads format {FORMAT_VERSION}",
            hint=f"upgrade refimpl, or {_AGAIN}",
        )
    try:
        tables = tuple(map(CalibrationTable.from_json, _get(data, "tables", list)))
    except ValueError as error:
        raise RecipeError(f"calibration table {path} is damaged: {error}", hint=_AGAIN) from None
    names = [table.signature for table in tables]
    if not names or len(set(names)) != len(names):
        raise RecipeError(f"calibration table {path} is damaged: tables of signatures {names}", hint=_AGAIN)
    return tables


def table_for(tables: Iterable[CalibrationTable], signature: str) -> CalibrationTable:
    """The table of a signature.

    Raises:
        RecipeError: there is none; the message names the signatures that have one.
    """
    by_name = {table.signature: table for table in tables}
    if signature not in by_name:
        raise RecipeError(
            f"the calibration table has no ranges of signature {signature!r}, only of {', '.join(by_name)}", hint=_AGAIN
        )
    return by_name[signature]


def check_fits(table: CalibrationTable, source_sha256: str, signature: str, needed: Iterable[str]) -> None:
    """Make sure that a table has what a conversion needs.

    Args:
        table: where the ranges come from.
        source_sha256: of the SavedModel that is converted.
        signature: that is converted.
        needed: keys of the tensors that need a range, by :func:`range_key`.

    Raises:
        RecipeError: it is of another model or signature, or lacks a tensor; the message names what.
    """
    if table.source_sha256 != source_sha256:
        raise RecipeError(
            f"the calibration table was made from another model: its SHA-256 starts {table.source_sha256[:12]}, that "
            f"of this one {source_sha256[:12]}",
            hint=f"ranges of other weights would be wrong; {_AGAIN}",
        )
    table_for((table,), signature)
    missing = [name for name in needed if name not in table.ranges]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RecipeError(
            f"the calibration table has no range of {missing[0]}{others}",
            hint=f"the model is cut into other islands than when it was calibrated; {_AGAIN}",
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """A tensor whose thresholds differ; ``None`` stands for a table that lacks it."""

    tensor: str
    a: float | None
    b: float | None

    @property
    def ratio(self) -> float | None:
        """Threshold in b over that in a; infinity where it was always zero in a, ``None`` where a table lacks it."""
        if self.a is None or self.b is None:
            return None
        return self.b / self.a if self.a else math.inf

    def to_json(self) -> dict[str, Any]:
        ratio = self.ratio
        return {
            "tensor": self.tensor,
            "a": self.a,
            "b": self.b,
            "ratio": ratio if ratio is None or math.isfinite(ratio) else None,
        }


def diff(a: CalibrationTable, b: CalibrationTable) -> tuple[Difference, ...]:
    """The tensors whose thresholds differ: first those in one table only, then by ratio, the furthest from 1 first."""
    found = []
    for name in sorted({*a.ranges, *b.ranges}):
        thresholds = [table.ranges[name].threshold if name in table.ranges else None for table in (a, b)]
        if thresholds[0] != thresholds[1]:
            found.append(Difference(name, *thresholds))
    return tuple(sorted(found, key=_closeness))


def _closeness(row: Difference) -> float:
    if row.ratio is None:
        return -math.inf
    return -abs(math.log(row.ratio)) if 0 < row.ratio < math.inf else -1e300


def _get(data: Any, name: str, kind: type) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{data!r:.40} where an object with {name!r} belongs")
    if name not in data:
        raise ValueError(f"{name!r} is missing")
    if not isinstance(data[name], kind) or (isinstance(data[name], bool) and kind is not bool):
        raise ValueError(f"{name!r} is {data[name]!r:.40}")
    return data[name]


def _number(data: Any, name: str, *, least: float = -math.inf, most: float = math.inf) -> float:
    number = data.get(name) if isinstance(data, dict) else None
    value = float(_get(data, name, int if isinstance(number, int) else float))
    if not math.isfinite(value) or not least <= value <= most:
        raise ValueError(f"{name!r} is {value}")
    return value


def _count(data: Any, name: str) -> int:
    value: int = _get(data, name, int)
    if value < 0:
        raise ValueError(f"{name!r} is {value}")
    return value


def _counts(data: Any, name: str) -> list[int]:
    values: list[int] = _get(data, name, list)
    if any(not isinstance(item, int) or isinstance(item, bool) or item < 0 for item in values):
        raise ValueError(f"{name!r} holds something else than counts")
    return values
