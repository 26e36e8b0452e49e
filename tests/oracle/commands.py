"""The command ``check``, called in this process."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from refimpl.cli_check import check


def invoke(*args: object) -> Result:
    return CliRunner().invoke(check, [str(arg) for arg in args])


def checked(*args: object) -> dict[str, Any]:
    """The JSON of a check that came to a verdict."""
    result = invoke(*args, "--json")
    assert result.exit_code in (0, 1), result.output
    data: dict[str, Any] = json.loads(result.stdout)
    assert data["passed"] is (result.exit_code == 0)
    return data
