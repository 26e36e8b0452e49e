"""The text of verdicts at several widths, without colour, and with names that would take a terminal over."""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from refimpl.oracle import Outcome, VerdictSet, allowances, compare_with, judge
from refimpl.oracle.baseline import Snapshot
from refimpl.oracle.render import print_verdicts
from refimpl.oracle.verdict import Unchecked
from refimpl.terminal import print_line
from refimpl.text import columns
from tests.oracle.fakes import SIGNATURE, FakeBundle, FakeIsland, make_case, write_golden

LONG = "a/rather/deep/scope/of/blocks/block_17/expanded_conv/project/BatchNorm"
HOSTILE = "\x1b[2J\x1b]0;owned\x07name\r\nFAILED: fake\t\u202e\u200b"
WIDE = "画像分類モデルの出力" * 4


@pytest.fixture(params=[LONG, HOSTILE, WIDE], ids=["long", "hostile", "wide"])
def verdicts(request: pytest.FixtureRequest, tmp_path: Path) -> VerdictSet:
    """Everything that can be shown, under one sort of name; a pass, a mismatch, and a fallback with a reason."""
    name: str = request.param
    signatures = tuple(replace(SIGNATURE, key=key) for key in ("serving_default", name))
    cases = [replace(make_case(f"{name}{rows}", rows), signature=sig.key) for sig in signatures for rows in (1, 2, 3)]
    record = write_golden(tmp_path / "g", cases, signatures)

    def islands(case: Any) -> tuple[FakeIsland, ...]:
        failed = FakeIsland(
            "j", "native", f"its engine {name} disagrees with TensorFlow on this machine by quite a lot"
        )
        fine = FakeIsland("j", "onnxruntime")
        return FakeIsland("i", "onnxruntime"), failed if len(case.outputs["flags"]) == 3 else fine

    def bend(outputs: dict[str, Any]) -> dict[str, Any]:
        return {**outputs, "scores": outputs["scores"] + (len(outputs["scores"]) == 2)}

    bundle = FakeBundle(record, bend, islands)
    found = judge("b", record.path, open_with=bundle.opener(), manifest_with=lambda path: bundle.manifest)
    verdict = replace(found.verdicts[0], notes=(f"a note on {name}",), unchecked=(Unchecked(name, f"why {name}"),))
    found = replace(found, verdicts=(verdict,))
    after = Snapshot.of(found.to_json())
    before = replace(after, shares={(name,): 1.25, ("serving_default",): 1.25})
    return replace(found, drift=compare_with(f"{name}.json", before, after, allowances([])))


def text_of(verdicts: VerdictSet, width: int, **options: Any) -> str:
    stream = io.StringIO()
    print_verdicts(verdicts, Console(file=stream, width=width, highlight=False, markup=False, **options))
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_it_fits(verdicts: VerdictSet, width: int) -> None:
    text = text_of(verdicts, width)
    assert max(map(columns, text.splitlines())) <= width
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    for outcome in (Outcome.MISMATCH, Outcome.FALLBACK_USED):
        shown = re.findall(rf"\b{outcome.value}$|\b{outcome.value} ", text, re.MULTILINE)
        assert len(shown) >= 2, "an outcome is never cut"
    assert (text.count("onnxruntime 1"), text.count("onnxruntime 2")) == (2, 4)
    assert re.search(r"share .*125\.0% +100\.0% +125\.0% +worse", text)


def test_nothing_in_a_name_reaches_the_terminal(verdicts: VerdictSet) -> None:
    text = text_of(verdicts, 80)
    assert all(char.isprintable() or char == "\n" for char in text)
    assert not any(line.startswith("FAILED: fake") for line in text.splitlines())


def test_it_says_the_same_without_a_terminal_and_without_colour(verdicts: VerdictSet) -> None:
    plain = text_of(verdicts, 80)
    assert "\x1b" not in plain
    coloured = text_of(verdicts, 80, force_terminal=True, color_system="standard")
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    without = text_of(verdicts, 80, force_terminal=True, no_color=True)
    assert not re.search(r"\x1b\[(?:\d+;)*[34]\d", without), "bold may stay, colours may not"


def test_the_command_obeys_no_color(golden: Any, bundle: FakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.oracle.commands import invoke

    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not re.search(r"\x1b\[(?:\d+;)*[34]\d", invoke("b", golden.path).stdout)
    monkeypatch.delenv("NO_COLOR")
    assert re.search(r"\x1b\[(?:\d+;)*3\d", invoke("b", golden.path).stdout)
    assert "NO_COLOR" not in os.environ


def test_a_name_that_is_wider_than_the_terminal_stays_one() -> None:
    stream = io.StringIO()
    print_line(Console(file=stream, width=60), f"note: {LONG * 3} ends")
    assert "".join(line.removeprefix("  ") for line in stream.getvalue().splitlines()).count(LONG * 3) == 1
