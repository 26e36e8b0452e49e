"""Tables and sentences fit any width, whatever the names are, and lose no word of a reason."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len as columns  # not our own: it is under test
from rich.console import Console

from refimpl import tables
from refimpl.tables import Column
from refimpl.terminal import print_line, print_table
from refimpl.text import agreeing, counted, printable, shortened

HEAD = (Column("ops", "number"), Column("type", "name"), Column("in"), Column("why", "text"))
REASON = "its lowering computes integers in float32, which is exact only up to 2^24 (at a/very/long/name/of/a/tensor:0)"
LONG = "functional_1/" + "block/" * 60 + "Conv2D"
HOSTILE = {
    "long": LONG,
    "one word": "x" * 500,
    "wide": "模型/" + "層" * 120,
    "accents": "e\u0301" * 200,
    "control": "a\x1b[31mred\x07\r\n\tb" * 9,
    "empty": "",
    "blanks": "   a   b   ",
    "markup": "[bold]x[/bold]" * 20,
    "lone surrogate": "\udcff" * 50,
    "right to left": "\u202eabc\u200b" * 30,
}


def words_of(column: int, lines: list[str], head: tuple[Column, ...]) -> str:
    """What stands in a column, all its lines joined, without blanks."""
    start = lines[0].index(head[column].title)
    return "".join(line[start:] for line in lines[1:]).replace(" ", "")


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("name", HOSTILE)
def test_every_line_fits_and_ends_where_its_text_ends(name, width):
    rows = [("12345", HOSTILE[name], "float32", REASON), ("7", "Svd", "int8", HOSTILE[name])]
    for line in tables.lines(HEAD, rows, width):
        assert columns(line) <= width
        assert line == line.rstrip()
        assert line == printable(line)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_letter_of_a_reason_is_lost(width):
    found = tables.lines(HEAD, [("1", LONG, "fp32", REASON)], width)
    assert words_of(3, found, HEAD) == REASON.replace(" ", "")
    long_word = "".join(chr(97 + i % 26) for i in range(300))
    assert words_of(3, tables.lines(HEAD, [("1", "a", "b", long_word)], width), HEAD) == long_word


@pytest.mark.parametrize("name", ["wide", "accents"])
def test_no_letter_of_a_wide_reason_is_lost(name):
    text = HOSTILE[name] + " " + HOSTILE[name]
    assert "".join(tables.wrapped(text, 30)).replace(" ", "") == text.replace(" ", "")
    assert max(map(columns, tables.wrapped(text, 30))) <= 30


def test_numbers_and_words_are_never_cut():
    found = tables.lines(HEAD, [("123456789", LONG, "float32", REASON)], 60)
    assert "123456789" in found[1]
    assert "float32" in found[1]


def test_columns_that_can_give_way_share_what_is_left():
    head = (Column("name", "name"), Column("why", "text"))
    (first, *_) = tables.lines(head, [("n" * 300, "w" * 300)], 80)
    assert first.index("why") == 41


def test_numbers_stand_right_and_the_rest_left():
    found = tables.lines((Column("n", "number"), Column("what")), [("1", "a"), ("100", "bb")], 80)
    assert found == ["  n  what", "  1  a", "100  bb"]


def test_where_columns_cannot_stand_side_by_side_every_cell_has_a_line():
    head = tuple(Column(f"column {number}") for number in range(6))
    rows = [tuple(f"value {row}{number}" for number in range(6)) for row in range(2)]
    found = tables.lines(head, rows, 30)
    assert found[:2] == ["column 0  value 00", "column 1  value 01"]
    assert found[6] == ""
    assert found[-1] == "column 5  value 15"
    assert len(found) == 13


def test_a_table_without_rows_is_its_headings():
    assert tables.lines(HEAD, [], 80) == ["ops  type  in  why"]


def test_names_lose_their_middle():
    assert shortened("abc", 3) == "abc"
    assert shortened("functional_1/conv/Conv2D", 14) == "fun...v/Conv2D"
    assert columns(shortened(HOSTILE["wide"], 15)) <= 15
    assert shortened("abcdef", 4) == "abcd"
    assert shortened("abcdef", 0) == ""


@pytest.mark.parametrize(
    ("count", "noun", "says"),
    [
        (1, "island", "1 island"),
        (0, "island", "0 islands"),
        (2, "TensorFlow op", "2 TensorFlow ops"),
        (1, "entry", "1 entry"),
        (3, "entry", "3 entries"),
        (2, "batch", "2 batches"),
    ],
)
def test_plurals(count, noun, says):
    assert counted(count, noun) == says


def test_agreeing():
    assert [agreeing(1), agreeing(5)] == ["1 sample agrees", "5 samples agree"]


def console(width: int, **options: object) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False, markup=False, **options)


def written(target: Console) -> list[str]:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [30, 60, 80, 200])
@pytest.mark.parametrize("name", HOSTILE)
def test_sentences_fit_and_keep_their_indent(name, width):
    target = console(width)
    print_line(target, f"  note: {HOSTILE[name]} {REASON}")
    found = written(target)
    assert max(map(columns, found)) <= width
    assert all(line.startswith("  ") and line == line.rstrip() for line in found)
    kept = "".join(found).replace(" ", "")
    assert kept.endswith(REASON.replace(" ", ""))
    assert printable(HOSTILE[name]).replace(" ", "") in kept


def test_only_headings_are_bold_and_nothing_else_has_a_style():
    target = console(80, force_terminal=True, color_system="truecolor")
    print_table(target, HEAD, [("1", "Svd", "fp32", "no lowering")])
    head, row = written(target)
    assert head.startswith("\x1b[1m")
    assert "\x1b" not in row
