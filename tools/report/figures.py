"""How long a report of many ops takes to make and to open: ``python -m tools.report.figures [OPS]``."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from refimpl import vendoring
from refimpl.report.html.document import make_document
from refimpl.report.html.render import render
from tools.report.browser import browser, open_report
from tools.report.synthetic import synthetic


def measure(ops: int) -> list[tuple[str, float]]:
    """Seconds of each step, by what it is."""
    rows, start = [], time.perf_counter()

    def lap(what: str) -> None:
        nonlocal start
        now = time.perf_counter()
        rows.append((what, now - start))
        start = now

    material = synthetic(ops)
    lap("advice")
    document = make_document(material)
    lap("gather and lay out")
    text = render(document, library=vendoring.library())
    lap("render")
    with tempfile.TemporaryDirectory(prefix="refimpl-report-") as folder, browser() as opened:
        file = Path(folder) / "report.html"
        file.write_text(text, encoding="utf-8")
        start = time.perf_counter()
        page = open_report(opened, file).page
        page.wait_for_selector("#canvas[data-boxes]")
        lap("open in Chromium")
        page.click("#view-all")
        page.wait_for_function(f"Number(document.getElementById('canvas').dataset.boxes) >= {ops}")
        page.evaluate(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )  # it is painted
        lap("show all ops")
        page.fill("#search", "AsString")
        page.wait_for_selector("#results li")
        lap("search")
        rows.append(("megabytes", file.stat().st_size / 1e6))
    return rows


def main() -> int:
    """Print the figures."""
    ops = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    print(f"a report of {ops} ops")
    for what, value in measure(ops):
        print(f"{what:20} {value:8.2f}" + ("" if what == "megabytes" else " s"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
