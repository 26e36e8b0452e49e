"""The documentation site; `make docs` writes it to docs/_build/html. The pages are Markdown, readable without it."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the refimpl of this checkout, installed or not

import refimpl  # noqa: E402

project = "refimpl"
author = "the refimpl authors"
copyright = author  # noqa: A001  (Sphinx's name)
version = release = refimpl.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build"]
highlight_language = "none"  # a block without a language is a shell's
myst_heading_anchors = 4  # the anchors that a Git host gives, so that a link works in both places

# The signature says what a value is, in the words of the code; what it means is in the text.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {"StrPath": "str | os.PathLike", "Array": "numpy.ndarray"}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_use_rtype = False  # what is returned is a sentence, and its type is in the signature

# `make docs` looks every reference up. Nothing is fetched, so names of other packages lead nowhere.
nitpick_ignore_regex = [("py:.*", r"(?!refimpl\b).*")]

html_theme = "furo"
html_title = f"refimpl {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
