"""A network like it in PyTorch, compiled: what another way to the same GPU takes, measured beside TensorRT's."""

from __future__ import annotations

import importlib
import statistics
from typing import Any

from tools.gpu import lent


def resnet50_ms(batch: int, enqueues: int, repeats: int) -> float | None:
    """Milliseconds of torchvision's ResNet-50 in float16, channels last, ``torch.compile(mode="reduce-overhead")``.

    By CUDA events, as the kernels of an engine are timed: inputs and outputs on the GPU, the median of ``repeats``
    means over ``enqueues``.

    Returns:
        None where PyTorch or torchvision are not here, or there is no GPU.
    """
    torch: Any = lent.pytorch()
    try:
        models: Any = importlib.import_module("torchvision.models")
    except ImportError:
        return None
    if torch is None:
        return None
    layout = torch.channels_last
    network = torch.compile(models.resnet50().eval().cuda().half().to(memory_format=layout), mode="reduce-overhead")
    x = torch.randn(batch, 3, 224, 224, device="cuda").half().to(memory_format=layout)
    times = []
    with torch.inference_mode():
        for _ in range(10):
            network(x)
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(enqueues):
                network(x)
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / enqueues)
    return float(statistics.median(times))
