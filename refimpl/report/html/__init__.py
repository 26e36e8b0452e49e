"""The HTML report: one file that explains a bundle to somebody who never saw the project.

``document`` gathers plain data and decides nothing; ``render`` puts it into templates; the page's own script draws it.
"""

from __future__ import annotations
