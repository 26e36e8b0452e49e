"""Chromium without a window and without a network, for looking at reports."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@dataclass(frozen=True)
class Watched:
    """A page, and what it did that a report must not do.

    Attributes:
        page: Playwright's.
        complaints: what it wrote to the console, and errors of its scripts.
        requests: addresses that it asked for, its own left out.
    """

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def chromium_path() -> str:
    """Where Chromium is; "" when it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or ""


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A browser; its profile is a new and empty folder."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium_path(), args=_ARGUMENTS)
        try:
            yield opened
        finally:
            opened.close()


def open_report(opened: Any, file: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> Watched:
    """Open a report in a new page, and watch it.

    Args:
        opened: what :func:`browser` gives.
        file: the report.
        width: of the window, in CSS pixels.
        height: of the window.
        dark: whether the reader prefers dark pages.
    """
    page = opened.new_page(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    watched, own = Watched(page), file.absolute().as_uri()
    page.on("console", lambda message: watched.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: watched.complaints.append(f"error: {error}"))
    page.on("request", lambda request: watched.requests.append(request.url) if request.url != own else None)
    page.goto(own)
    page.wait_for_load_state("load")
    return watched
