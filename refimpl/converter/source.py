"""The open SavedModel: its protobuf, and a TensorFlow session in which it is loaded.

Everything goes through the meta graph, as TensorFlow Serving does: TF1 SavedModels, TF2 and Keras-3 exports and old
Keras models whose Python objects no longer load are all the same here.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from refimpl import bundle, tf_private
from refimpl.artifacts import Arg, Array, SignatureGraph
from refimpl.converter import graphdefs as gd
from refimpl.engines import external, onnxruntime
from refimpl.errors import SourceError, first_line
from refimpl.specs import as_array
from refimpl.trees import files_of

_MAPPED_BYTES = (
    64 << 20
)  # of variables: TensorFlow holds them all, and if there are more, a second copy is one too many
_INIT_SIGNATURES = frozenset({"__saved_model_init_op", "__saved_model_train_op"})


class Source:
    """An open SavedModel: its protobuf, and a TensorFlow session in which it is loaded.

    Args:
        path: the SavedModel's directory.
        tags: tags of the meta graph to use; empty means ``serve`` or the only one.

    Raises:
        SourceError: no such directory, not a SavedModel, no such tags, or TensorFlow cannot load it.
    """

    def __init__(self, path: Path, tags: Sequence[str] = ()) -> None:
        self.path = path
        self.proto = _read_proto(path)
        self.meta_graph = _pick_meta_graph(self.proto, tags, path)
        self.tags = tuple(self.meta_graph.meta_info_def.tags)
        if any(
            node.attr["token"].s.startswith(b"refimpl.") for node in _all_nodes(self.meta_graph) if node.op == "PyFunc"
        ):
            raise SourceError(f"{path} is a bundle already", hint="convert the SavedModel that it was made from")
        self.cut_out: dict[str, SignatureGraph] = {}  # by signature; see load.signature_graph
        self.graph = tf.Graph()
        with self.graph.as_default():
            self.session: Any = tf.compat.v1.Session(graph=self.graph, config=session_config())
            try:
                tf.compat.v1.saved_model.load(self.session, list(self.tags), str(path))
            except (tf.errors.OpError, ValueError, KeyError, OSError, RuntimeError) as error:
                self.session.close()
                raise SourceError(
                    f"TensorFlow {tf.__version__} cannot load {path}: {first_line(error)}",
                    hint="refimpl converts what TensorFlow can serve; check that it loads with saved_model_cli",
                ) from error

        signatures = self.meta_graph.signature_def
        tf_private.fill_missing(self.session, self.graph, signatures, str(path), self.tags)
        _forget_unread(self.session, self.graph, self.meta_graph)

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the session: the memory of its variables is free for whatever TensorFlow loads next."""
        if self.session is not None:
            self.session.close()
            self.session = None

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 (hex) of the contents of every file of the model, by its path below it, in name order; read once."""
        files = sorted(files_of(self.path))
        with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
            found = pool.map(bundle.file_sha256, files)
            return {file.relative_to(self.path).as_posix(): digest for file, digest in zip(files, found, strict=True)}

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) over the names and contents of all files."""
        total = hashlib.sha256()
        for name, digest in self.digests.items():
            total.update(f"{name}\0{digest}\n".encode())
        return total.hexdigest()

    @property
    def signature_keys(self) -> tuple[str, ...]:
        return tuple(sorted(key for key in self.meta_graph.signature_def if key not in _INIT_SIGNATURES))

    def pick_signatures(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """The keys to convert: those wanted, or ``serving_default``, or the only one.

        Raises:
            SourceError: an unknown key, or no way to choose.
        """
        known = self.signature_keys
        hint = f"this SavedModel has: {', '.join(known) or 'none'}"
        if list(wanted) == ["*"]:
            return known
        for key in wanted:
            if key not in known:
                raise SourceError(f"no signature {key!r} in {self.path}", hint=hint)
        if wanted:
            return tuple(dict.fromkeys(wanted))
        if "serving_default" in known:
            return ("serving_default",)
        if len(known) == 1:
            return known
        raise SourceError(f"{self.path} has no signature serving_default", hint=f"name one with --signature; {hint}")

    def values(self, args: Iterable[Arg]) -> dict[str, Array]:
        """The value of each variable among ``args``, by the argument's name; large models' are mapped from a file."""
        fetches = {}
        with self.graph.as_default(), tf.device("CPU:0"):
            for arg in args:
                tensor = self.graph.get_tensor_by_name(arg.tensor)
                if tensor.dtype == tf.resource:
                    tensor = tf.raw_ops.ReadVariableOp(resource=tensor, dtype=tf.as_dtype(arg.dtype))
                fetches[arg.name] = tensor
        total = sum((t.shape.num_elements() or 0) * t.dtype.size for t in fetches.values() if t.dtype != tf.string)
        try:
            with tempfile.TemporaryFile(prefix="refimpl-") as file:
                if total > onnxruntime.EXTERNAL_BYTES:  # not even for a moment may all be in memory twice
                    found = {name: _mapped(self.session.run(tensor), file) for name, tensor in fetches.items()}
                else:
                    found = self.session.run(fetches) if fetches else {}
                    if total > _MAPPED_BYTES:
                        found = {name: _mapped(found.pop(name), file) for name in fetches}
        except tf.errors.FailedPreconditionError as error:
            raise SourceError(
                f"{self.path} has a variable without a value: {first_line(error)}",
                hint="export the model again; Keras models with model.export(DIR)",
            ) from error
        return {name: value if isinstance(value, np.memmap) else as_array(value) for name, value in found.items()}


def _forget_unread(session: Any, graph: Any, meta_graph: Any) -> None:
    """Free the variables that no signature reads: ``tf.saved_model.save`` of a Keras 3 model restores each one twice.

    What was freed and is asked for all the same is an error of TensorFlow's, never another value.
    """
    reached: set[Any] = set()
    try:
        signatures = [item for key, item in meta_graph.signature_def.items() if key not in _INIT_SIGNATURES]
        infos = [info for item in signatures for info in item.outputs.values()]
        found = [graph.get_tensor_by_name(name).op for info in infos for name in _components(info)]
    except (KeyError, ValueError):
        return  # what a signature reads is not known; whoever converts it is told what is wrong with it
    while found:
        op = found.pop()
        if op not in reached:
            reached.add(op)
            found += [tensor.op for tensor in op.inputs] + list(op.control_inputs)
    functions = [node for function in meta_graph.graph_def.library.function for node in function.node_def]
    read = {_variable(node) for node in [*(op.node_def for op in reached), *functions] if node.op == "VarHandleOp"}
    handles = [op for op in graph.get_operations() if op.type == "VarHandleOp"]
    with graph.as_default():
        session.run(
            [
                tf.raw_ops.DestroyResourceOp(resource=op.outputs[0], ignore_lookup_error=True)
                for op in handles
                if _variable(op.node_def) not in read
            ]
        )


def _components(info: Any) -> list[str]:
    """Names of the tensors of a signature's output, which may be sparse or composite."""
    if info.HasField("coo_sparse"):
        sparse = info.coo_sparse
        return [sparse.values_tensor_name, sparse.indices_tensor_name, sparse.dense_shape_tensor_name]
    parts = info.composite_tensor.components if info.HasField("composite_tensor") else ()
    return [name for part in parts for name in _components(part)] if parts else [info.name]


def _variable(node: gd.NodeDef) -> tuple[bytes, bytes]:
    """What a handle stands for: two nodes may be handles of one variable."""
    return node.attr["container"].s, node.attr["shared_name"].s or node.name.encode()


def _mapped(value: Any, file: Any) -> Any:
    """The same array, mapped from the end of a file that it is written to; a small one as it is."""
    if not isinstance(value, np.ndarray) or value.dtype == object or value.nbytes <= external.SMALL:
        return value
    offset = file.seek(-file.seek(0, os.SEEK_END) % mmap.PAGESIZE, os.SEEK_END)
    value.tofile(file)
    file.flush()
    return np.memmap(file, value.dtype, "r", offset, value.shape)


def _read_proto(path: Path) -> Any:
    if not path.exists():
        raise SourceError(f"no such directory: {path}", hint="give the directory that holds saved_model.pb")
    if not path.is_dir():
        raise SourceError(f"{path} is not a directory", hint="give the directory that holds saved_model.pb")
    binary, text = path / "saved_model.pb", path / "saved_model.pbtxt"
    proto = saved_model_pb2.SavedModel()
    try:
        if binary.is_file():
            proto.ParseFromString(binary.read_bytes())
        elif text.is_file():
            from google.protobuf import text_format

            text_format.Parse(text.read_text(encoding="utf-8"), proto)
        else:
            raise SourceError(f"{path} is not a SavedModel: it has no saved_model.pb", hint=_not_saved_model_hint(path))
    except SourceError:
        raise
    except Exception as error:  # protobuf raises different classes in its C and Python implementations
        raise SourceError(
            f"{path} is damaged: saved_model.pb cannot be parsed: {error}", hint="export the model again"
        ) from error
    if not proto.meta_graphs:
        raise SourceError(f"{path} is damaged: saved_model.pb holds no meta graph", hint="export the model again")
    return proto


def _not_saved_model_hint(path: Path) -> str:
    if any(path.glob("*.keras")) or any(path.glob("*.h5")):
        return "this folder holds Keras files: load one and write a SavedModel with model.export(DIR)"
    nested = sorted(item.parent for item in path.glob("*/saved_model.pb"))
    return f"did you mean {nested[0]}?" if nested else "write one with model.export(DIR) or tf.saved_model.save"


def _all_nodes(meta_graph: Any) -> Iterator[gd.NodeDef]:
    yield from meta_graph.graph_def.node
    for function in meta_graph.graph_def.library.function:
        yield from function.node_def


def _pick_meta_graph(proto: Any, tags: Sequence[str], path: Path) -> Any:
    found = {frozenset(meta.meta_info_def.tags): meta for meta in proto.meta_graphs}
    wanted = frozenset(tags or ("serve",))
    if wanted in found:
        return found[wanted]
    if not tags and len(found) == 1:
        return next(iter(found.values()))
    listed = "; ".join(",".join(sorted(item)) or "(none)" for item in found)
    raise SourceError(
        f"no meta graph tagged {','.join(sorted(wanted))} in {path}", hint=f"tags there: {listed} (use --tags)"
    )


def session_config() -> Any:
    """How every session computes that islands are held against: on the CPU, and as when the model is served."""
    # Not with place_pruned_graph, though that costs less: Grappler then fuses nothing, and a fused kernel makes other
    # things of a NaN than those it stands for. What islands are held against must be what the model does when served.
    return tf.compat.v1.ConfigProto(device_count={"GPU": 0})
