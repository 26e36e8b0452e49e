"""The documents say what the code does: fields, commands, options, messages, examples and links are all looked up."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from refimpl import bundle, cli
from refimpl.recipe import load_recipe
from tests.contract.sources import PACKAGE, ROOT, python_files
from tools import demo

DOCS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "golden/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
IDS = [file.relative_to(ROOT).as_posix() for file in DOCS]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_OURS = {"--no-index", "--find-links", "--all", "--dir"}  # pip's and saved_model_cli's


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def fenced(text: str, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(text) if found == language]


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {heading!r}"
    return found[1]


# The bundle's format


@pytest.mark.parametrize(
    "record",
    [
        value
        for value in vars(bundle).values()
        if dataclasses.is_dataclass(value) and value.__module__ == bundle.__name__
    ],
)
def test_every_manifest_field_is_described(record: type) -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", section(text_of("docs/bundle-format.md"), record.__name__), re.MULTILINE)
    described = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(described) == sorted(field.name for field in dataclasses.fields(record))


def test_constants_of_the_format_are_those_of_the_code() -> None:
    text = text_of("docs/bundle-format.md")
    assert text.startswith(f"# The bundle format, version {bundle.FORMAT_VERSION}\n")
    assert bundle.POINTER in text
    assert bundle.MANIFEST in text
    idle = section(text, "SignatureRecord")
    assert all(f"`{op}`" in idle for op in bundle.IDLE_OPS)


# Commands and options


def parse(words: list[str], *, whole: bool) -> None:
    """Parse a command line without running it; ``whole`` if all arguments must be there."""
    command = cli.group.commands.get(words[0])
    assert command, f"no command {words[0]!r}"
    try:
        command.make_context(words[0], words[1:])
    except click.MissingParameter:
        assert not whole, f"{' '.join(words)} lacks an argument"


def commands(text: str) -> Iterator[tuple[list[str], bool]]:
    """Every ``refimpl ...`` with whether it stands in a block, where it must be complete."""
    for language, body in FENCE.findall(text):
        if not language:
            for line in body.splitlines():
                if line.startswith("refimpl "):
                    yield shlex.split(line, comments=True)[1:], True
    for code in inline_code(text):
        words = shlex.split(code) if code.startswith("refimpl ") else []
        if len(words) > 1 and words[1] in cli.group.commands:
            yield words[1:], False


@pytest.mark.parametrize("file", DOCS, ids=IDS)
def test_commands_parse(file: Path) -> None:
    for words, whole in commands(file.read_text(encoding="utf-8")):
        parse(words, whole=whole)


@pytest.mark.parametrize("file", DOCS, ids=IDS)
def test_options_exist(file: Path) -> None:
    known = {name for command in cli.group.commands.values() for option in command.params for name in option.opts}
    named = {code.split()[0] for code in inline_code(file.read_text(encoding="utf-8")) if code.startswith("--")}
    assert named - known - NOT_OURS - {"--help"} == set()


def test_commands_of_the_demo_parse() -> None:
    given = [list(step.command) for step in demo.steps() if step.command]
    assert [words[0] for words in given] == ["convert", "run", "record", "check"]
    for words in given:
        parse(words, whole=True)


def test_readme_shows_every_command() -> None:
    shown = {words[0] for words, whole in commands(text_of("README.md")) if whole}
    assert shown == set(cli.group.commands)


def test_readme_names_every_extra() -> None:
    table = text_of("pyproject.toml").split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    listed = re.findall(r"^(\w+) = \[", table, re.MULTILINE)
    rows = re.findall(r"^\| `(\w+)` \|", section(text_of("README.md"), "Install"), re.MULTILINE)
    assert sorted(rows) == sorted(listed)


# Examples


MAKE_MODEL = """
import tensorflow as tf

class Small(tf.Module):
    def __init__(self):
        self.filter = tf.Variable(tf.random.stateless_normal((3, 3, 3, 4), seed=(1, 2)))

    @tf.function(input_signature=[tf.TensorSpec((None, 224, 224, 3), name="image")])
    def call(self, image):
        features = tf.nn.relu(tf.nn.conv2d(image, self.filter, 4, "SAME"))
        return {"output_0": tf.nn.softmax(tf.reduce_mean(features, [1, 2]))}

model = Small()
tf.saved_model.save(model, "my_model", signatures={"serving_default": model.call})
"""


def test_readme_examples_run(tmp_path: Path) -> None:
    convert, infer, use = fenced(text_of("README.md"), "python")
    assert run_python(MAKE_MODEL + convert + infer, tmp_path) == "(1, 4) ['onnxruntime']\n(1, 4)"
    assert run_python(use, tmp_path) == "(1, 4)"


def run_python(program: str, folder: Path) -> str:
    before = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", before + program], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_readme_recipe_loads(tmp_path: Path) -> None:
    (written,) = fenced(text_of("README.md"), "toml")
    file = tmp_path / "my.toml"
    file.write_text(written, encoding="utf-8")
    recipe = load_recipe(file)
    assert recipe.engines == ("onnxruntime", "tensorrt")
    assert recipe.shapes == (("image", (1, 224, 224, 3)), ("image", (32, 224, 224, 3)))
    assert recipe.keep_in_tf == ("Softmax", "*/head/*")


# Messages and modules


def fragments(node: ast.expr) -> list[str]:
    """The fixed parts of a message."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return [part.value for part in node.values if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in fragments(value)]
    return []


def messages() -> Iterator[tuple[str, str]]:
    """(where, longest fixed part) of every message that a user can meet."""
    errors = {"RecipeError", "SourceError", "UnsupportedError", "BuildError", "RunError", "BundleError", "GoldenError"}
    for file in python_files(PACKAGE):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in errors and node.args:
                longest = max((text.strip(" :(") for text in fragments(node.args[0])), key=len, default="")
                if len(longest) > 3:
                    yield f"{file.name}:{node.lineno}", longest


def test_every_message_is_in_troubleshooting() -> None:
    text, found = text_of("docs/troubleshooting.md"), list(messages())
    assert len(found) > 100
    assert [f"{where}: {message}" for where, message in found if message not in text] == []


def test_every_stage_of_the_converter_is_explained() -> None:
    text = text_of("docs/how-it-works.md")
    modules = {file.stem for file in python_files(PACKAGE / "converter")} - {"__init__"}
    words = set(re.findall(r"\w+", text))
    assert modules - words == set()


# Links


def slug(heading: str) -> str:
    """The anchor that a Markdown renderer gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("file", DOCS, ids=IDS)
def test_links_resolve(file: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", file.read_text(encoding="utf-8"))):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (file.parent / name).resolve() if name else file
        assert linked.is_file(), f"{file.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", linked.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{file.name}: {target}"
