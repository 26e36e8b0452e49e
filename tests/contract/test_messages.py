"""Every error and warning has one entry on docs/troubleshooting.md, and every entry is about something that is said."""

from __future__ import annotations

import logging
import re
from collections import Counter

import pytest

from refimpl import troubleshooting
from refimpl.cli_help import WarningFormatter
from refimpl.converter.refusals import _REFUSED_DTYPES, UNFAITHFUL
from refimpl.troubleshooting import Entry, entries, entry_of
from tests.contract.messages import ANY, Message, messages, strings
from tests.contract.sources import PACKAGE, ROOT, python_files

PAGE = (ROOT / troubleshooting.PAGE).read_text(encoding="utf-8")
REASONS = "Why an op stays in TensorFlow"
OUTCOMES = "Outcomes of a case"
# A part that varies says what is wrong, so the message alone tells nothing: what it can be.
SPELLED_OUT = {
    f"{ANY} holds {ANY}": [f"{ANY} holds .npy files and no .npz"],
    f"{ANY} {ANY}": [f"{ANY} does not exist", f"{ANY} is not a directory", f"{ANY} is not a golden record: it has"],
    f"{ANY} {ANY} is not known": [
        f"{what} 'x' is not known" for what in ("precision", "engine", "profile", "op_set", "calibrator", "metric")
    ],
    f"{ANY} {ANY} on labelled cases, and golden has none": [
        f"--max-drop judges {ANY} on labelled cases, and golden has none"
    ],
    f"Polygraphy cannot hold {ANY} {ANY}: it is {ANY}": [
        "Polygraphy cannot hold input 'x': it is string",
        "Polygraphy cannot hold output 'x': it is bfloat16",
    ],
    f"sample {ANY}: {ANY}": [f"sample {ANY}: 'x' is float64", f"sample {ANY}: 'x' has shape [2, 3]"],
    f"input {ANY}": ["input 'x' is float64", "input 'x' has shape [2, 3]"],
}
# They pass on what a library or another part of refimpl has said: its own words are looked up.
PASSED_ON = {
    "converter/native.py", "engines/onnxruntime.py", "engines/tensorrt/building.py", "engines/tensorrt/inspection.py",
    "engines/tensorrt/lanes.py", "runtime/building.py", "runtime/island.py", "tftrt_env.py", "trt_convert/converter.py",
    "trt_convert/inputs.py", "trt_convert/support.py", "trt_convert/v1.py",
}  # fmt: skip
ELSEWHERE = re.compile(r"^\* (?:\w+: )?`([^`]+)` \(from [^)]*\)$", re.MULTILINE)  # another program says it


def unnamed(message: Message) -> list[str]:
    """The texts of a message that have no entry."""
    if message.text == ANY and message.where.rpartition(":")[0] in PASSED_ON:
        return []
    return [text for text in SPELLED_OUT.get(message.text, [message.text]) if entry_of(text) is None]


def test_every_message_has_an_entry() -> None:
    found = messages()
    assert len(found) > 300
    assert [f"{message.where}: {text}" for message in found for text in unnamed(message)] == []


def test_a_message_without_an_entry_is_noticed() -> None:
    assert unnamed(Message("bundle.py:1", f"the moon is {ANY}")) == [f"the moon is {ANY}"]
    assert unnamed(Message("bundle.py:1", ANY)) == [ANY], "only modules that pass on others' words may say nothing"


def test_no_part_of_the_source_is_passed_over() -> None:
    where = {message.where.rpartition(":")[0] for message in messages()}
    assert {"bundle.py", "cache/store.py", "runtime/island.py", "trt_convert/v1.py", "oracle/golden.py"} <= where
    assert {"cannot write @1: @1", "the cache entry @1 cannot be used: @1"} <= {message.text for message in messages()}


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.anchor)
def test_an_entry_is_found_by_its_messages(entry: Entry) -> None:
    for pattern in entry.messages:
        found = entry_of(pattern.replace("...", ANY))
        assert found is entry, f"{pattern} leads to {found and found.anchor}"
    assert entry.messages or entry.section == OUTCOMES, "an entry says what it is about"
    said = re.sub(r"^\* .*$", "", entry.text, flags=re.MULTILINE).strip()
    assert said.endswith("."), "and what to do"


def test_anchors_are_unique_and_plain() -> None:
    headings = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    slugs = Counter(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    assert [slug for slug, count in slugs.items() if count > 1] == []
    assert [entry.anchor for entry in entries() if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", entry.anchor)] == []
    assert len(entries()) == PAGE.count("\n### "), "every third-level heading is an entry"


def test_no_message_stands_in_two_entries() -> None:
    counts = Counter(pattern for entry in entries() for pattern in entry.messages)
    assert [pattern for pattern, count in counts.items() if count > 1] == []


def source_texts() -> list[str]:
    """Every string in the package, with ``ANY`` for the parts that vary."""
    return [text for file in python_files(PACKAGE) for text in strings(file)]


def is_said(pattern: str, texts: str) -> bool:
    """Whether three words of a message, or all that it has, stand in the source; it may be put together of strings."""
    pieces = [piece.strip(" :;,()=") for piece in pattern.split("...")]
    words = [piece.split() for piece in pieces]
    runs = {" ".join(row[at : at + 3]) for row in words for at in range(max(1, len(row) - 2))}
    longest = max(map(len, runs))
    return any(run in texts for run in runs if len(run) >= min(longest, 12))


def test_no_entry_is_about_what_nobody_says() -> None:
    texts, elsewhere = "\n".join(source_texts()), set(ELSEWHERE.findall(PAGE))
    said = [(entry.anchor, pattern) for entry in entries() for pattern in set(entry.messages) - elsewhere]
    assert [item for item in said if not is_said(item[1], texts)] == []
    assert not is_said("the moon is made of ...", texts)


def test_reasons_and_notes_have_entries() -> None:
    for reason in {*UNFAITHFUL.values(), *_REFUSED_DTYPES.values()}:
        found = entry_of(reason)
        assert found is not None, reason
        assert found.section == REASONS, reason
    notes = [text for text in source_texts() if re.match(r"(WARNING|UNVERIFIED|calibration): .", text)]
    assert len(notes) >= 4
    assert [note for note in notes if entry_of(note) is None] == []


# What is found when a message is met


def test_the_most_telling_entry_is_found() -> None:
    for message, anchor in {
        "/x is damaged: saved_model.pb cannot be parsed: Error parsing message": "damaged-savedmodel",
        "/x/refimpl/manifest.json is damaged: 'islands'": "damaged",
        "calibration table /x is damaged: no": "bad-calibration-table",
        "my.toml: shape of 'x' is 3": "recipe-field",
        "shape of 'x' is (0, 3)": "shape-too-small",
        "refimpl: island A: tensorrt: TensorRT cannot execute here: no usable NVIDIA GPU (no driver)": "no-gpu",
        "refimpl: island A: tensorrt: ONNX Runtime failed: x; onnxruntime runs instead": "onnxruntime-failed",
        "sample 3: TensorFlow fails on it: input x has shape [2], the signature wants [3]": "sample-refused",
        "refimpl: TensorFlow runs island A: Segmentation of the mind": "engine-not-used",
    }.items():
        found = entry_of(message)
        assert found is not None, message
        assert found.anchor == anchor, message
    assert entry_of("all is well") is None


def test_a_hostile_message_takes_no_time() -> None:
    found = entry_of("/x is damaged: no profile of the engine takes input " * 100_000)
    assert found is not None
    assert found.anchor == "damaged"


def formatted(message: str, *args: object, level: int = logging.WARNING) -> str:
    return WarningFormatter("%(levelname)s %(message)s").format(
        logging.LogRecord("refimpl", level, __file__, 1, message, args, None)
    )


def test_warnings_say_where_there_is_more() -> None:
    warned = formatted("the cache %s cannot be written: %s", "c", "No space left on device")
    assert warned == (
        "WARNING the cache c cannot be written: No space left on device (more: refimpl help cache-not-written)"
    )
    assert formatted("all is well") == "WARNING all is well"
    assert formatted("no such bundle: x", level=logging.INFO) == "INFO no such bundle: x"
