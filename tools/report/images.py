"""The pictures of reports in docs/images: ``python -m tools.report.images``."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from refimpl import cli
from tools.report.browser import browser, open_report

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "images"


def main() -> int:
    """Convert two models, open their reports, and keep what is to be seen of them."""
    FOLDER.mkdir(exist_ok=True)
    models: Any = importlib.import_module("tests.models")  # without types, so mypy is not to look into it
    with tempfile.TemporaryDirectory(prefix="refimpl-images-") as folder, browser() as opened:
        files = {}
        for name in ("decode_and_label", "detector"):
            files[name] = Path(folder) / f"{name}.html"
            code = cli.main(
                [
                    "-q",
                    "convert",
                    str(models.saved_model(name)),
                    f"{folder}/{name}",
                    "--json",
                    "--report",
                    str(files[name]),
                ]
            )
            if code:
                return code
        page = open_report(opened, files["decode_and_label"], width=1100, height=760).page
        page.locator("#graph").scroll_into_view_if_needed()
        page.evaluate("document.getElementById('search').scrollIntoView()")
        page.screenshot(path=FOLDER / "report-graph.png")
        page.evaluate("document.getElementById('advice').scrollIntoView()")
        page.screenshot(path=FOLDER / "report-advice.png")
        page = open_report(opened, files["detector"], width=360, height=740, dark=True).page
        page.evaluate("document.getElementById('search').scrollIntoView()")
        page.screenshot(path=FOLDER / "report-phone.png")
    for file in sorted(FOLDER.glob("report-*.png")):
        print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
