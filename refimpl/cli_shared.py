"""What commands share: where data and progress go, the options that decide a plan, how a manifest is shown."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from refimpl import terminal
from refimpl.errors import RecipeError
from refimpl.progress import Tell
from refimpl.recipe import Recipe, load_recipe, parse_shape, recipe_with

PATH = click.Path(path_type=Path)


class _FileName(click.types.StringParamType):
    """A text that may be the name of a file: shells complete it as one."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Let the shell complete files."""
        del ctx, param
        return [CompletionItem(incomplete, type="file")]


FILE_NAME = _FileName()


@contextlib.contextmanager
def progress() -> Iterator[Tell]:
    """A reporter of stages on stderr: a bar on a terminal, a line each elsewhere, nothing with --quiet. Library chatter
    goes there too. After Ctrl-C, or a request to terminate, it raises KeyboardInterrupt.
    """
    from refimpl.progress_bar import reporter

    quiet = logging.getLogger("refimpl").level >= logging.ERROR
    with (
        reporter(quiet=quiet) as show,
        contextlib.redirect_stdout(sys.stderr),
        _remembered_interrupts() as raise_if_any,
    ):

        def tell(line: str) -> None:
            raise_if_any()
            show(line)

        yield tell


@contextlib.contextmanager
def _remembered_interrupts() -> Iterator[Callable[[], None]]:
    """A check that raises after an interrupt: TensorFlow's C++ side may swallow the exception that a signal raises."""
    came: list[int] = []

    def note(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    def raise_if_any() -> None:
        if came:
            raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()  # Python takes signals nowhere else
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if ours}
    replaced = [number for number, old in before.items() if old in (signal.default_int_handler, signal.SIG_DFL)]
    for number in replaced:
        signal.signal(number, note)
    try:
        yield raise_if_any
    finally:
        for number in replaced:
            signal.signal(number, before[number])


def planning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that decide the plan; ``convert`` and ``explain`` share them."""
    options = [
        click.option(
            "--signature", "signatures", multiple=True, help="Signature to convert; '*' for all.  [serving_default]"
        ),
        click.option("--tags", help="Tags of the meta graph, with commas.  [default: serve]"),
        click.option("--min-segment-size", type=int, help="Smaller islands stay in TensorFlow.  [default: 3]"),
        click.option("--max-engines", type=int, help="Keep only the N largest islands.  [default: no limit]"),
        click.option(
            "--keep-in-tf",
            multiple=True,
            metavar="OP|NODE",
            help="Op type or node name (patterns allowed) to leave alone.",
        ),
        click.option(
            "--recipe", "recipe_file", type=PATH, help="A TOML file of these choices; options given here win."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def recipe_of(recipe_file: Path | None, **given: Any) -> Recipe:
    """The recipe that a file and options make together; what an option says wins.

    Raises:
        RecipeError: the file cannot be read, or a choice is impossible.
    """
    base = load_recipe(recipe_file) if recipe_file else Recipe()
    if given.get("tags"):
        given["tags"] = tuple(given["tags"].split(","))
    given["shapes"] = tuple(parse_shape(text) for text in given.get("shapes") or ())
    if given.get("targets"):
        given["targets"] = tuple(dict.fromkeys(name for text in given["targets"] for name in text.split(",")))
    if given.get("engines"):
        given["engines"] = tuple(dict.fromkeys(("onnxruntime", *given["engines"])))
    return recipe_with(base, {key: value for key, value in given.items() if value not in (None, ())}, "command line")


def check_new(file: Path | None) -> None:
    """Refuse to write to a file that exists.

    Raises:
        RecipeError: it exists.
    """
    if file is not None and file.exists():
        raise RecipeError(f"{file} exists already", hint="choose another name; nothing is ever overwritten")


def show_manifest(manifest: Any, folder: Path, *, as_json: bool) -> None:
    """Print what a bundle's manifest says, and the advice that follows from its graphs, on stdout."""
    from refimpl.advice import advise_bundle
    from refimpl.graph_record import read_graphs
    from refimpl.report.advice import print_advice
    from refimpl.report.summary import print_manifest

    found = advise_bundle(manifest, read_graphs(folder), _int8_here)
    if as_json:
        click.echo(json.dumps({**manifest.to_json(), "advice": [item.to_json() for item in found]}, indent=2))
        return
    sizes = {name: (folder / name).stat().st_size for name in manifest.files}
    print_manifest(terminal.stdout_console(), manifest, sizes)
    print_advice(terminal.stdout_console(), found)


def _int8_here(op: str) -> str:
    """Why the TensorRT that is installed builds no int8 layer of this kind; it is asked by building one."""
    from refimpl.engines import tensorrt

    return tensorrt.int8_problem(op) if tensorrt.version() else "no TensorRT is installed"
