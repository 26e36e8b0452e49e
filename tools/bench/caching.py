"""What a second conversion costs with the cache, as ratios to the first: ``python tools/bench/caching.py MODEL ...``.

Every conversion is a process of its own, and every round begins with an empty cache: a conversion without a cache, one
that fills it, one that finds everything in it, and one after a change of an option that leaves the engines the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 5


def convert(model: Path, target: Path, *options: str) -> tuple[float, dict[str, float], list[str]]:
    """Seconds of the whole process; seconds by stage; the notes of the bundle."""
    command = [sys.executable, "-m", "refimpl", "convert", str(model), str(target), *options, "--json"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    manifest = json.loads(done.stdout)
    return seconds, manifest["timings"], manifest["notes"]


def one_round(model: Path, engines: list[str]) -> dict[str, float]:
    """Seconds of each conversion; of its stages alone under the same name with ``stages`` after it."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="refimpl-bench-") as name:
        folder = Path(name)
        cache = ["--cache", str(folder / "cache")]
        runs = {
            "without": [],
            "fills": cache,
            "hits": cache,
            "other option": [*cache, "--max-engines", "1000"],
        }
        for what, options in runs.items():
            seconds, stages, notes = convert(model, folder / what, *engines, *options)
            assert any("from the cache" in note for note in notes) == (what == "hits"), notes
            found[what], found[f"{what} stages"] = seconds, sum(stages.values())
    return found


def main() -> None:
    """Measure and print a Markdown table; seconds are medians, with the smallest and the largest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--engine", action="append", default=[])
    given = parser.parse_args()
    engines = [word for kind in given.engine for word in ("--engine", kind)]
    print("| model | conversion | process, s | stages, s | process, ratio | stages, ratio |\n|---|---|---|---|---|---|")
    for model in given.models:
        rounds = [one_round(model, engines) for _ in range(given.rounds)]
        for what in ("without", "fills", "hits", "other option"):
            cells = [_spread([found[f"{what}{part}"] for found in rounds]) for part in ("", " stages")]
            ratios = [
                f"{statistics.median(found[f'{what}{part}'] / found[f'without{part}'] for found in rounds):.2f}"
                for part in ("", " stages")
            ]
            print(f"| {model.name} | {what} | {' | '.join(cells)} | {' | '.join(ratios)} |", flush=True)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
