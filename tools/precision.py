"""Measure what FP16, BF16 and INT8 cost, and write it down: docs/benchmarks/precision.md and precision.json, and the
tables in docs/precision.md.

    python tools/precision.py                          # all of it, about 15 minutes on two cores
    python tools/precision.py --only digits,outliers   # some sections; the others stay as they were

Sections: digits, outliers, qat, auto, trained, networks, prediction. Everything is seeded; times are not.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the refimpl of this checkout, installed or not
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # noqa: TID251  (before TensorFlow is imported)

from refimpl import env  # noqa: E402
from tools.figures import networks, prediction, ranges_of_their_own, report, trained_digits  # noqa: E402
from tools.figures.measure import Section, Tell  # noqa: E402

OUT = ROOT / "docs" / "benchmarks"
GUIDE = ROOT / "docs" / "precision.md"  # it shows tables between marks
SECTIONS: dict[str, Callable[[Path, Tell], Section]] = {
    "digits": trained_digits.precisions,
    "outliers": trained_digits.outliers,
    "qat": ranges_of_their_own.quantization_aware,
    "auto": ranges_of_their_own.choosing,
    "trained": networks.trained,
    "networks": networks.images,
    "prediction": prediction.honesty,
}


def chosen(text: str) -> list[str]:
    """The sections that ``--only`` names, in their own order; all of them for an empty text."""
    asked = {name.strip() for name in text.split(",") if name.strip()}
    if unknown := sorted(asked - set(SECTIONS)):
        raise argparse.ArgumentTypeError(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in asked or not asked]


def processor() -> str:
    """What computed: the processor's name and how many cores there are."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def measure(names: Sequence[str], tell: Tell) -> Iterator[dict[str, object]]:
    """A record of every section named, each as soon as it is measured, in a folder that is removed in the end."""
    versions = {name: version for name, version in env.versions().items() if version}
    head = {"command": "python tools/precision.py", "processor": processor(), "versions": versions}
    with tempfile.TemporaryDirectory(prefix="refimpl-precision-") as scratch:
        for name in names:
            began = time.monotonic()
            section = SECTIONS[name](Path(scratch), tell)
            today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
            found = report.to_json(section, date=today, seconds=time.monotonic() - began)
            yield {**head, "sections": {name: found}}


def write(record: Mapping[str, object], folder: Path) -> None:
    """Put a record into both files; sections that it does not have stay in them."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "precision.json"
    old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    new = report.merged(old, record, list(SECTIONS))
    file.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(report.markdown(new), encoding="utf-8")
    if folder == OUT and list(new["sections"]) == list(SECTIONS):
        GUIDE.write_text(report.filled(GUIDE.read_text(encoding="utf-8"), new), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=chosen, default=list(SECTIONS), metavar="SECTION,...")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for precision.md and precision.json")
    given = parser.parse_args(arguments)
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {line}", file=sys.stderr, flush=True)

    for record in measure(given.only, tell):
        write(record, given.out)
    tell(f"wrote {given.out / 'precision.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
