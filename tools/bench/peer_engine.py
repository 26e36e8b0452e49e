"""The peer's engine: an ONNX file, built for TensorRT for RTX by Polygraphy, as its users write it.

``python -m tools.bench.peer_engine MODEL.onnx ENGINE``. Open batch dimensions take 1 to 8, as in a conversion here.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

LARGEST_BATCH = 8
# With this, Polygraphy takes tensorrt_rtx wherever it says tensorrt. It is read at Polygraphy's first import.
_USE_RTX = "POLYGRAPHY_USE_TENSORRT_RTX"


def build(model: Path, engine: Path) -> None:
    """Build and write an engine of a model whose only open dimensions are batches, in front."""
    if importlib.util.find_spec("tensorrt") is None:
        os.environ.setdefault(_USE_RTX, "1")  # noqa: TID251
    from polygraphy.backend.trt import (
        CreateConfig,
        Profile,
        engine_bytes_from_network,
        network_from_onnx_path,
    )

    builder, network, parser = network_from_onnx_path(str(model))
    profile = Profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        profile.add(tensor.name, (1, *rest), (LARGEST_BATCH, *rest), (LARGEST_BATCH, *rest))
    config = CreateConfig(profiles=[profile])
    engine.write_bytes(engine_bytes_from_network((builder, network, parser), config=config))


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
