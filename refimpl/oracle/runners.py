"""Who answers: the original SavedModel in plain TensorFlow, or a bundle through its runtime.

The reference runner serves the *original* model through a TF1 session. Every SavedModel that TensorFlow can serve
loads that way: TF2 and Keras exports, TF1-style ones, and old Keras ones whose optimizer slots make
``tf.saved_model.load`` fail. It runs on the CPU with one thread, without Grappler and, where that can still be chosen,
without oneDNN: the ops as they are written.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from refimpl import env
from refimpl.errors import GoldenError, RunError, SourceError, first_line
from refimpl.oracle.arrays import Array, conform_all
from refimpl.specs import Signature, TensorSpec

REFERENCE_RUNNER = "tensorflow session, cpu, one thread, no grappler"
_INTERNAL_SIGNATURES = ("__saved_model_init_op", "__saved_model_train_op")


class IslandRun(Protocol):
    """What happened to one island in one call (``refimpl.runtime.IslandRun``)."""

    @property
    def island(self) -> str: ...
    @property
    def engine(self) -> str: ...
    @property
    def reason(self) -> str: ...


class RunResult(Protocol):
    """Outputs of one call and what each island did (``refimpl.runtime.RunResult``)."""

    @property
    def outputs(self) -> dict[str, Array]: ...
    @property
    def islands(self) -> Sequence[IslandRun]: ...


class Bundle(Protocol):
    """The part of ``refimpl.runtime.LoadedBundle`` that a judge needs."""

    @property
    def manifest(self) -> Any: ...
    @property
    def signatures(self) -> Mapping[str, Signature]: ...
    def run(self, inputs: Mapping[str, Array], signature: str) -> RunResult: ...
    def run_native(self, inputs: Mapping[str, Array], signature: str) -> RunResult: ...


def open_bundle(path: str | os.PathLike[str], engines: Sequence[str] | None = None) -> Bundle:
    """Load a bundle as any user would, but with oneDNN off where that is still possible, as the golden was recorded.

    TensorFlow's part of a bundle would else be compared with another TensorFlow: with oneDNN on, its convolution fails
    on an empty batch, and sums differ.

    Raises:
        BundleError: the bundle is damaged, foreign, or of a newer format.
    """
    from refimpl import runtime

    env.turn_onednn_off()
    return runtime.load(path, engines=engines)


def require_reference_tf() -> tuple[Any, str]:
    """Import TensorFlow with oneDNN off where that is still possible.

    oneDNN reorders float sums and differs from machine to machine, and can only be chosen before the first import.

    Returns:
        The ``tensorflow`` module, and the truth about oneDNN: ``"off"`` or ``"TensorFlow's default"``.

    Raises:
        UnsupportedError: TensorFlow is not installed.
    """
    off = env.turn_onednn_off()  # first: what makes sure of TensorFlow imports it
    env.require_tensorflow()
    import tensorflow as tf

    return tf, "off" if off else "TensorFlow's default"


def tree_sha256(directory: str | os.PathLike[str]) -> str:
    """SHA-256 of a directory: of ``PATH NUL SHA256-OF-CONTENT NEWLINE`` for every file, in the order of its path parts.

    A bundle's manifest holds the same digest of the SavedModel that it was made from: ``docs/golden-format.md``.

    Raises:
        SourceError: a file cannot be read.
    """
    root = Path(directory)
    total = hashlib.sha256()
    try:
        files = (file.relative_to(root) for file in root.rglob("*") if file.is_file())
        for name in sorted(files, key=lambda path: path.parts):
            content = hashlib.sha256()
            with (root / name).open("rb") as stream:
                while block := stream.read(1 << 20):
                    content.update(block)
            total.update(f"{name.as_posix()}\0{content.hexdigest()}\n".encode())
    except OSError as error:
        raise SourceError(f"cannot read {error.filename}: {error.strerror}") from error
    return total.hexdigest()


class SavedModelRunner:
    """The original SavedModel in a session of its own, until :meth:`close`.

    Args:
        path: the SavedModel directory.
        tags: the meta graph to load; ``("serve",)``, or the only one there is, when not given.

    Raises:
        SourceError: no such directory, not a SavedModel, unknown tags, or TensorFlow cannot load it.
        UnsupportedError: TensorFlow is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], tags: Sequence[str] | None = None) -> None:
        self.path = Path(path)
        available = _meta_graph_tags(self.path)
        self.tags = _choose_tags(self.path, tags, available)
        self._tf, self.onednn = require_reference_tf()
        self.tensorflow_version = str(self._tf.__version__)
        self._session, meta_graph = _open(self._tf, self.path, self.tags)
        self.meta_graph = meta_graph
        self._infos = {
            key: info for key, info in sorted(meta_graph.signature_def.items()) if key not in _INTERNAL_SIGNATURES
        }
        self.signatures: dict[str, Signature] = {
            key: Signature(key, self._specs(info.inputs), self._specs(info.outputs))
            for key, info in self._infos.items()
            if self._servable(info)
        }

    @property
    def session(self) -> Any:
        """The session that the model lives in, with its graph."""
        return self._session

    def close(self) -> None:
        self._session.close()

    def signature(self, key: str) -> Signature:
        """The signature of that name.

        Raises:
            SourceError: there is none, or it takes or returns something that is not a dense tensor.
        """
        if key in self.signatures:
            return self.signatures[key]
        if key in self._infos:
            raise SourceError(f"signature {key!r} returns nothing, or has arguments other than dense tensors")
        known = ", ".join(self._infos) or "none"
        raise SourceError(f"no signature {key!r} in {self.path.name}", hint=f"it has: {known}")

    def run(self, inputs: Mapping[str, object], signature: str) -> dict[str, Array]:
        """TensorFlow's answer, by output name.

        Raises:
            SourceError: no such signature.
            GoldenError: an input's name, dtype or shape does not fit.
            RunError: TensorFlow refused these inputs.
        """
        spec = self.signature(signature)
        info = self._infos[signature]
        feeds = {info.inputs[name].name: value for name, value in conform_all(spec.inputs, inputs).items()}
        fetches = {output.name: info.outputs[output.name].name for output in spec.outputs}
        try:
            got = self._session.run(fetches, feeds)
        except (self._tf.errors.OpError, ValueError, TypeError) as error:
            raise RunError(f"TensorFlow refused: {first_line(error)}", signature=signature) from error
        return {output.name: _array(output, got[output.name]) for output in spec.outputs}

    def _servable(self, info: Any) -> bool:
        tensors = [*info.inputs.values(), *info.outputs.values()]
        return bool(info.outputs) and all(
            tensor.WhichOneof("encoding") == "name" and self._tf.dtypes.as_dtype(tensor.dtype).name != "resource"
            for tensor in tensors
        )

    def _specs(self, infos: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
        """Sorted by name: a SignatureDef keeps its tensors in a map without order."""
        return tuple(
            TensorSpec(name, self._tf.dtypes.as_dtype(info.dtype).name, _shape(info.tensor_shape))
            for name, info in sorted(infos.items())
        )


def _open(tf: Any, path: Path, tags: tuple[str, ...]) -> tuple[Any, Any]:
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=1,
        inter_op_parallelism_threads=1,
        device_count={"GPU": 0},
        allow_soft_placement=True,
    )
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = tf.compat.v1.OptimizerOptions.L0
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph, config=config)
    logger, level = tf.get_logger(), tf.get_logger().level
    logger.setLevel("ERROR")  # else it warns that this way of loading is deprecated
    try:
        with graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(session, list(tags), str(path))
        from refimpl import tf_private

        tf_private.fill_missing(session, graph, meta_graph.signature_def, str(path), tags)
        return session, meta_graph
    except Exception as error:
        session.close()
        raise SourceError(f"TensorFlow cannot load {path.name}: {first_line(error)}") from error
    finally:
        logger.setLevel(level)


def _meta_graph_tags(path: Path) -> list[tuple[str, ...]]:
    """The tag sets of a SavedModel; empty when they cannot be listed (a model of several chunk files)."""
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        raise SourceError(f"{path} {what}", hint="give the directory that holds saved_model.pb")
    binary, text = path / "saved_model.pb", path / "saved_model.pbtxt"
    if not binary.is_file() and not text.is_file():
        if (path / "saved_model.cpb").is_file():
            return []
        raise SourceError(f"{path} is not a SavedModel", hint="there is no saved_model.pb in it")
    require_reference_tf()
    from google.protobuf import message, text_format
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    try:
        if binary.is_file():
            model.ParseFromString(binary.read_bytes())
        else:
            text_format.Parse(text.read_text(encoding="utf-8"), model)
    except (message.DecodeError, text_format.ParseError, UnicodeDecodeError, OSError) as error:
        raise SourceError(f"{path} is a damaged SavedModel: {first_line(error)}") from error
    if not model.meta_graphs:
        raise SourceError(f"{path} is a damaged SavedModel: it holds no graph")
    return [tuple(sorted(meta.meta_info_def.tags)) for meta in model.meta_graphs]


def _choose_tags(path: Path, wanted: Sequence[str] | None, available: list[tuple[str, ...]]) -> tuple[str, ...]:
    listed = " | ".join(",".join(tags) or "(none)" for tags in available)
    if wanted is not None:
        if available and tuple(sorted(wanted)) not in available:
            raise SourceError(f"{path.name} has no graph with the tags {','.join(wanted)}", hint=f"it has: {listed}")
        return tuple(wanted)
    if not available or ("serve",) in available:
        return ("serve",)
    if len(available) == 1:
        return available[0]
    raise SourceError(f"{path.name} has no graph with the tag serve", hint=f"choose with --tags one of: {listed}")


def _shape(proto: Any) -> tuple[int | None, ...] | None:
    if proto.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else int(dim.size) for dim in proto.dim)


def _array(spec: TensorSpec, value: Any) -> Array:
    """A session returns NumPy scalars, and bare bytes, for rank 0."""
    if spec.dtype == "string":
        array = np.empty(np.shape(value), dtype=object)
        array[...] = value
        return array
    array = np.asarray(value)
    if array.dtype != spec.numpy_dtype():
        raise GoldenError(f"output {spec.name!r} came as {array.dtype}, the signature says {spec.dtype}")
    return array
