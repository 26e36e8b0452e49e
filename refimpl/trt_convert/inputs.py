"""What an ``input_fn`` yields, bound to a signature's inputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from refimpl.converter.fake_quant_exact import TYPES as QUANTIZATION
from refimpl.specs import TensorSpec

log = logging.getLogger("refimpl.trt_convert")
InputFn = Callable[[], Iterable[Any]]


class Binder:
    """Binds what an ``input_fn`` yields to inputs by name.

    A dict is bound by name. A list or a tuple is bound in the order in which the model's own function declares its
    arguments, where TF-TRT took the alphabetical order of their names; anything else is the one input.

    Args:
        specs: the signature's inputs.
        declared: their names in the order of the model's function; empty when it is not known.
    """

    def __init__(self, specs: Sequence[TensorSpec], declared: Sequence[str]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._alphabetical = tuple(sorted(self._specs))
        self.order = tuple(declared) or self._alphabetical
        self._known = bool(declared)
        self._told: set[str] = set()
        self._chosen: tuple[str, ...] = ()  # the order of the positional items until now

    def samples(self, input_fn: InputFn) -> Iterator[dict[str, Any]]:
        """Each item that ``input_fn()`` yields, as tensors by input name.

        Raises:
            RuntimeError: a dict or a bare value cannot become a tensor.
            TypeError: the number, the names, the dtypes or the shapes of the values are not the signature's.
        """
        for item in input_fn():
            yield self.bind(item)

    def bind(self, item: Any) -> dict[str, Any]:
        """One item as tensors by input name; see :meth:`samples`."""
        if isinstance(item, Mapping):
            return self._by_name({name: _tensor(value, item) for name, value in item.items()})
        if isinstance(item, list | tuple):
            return self._by_position([tf.convert_to_tensor(value) for value in item])
        return self._by_position([_tensor(item, item)])

    def _by_name(self, values: Mapping[str, Any]) -> dict[str, Any]:
        if missing := [name for name in self.order if name not in values]:
            raise _binding_error(f"missing a required argument: '{missing[0]}'", self.order)
        if unknown := [name for name in values if name not in self._specs]:
            raise _binding_error(f"got an unexpected keyword argument '{unknown[0]}'", self.order)
        return self._checked(dict(values))

    def _checked(self, values: dict[str, Any]) -> dict[str, Any]:
        for name, value in values.items():
            if not self._fit([name], [value]):
                found = TensorSpec(name, value.dtype.name, tuple(value.shape)).describe()
                raise _binding_error(f"{found} is not compatible with {self._specs[name].describe()}", self.order)
        return values

    def _by_position(self, values: Sequence[Any]) -> dict[str, Any]:
        if len(values) != len(self.order):
            more = "too many positional arguments" if len(values) > len(self.order) else "missing a required argument"
            raise _binding_error(f"{more}: {len(values)} values for {len(self.order)} inputs", self.order)
        order = self._positions(values)
        if order == self._alphabetical != self.order:
            self._tell(
                f"positional samples fit only in the alphabetical order {order}, which TF-TRT used, so they are bound "
                "that way; yield dicts"
            )
        elif order != self._alphabetical:
            self._tell(
                f"positional samples are bound to {order}, the order in which the model declares its inputs; TF-TRT "
                f"would have bound them to {self._alphabetical}"
            )
        elif len(order) > 1 and not self._known:
            self._tell(
                f"the order in which the model declares its inputs is not known; positional samples are bound to "
                f"{order}; yield dicts to be sure"
            )
        return self._checked(dict(zip(order, values, strict=True)))

    def _positions(self, values: Sequence[Any]) -> tuple[str, ...]:
        """Which input each value is: as the items before; the order of the declaration, or the one that fits.

        Raises:
            TypeError: this item fits only in another order than those before, so some of them were bound wrongly.
        """
        order = self._chosen or self.order
        other = self._alphabetical if order == self.order else self.order
        if not self._fit(order, values) and self._fit(other, values):
            if self._chosen:
                raise _binding_error(
                    f"positional values of this shape fit only {other}, and those before were bound to {order}; "
                    "yield dicts",
                    self.order,
                )
            order = other
        self._chosen = order
        return order

    def _fit(self, order: Sequence[str], values: Sequence[Any]) -> bool:
        return all(
            self._specs[name].dtype == value.dtype.name and self._specs[name].accepts(tuple(value.shape))
            for name, value in zip(order, values, strict=True)
        )

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            log.warning(text)


def tensors_of(values: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Arrays as tensors."""
    return {name: tf.constant(value) for name, value in values.items()}


def resized(values: Mapping[str, np.ndarray[Any, Any]], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Arrays of other shapes that hold the same values, in turn."""
    return {name: np.resize(value, shapes[name]) for name, value in values.items()}


def input_specs(meta_graph: Any, key: str) -> tuple[TensorSpec, ...]:
    """The inputs of a signature, by name."""
    found = []
    for name, info in sorted(meta_graph.signature_def[key].inputs.items()):
        shape = tf.TensorShape(info.tensor_shape)
        sizes = None if shape.rank is None else tuple(shape.as_list())
        found.append(TensorSpec(name, tf.as_dtype(info.dtype).name, sizes))
    return tuple(found)


def _binding_error(why: str, order: Sequence[str]) -> TypeError:
    return TypeError(f"Binding inputs to tf.function failed due to `{why}`. The signature takes {', '.join(order)}.")


def _tensor(value: Any, item: Any) -> Any:
    try:
        return tf.convert_to_tensor(value)
    except Exception:  # TensorFlow raises different classes for different values; TF-TRT has one for all
        log.exception("an input_fn yielded %r", item)
        raise RuntimeError("Failed to convert input to tensor.") from None


def has_quantization(meta_graph: Any) -> bool:
    """Whether a model has an op that ranges can be taken from."""
    graph_def = meta_graph.graph_def
    bodies = [graph_def.node, *(function.node_def for function in graph_def.library.function)]
    return any(node.op in QUANTIZATION for nodes in bodies for node in nodes)


def tell_ignored(graph_def: Any) -> None:
    """Warn of functions that ask TF-TRT to convert them by themselves."""
    asking = sorted(
        function.signature.name
        for function in graph_def.library.function
        if any(key.startswith("_tftrt_") for key in function.attr)
    )
    if asking:
        log.warning(
            "_tftrt_* attributes have no effect (%s): what the signature calls is converted with the converter's own "
            "parameters",
            ", ".join(asking),
        )


def read_meta_graph(folder: Path, tags: Sequence[str]) -> Any:
    """The meta graph of a SavedModel on disk.

    Raises:
        OSError: there is no SavedModel.
        ValueError: it has no meta graph with these tags.
    """
    binary, text = folder / "saved_model.pb", folder / "saved_model.pbtxt"
    proto = saved_model_pb2.SavedModel()
    if binary.is_file():
        proto.ParseFromString(binary.read_bytes())
    elif text.is_file():
        from google.protobuf import text_format

        text_format.Parse(text.read_text(encoding="utf-8"), proto)
    else:
        raise OSError(f"SavedModel file does not exist at: {folder}/{{saved_model.pbtxt|saved_model.pb}}")
    for meta_graph in proto.meta_graphs:
        if set(meta_graph.meta_info_def.tags) == set(tags):
            return meta_graph
    found = [sorted(meta_graph.meta_info_def.tags) for meta_graph in proto.meta_graphs]
    raise ValueError(f"Got an incompatible argument to `tags`: {list(tags)}. {folder} has meta graphs tagged {found}.")


def declared_order(meta_graph: Any, key: str) -> tuple[str, ...]:
    """The inputs of a signature in the order in which the model's own function takes them.

    The exported signature sorts its arguments by name; the function that it calls keeps the order of the Python
    declaration.

    Returns:
        The names; empty when the model does not say (TF1 graphs).
    """
    definition = meta_graph.signature_def[key]
    calls = {name.split(":")[0] for name in (info.name for info in definition.outputs.values())}
    fed = {info.name.removesuffix(":0"): name for name, info in definition.inputs.items()}
    for node in meta_graph.graph_def.node:
        if node.name in calls and node.op.endswith("PartitionedCall"):
            names = [fed.get(text.removesuffix(":0"), "") for text in node.input]
            return _inner_order(meta_graph, node.attr["f"].func.name, names, set(definition.inputs))
    return ()


def _inner_order(meta_graph: Any, function: str, names: Sequence[str], wanted: set[str]) -> tuple[str, ...]:
    """Follow the call of the signature's wrapper; ``names`` says which input each of its arguments is ("" for none)."""
    found = [item for item in meta_graph.graph_def.library.function if item.signature.name == function]
    if not found or len(names) != len(found[0].signature.input_arg):
        return ()
    argument = {arg.name: name for arg, name in zip(found[0].signature.input_arg, names, strict=True)}
    inner = [node for node in found[0].node_def if node.op.endswith("PartitionedCall")]
    if len(inner) != 1:
        return ()
    order = tuple(name for text in inner[0].input if (name := argument.get(text, "")))
    return order if set(order) == wanted and len(order) == len(wanted) else ()
