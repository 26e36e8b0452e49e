"""An interpreter for the few instructions of PTX that refimpl's kernels have, on memory of the host."""

from __future__ import annotations

import ctypes
import re
from typing import Any

_WORDS = {"u16": ctypes.c_uint16, "u32": ctypes.c_uint32}


def run_kernel(ptx: str, name: str, grid: tuple[int, int], parameters: dict[str, int]) -> None:
    """Run a kernel, one thread after another."""
    body = ptx.split(f".entry {name}(")[1].split("{", 1)[1].split("\n}", maxsplit=1)[0]
    lines = [line.strip().rstrip(";") for line in body.splitlines()]
    lines = [line for line in lines if line and not line.startswith(".reg")]
    blocks, threads = grid
    for block in range(blocks):
        for thread in range(threads):
            special = {"%ntid.x": threads, "%ctaid.x": block, "%tid.x": thread, "%nctaid.x": blocks}
            _thread(lines, special, parameters)


def _thread(lines: list[str], registers: dict[str, Any], parameters: dict[str, int]) -> None:
    labels = {line[:-1]: index for index, line in enumerate(lines) if line.endswith(":")}
    at = 0
    while at < len(lines):
        line, at = lines[at], at + 1
        if line.endswith(":"):
            continue
        guarded = re.match(r"@(%\w+) (.*)", line)
        if guarded:
            if not registers[guarded[1]]:
                continue
            line = guarded[2]
        op, _, rest = line.partition(" ")
        names = [item.strip() for item in rest.split(",")] if rest else []
        if op == "ret":
            return
        if op == "bra":
            at = labels[names[0]]
        else:
            _do(op, names, registers, parameters)


def _do(op: str, names: list[str], registers: dict[str, Any], parameters: dict[str, int]) -> None:
    kind, _, form = op.partition(".")
    if kind == "ld" and form.startswith("param"):
        registers[names[0]] = parameters[names[1][1:-1]]
        return
    if kind == "st":
        _WORDS[form.rpartition(".")[2]].from_address(registers[names[0][1:-1]]).value = registers[names[1]]
        return
    if kind == "ld":
        registers[names[0]] = _WORDS[form.rpartition(".")[2]].from_address(registers[names[1][1:-1]]).value
        return
    a, b, c = ([registers[n] if n.startswith("%") else int(n) for n in names[1:]] + [0, 0])[:3]
    registers[names[0]] = {
        "cvta": a, "mov": a, "cvt": a, "mad": a * b + c, "mul": a * b, "add": a + b, "and": a & b,
        "setp": a >= b if form.startswith("ge") else a == b,
    }[kind]  # fmt: skip
