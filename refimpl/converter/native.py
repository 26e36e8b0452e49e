"""Run a signature's own TensorFlow ops, any tensor fed and any fetched: the truth that islands are verified against."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from refimpl import tf_private
from refimpl.artifacts import Array, SignatureGraph
from refimpl.converter.source import Source, session_config
from refimpl.errors import RunError, first_line
from refimpl.specs import as_array

_COPIED = 1 << 20  # bytes of nodes, the constants of a frozen model among them, that may be in memory once more


@dataclass(frozen=True)
class _Place:
    """Where a run takes place: a session, and its tensors by the names that they have in the signature's graph."""

    session: Any
    feeds: Mapping[str, Any]
    fetches: tuple[Any, ...]


class NativeGraph:
    """A signature's inlined graph in the session where the model's variables and tables live.

    Whenever other tensors are fed or fetched, a session optimizes all of its graph anew, however little of it is run.
    A part of the signature that neither reads nor has any state is therefore run in a session of its own.
    """

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
        self._graph_def = graph.graph_def
        self._nodes = {node.name: node for node in graph.graph_def.node}
        self._last: tuple[tuple[frozenset[str], tuple[str, ...]], _Place] | None = None

    def run(self, feeds: Mapping[str, Array], fetches: Sequence[str]) -> list[Array]:
        """Run with some tensors fed.

        Args:
            feeds: values by tensor name ``"node:index"``.
            fetches: tensor names.

        Raises:
            RunError: TensorFlow fails on these values.
        """
        place = self._place(frozenset(feeds), tuple(fetches))
        try:
            values = place.session.run(list(place.fetches), {place.feeds[name]: value for name, value in feeds.items()})
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise RunError(first_line(error)) from None
        return list(map(as_array, values))

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

    def _place(self, feeds: frozenset[str], fetches: tuple[str, ...]) -> _Place:
        """Where these tensors are computed; the same as before when they are those of the run before."""
        key = (feeds, fetches)
        if self._last is None or self._last[0] != key:
            if self._last is not None and self._last[1].session is not self._source.session:
                self._last[1].session.close()
            part = self._stateless(feeds, fetches)
            self._last = key, self._apart(part, feeds, fetches) if part else self._among_all(feeds, fetches)
        return self._last[1]

    def _among_all(self, feeds: Iterable[str], fetches: Iterable[str]) -> _Place:
        named = {name: f"{self._scope}/{name}" for name in feeds}
        return _Place(self._source.session, named, tuple(f"{self._scope}/{name}" for name in fetches))

    def _stateless(self, feeds: frozenset[str], fetches: Sequence[str]) -> list[Any]:
        """The nodes that compute the fetches from the feeds; none if one has state, or they are too large to copy."""
        if not feeds.isdisjoint(fetches):
            return []
        found: dict[str, Any] = {}
        waiting = [name.rsplit(":", 1)[0] for name in fetches]
        while waiting:
            name = waiting.pop()
            if name in found:
                continue
            node = self._nodes[name]
            definition = tf_private.op_def(node.op)
            # A placeholder that is not fed stands for a variable or a table, or for an input that is missing.
            if node.op == "Placeholder" or definition is None or definition.is_stateful:
                return []
            found[name] = node
            waiting += [source for text in node.input if (source := _read(text, feeds))]
        return list(found.values()) if sum(node.ByteSize() for node in found.values()) <= _COPIED else []

    def _apart(self, part: Sequence[Any], feeds: Iterable[str], fetches: Sequence[str]) -> _Place:
        """The same ops in a graph of their own; what is fed has the static shape that it has in the whole."""
        graph_def = type(self._graph_def)(versions=self._graph_def.versions, library=self._graph_def.library)
        graph_def.node.extend(part)
        read = {_tensor(text) for node in part for text in node.input}
        graph = tf.Graph()
        with graph.as_default():
            fed = {}
            for name in feeds:
                whole = self._source.graph.get_tensor_by_name(f"{self._scope}/{name}")
                fed[name] = tf.compat.v1.placeholder(whole.dtype, whole.shape)
            inputs = {name: tensor for name, tensor in fed.items() if name in read}
            tf.graph_util.import_graph_def(graph_def, input_map=inputs, name="part")
            session = tf.compat.v1.Session(graph=graph, config=session_config())
        return _Place(session, fed, tuple(graph.get_tensor_by_name(f"part/{name}") for name in fetches))


def _tensor(text: str) -> str:
    """The name ``"node:index"`` of what a node reads."""
    return text if ":" in text or text.startswith("^") else f"{text}:0"


def _read(text: str, feeds: frozenset[str]) -> str:
    """The node that must run for this input to be there; "" when the input is fed."""
    if text.startswith("^"):
        return text[1:]
    return "" if _tensor(text) in feeds else text.split(":", maxsplit=1)[0]
