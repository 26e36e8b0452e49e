"""One build step that pyproject.toml cannot say: fetch the library that draws the graph of the HTML report.

A build without npm, or without a network, succeeds all the same; the report then shows a still picture and says why.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

VENDORING = Path(__file__).resolve().parent / "refimpl" / "vendoring.py"


class BuildWithVendored(build_py):
    """Fetches before package data is collected, for wheels and for editable installations alike."""

    def run(self) -> None:
        """Fetch, then build as ever."""
        spec = importlib.util.spec_from_file_location("refimpl_vendoring", VENDORING)
        vendoring = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(vendoring)
        try:
            vendoring.fetch()
        except vendoring.VendoringError as error:
            self.warn(f"the graph of HTML reports will be a still picture: {error}")
        self.__dict__.pop("data_files", None)  # collected anew, now that the files are there
        super().run()


setup(cmdclass={"build_py": BuildWithVendored})
