"""Run a signature's own TensorFlow ops, any tensor fed and any fetched: the truth that islands are verified against."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from refimpl.artifacts import Array, SignatureGraph
from refimpl.converter.source import Source
from refimpl.errors import RunError, first_line


class NativeGraph:
    """A signature's inlined graph in the session where the model's variables and tables live."""

    def __init__(self, source: Source, graph: SignatureGraph) -> None:
        self._source = source
        self._idle: Any = None  # a tensor that costs nothing
        self._scope = f"refimpl_native_{len(source.graph.get_operations())}"
        present = {node.name for node in graph.graph_def.node}  # state that only an effect nobody awaits used is gone
        state = {
            f"{arg.name}:0": source.graph.get_tensor_by_name(arg.tensor)
            for arg in graph.args
            if arg.kind != "input" and arg.name in present
        }
        graph_def = graph.graph_def
        if state:
            graph_def = type(graph_def)()
            graph_def.CopyFrom(graph.graph_def)
        with source.graph.as_default():
            tf.graph_util.import_graph_def(graph_def, input_map=state, name=self._scope)

    def run(self, feeds: Mapping[str, Array], fetches: Sequence[str]) -> list[Array]:
        """Run with some tensors fed.

        Args:
            feeds: values by tensor name ``"node:index"``.
            fetches: tensor names.

        Raises:
            RunError: TensorFlow fails on these values.
        """
        try:
            values: list[Array] = self._source.session.run(
                [f"{self._scope}/{name}" for name in fetches],
                {f"{self._scope}/{name}": value for name, value in feeds.items()},
            )
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise RunError(first_line(error)) from None
        return values

    def seconds(
        self, feeds: Mapping[str, Array], fetches: Sequence[str], clock: Callable[[Callable[[], object]], float]
    ) -> float:
        """How long TensorFlow takes from some tensors to others, what any call of a session takes left out.

        Args:
            feeds: values by tensor name ``"node:index"``.
            fetches: tensor names.
            clock: gives the seconds of a call.
        """
        names = [f"{self._scope}/{name}" for name in feeds]
        with self._source.graph.as_default(), tf.control_dependencies(None):
            self._idle = self._idle if self._idle is not None else tf.constant(0.0, name="refimpl_idle")
        whole, nothing = (
            functools.partial(self._source.session.make_callable(wanted, feed_list=names), *feeds.values())
            for wanted in ([f"{self._scope}/{name}" for name in fetches], [self._idle])
        )
        return max(clock(whole) - clock(nothing), 0.0)
