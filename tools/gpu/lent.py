"""Tensors that stay on the GPU, made and read by PyTorch: same answers, nothing overwritten, graphs, NaN seen there."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.engines import NotFiniteError
from refimpl.engines.tensorrt.lanes import REPLAYED
from refimpl.errors import RunError, first_line
from tools.gpu.models import inputs_of
from tools.gpu.record import Check

_SAME = "tensors that stay on the GPU (DLPack) give the same answers, also while earlier ones are held"
_GRAPHS = "calls with tensors that stay on the GPU are replayed as a CUDA graph where addresses repeat"
_FINITE = "what is not finite is seen on the GPU, and nothing else is taken for it"
_ABSENT = "PyTorch is not here to make such tensors"


def pytorch() -> Any:
    """PyTorch with a GPU; None without."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def questions(engine: Any) -> Iterator[Check]:
    """All that is asked of an engine of :func:`tools.gpu.models.network`."""
    torch = pytorch()
    for what, ask in ((_SAME, _held), (_GRAPHS, _replayed), (_FINITE, _finite)):
        yield Check(what, _ABSENT, holds=None) if torch is None else _asked(what, partial(ask, engine, torch))


def _asked(what: str, ask: Callable[[], tuple[bool, str]]) -> Check:
    try:
        holds, found = ask()
    except RunError as error:
        return Check(what, error.message, holds=False)
    return Check(what, found, holds=holds)


def _held(engine: Any, torch: Any) -> tuple[bool, str]:
    values = [inputs_of(4, seed) for seed in range(6)]
    want = [engine.run([value])[0] for value in values]
    held = [torch.from_dlpack(engine.run_device([torch.from_numpy(value).cuda()])[0]) for value in values]
    same = [np.array_equal(got.cpu().numpy(), value) for got, value in zip(held, want, strict=True)]
    return all(same), f"{sum(same)} of {len(same)} equal, on {held[0].device}"


def _replayed(engine: Any, torch: Any) -> tuple[bool, str]:
    value, before = torch.from_numpy(inputs_of(4, 0)).cuda(), engine.counts()
    wrong = 0
    for seed in range(8):
        value.copy_(torch.from_numpy(inputs_of(4, seed)))
        got = torch.from_dlpack(engine.run_device([value])[0]).cpu().numpy()
        wrong += not np.array_equal(got, engine.run([inputs_of(4, seed)])[0])
    counts = engine.counts()
    more = {key: count - before.get(key, 0) for key, count in counts.items() if count != before.get(key, 0)}
    return wrong == 0 and more.get(REPLAYED, 0) > 8, f"{wrong} answers wrong; 8 calls there and 8 on the host: {more}"


def _finite(engine: Any, torch: Any) -> tuple[bool, str]:
    said = []
    for special in (None, np.nan, np.inf, -np.inf):
        value = inputs_of(64, 0)
        if special is not None:
            value[-1, -1] = special
        try:
            engine.run_device([torch.from_numpy(value).cuda()], True)
            seen = False
        except NotFiniteError:
            seen = True
        said.append((special, seen))
    right = all(seen == (special is not None) for special, seen in said)
    return right, ", ".join(f"{special}: {'seen' if seen else 'not seen'}" for special, seen in said)


def inferred(folder: Path) -> Check:
    """``infer`` of a bundle gives, for tensors on the GPU, what it gives for the same arrays."""
    import refimpl
    from refimpl.cli_run import random_inputs

    what = f"infer of {folder.name} gives the same on the GPU as on the host"
    if (torch := pytorch()) is None:
        return Check(what, _ABSENT, holds=None)
    try:
        loaded = refimpl.load(folder)
        values = random_inputs(loaded.signature(), {})
        if any(value.dtype == object for value in values.values()):
            return Check(what, "strings cannot be on a GPU", holds=None)
        want = loaded.infer(values)
        tensors = {name: torch.from_numpy(value).cuda() for name, value in values.items()}
        got = {name: torch.from_dlpack(value) for name, value in loaded.infer(tensors).items()}
    except Exception as error:  # noqa: BLE001  (whatever happens is the answer)
        return Check(what, f"{type(error).__name__}: {first_line(error)}", holds=False)
    same = {
        name: bool(value.is_cuda) and np.array_equal(value.cpu().numpy(), want[name]) for name, value in got.items()
    }
    counts = {f"{run.engine} {run.reason}".strip(): count for run, count in loaded.counts().items()}
    return Check(what, f"equal: {same}; {counts}", holds=all(same.values()) and same.keys() == want.keys())
