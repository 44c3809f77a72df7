"""Time of the surgery methods' solvers over the number of groups, beside TorchJD's.

    python -m benchmarks.weightings [--methods NAME ...] [--groups 4 16 64 256] [--markdown FILE] [--json]

One thread, float64, gradients drawn from a normal distribution (so about half of all pairs conflict), best of
some calls of `weights`. TorchJD where it has the method: the same Gramian, the weighting that the oracle
tests compare with. The Gramian itself is the gradient engine's (benchmarks/gradients.py); a whole step's cost is
measured by benchmarks/steps.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zslx.intervention.registry import load_intervention

METHODS = {
    "pcgrad": "PCGradWeighting",
    "gradvac": "GradVacWeighting",
    "mgda": "MGDAWeighting",
    "upgrad": "UPGradWeighting",
    "dualproj": "DualProjWeighting",
    "cagrad": "CAGradWeighting",
    "imtl_g": "IMTLGWeighting",
    "aligned_mtl": "AlignedMTLWeighting",
    "config": None,
    "gaf": None,
    "adacons": None,
    "nash_mtl": None,
    "fairgrad": "FairGradWeighting",
    "alignment": None,
}
ARGUMENTS: dict[str, dict[str, float]] = {"CAGradWeighting": {"c": 0.5}, "FairGradWeighting": {"alpha": 1.0}}
PATIENCE = 1.0  # seconds of repetition per figure


def gramian(groups: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(groups)
    gradients = torch.randn(groups, 20 * groups, dtype=torch.float64, generator=generator)
    return gradients @ gradients.T


def best(call: Callable[[], Any]) -> float:
    """Milliseconds of the fastest of several calls."""
    call()
    times: list[float] = []
    while sum(times) < PATIENCE and len(times) < 50:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def theirs(name: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """TorchJD's weighting of a method, if it has one and is installed."""
    cls = METHODS[name]
    if cls is None:
        return None
    try:
        from torchjd import aggregation
    except ImportError:
        return None
    return getattr(aggregation, cls)(**ARGUMENTS.get(cls, {}))


def measure(names: Sequence[str], groups: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        for size in groups:
            gram, losses, other = gramian(size), torch.ones(size), theirs(name)
            ours = best(partial(load_intervention(name).weights, gram, losses))
            row = {
                "method": name,
                "groups": size,
                "zslx": ours,
                "torchjd": best(partial(other, gram)) if other else None,
            }
            rows.append(row)
            print(f"{name} K={size}: {row['zslx']:.2f} ms, TorchJD {row['torchjd'] or float('nan'):.2f} ms", flush=True)
    return rows


def markdown(rows: list[dict[str, Any]], groups: Sequence[int]) -> str:
    lines = ["| method | " + " | ".join(f"K={size}" for size in groups) + " |", "|---" * (len(groups) + 1) + "|"]
    for name in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for row in (r for r in rows if r["method"] == name):
            other = f" ({row['torchjd']:.3g})" if row["torchjd"] else ""
            cells.append(f"{row['zslx']:.3g}{other}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 16, 64, 256])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--markdown", type=Path, help="write the table there")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(args.methods, args.groups)
    print(json.dumps(rows) if args.json else markdown(rows, args.groups))
    if args.markdown:
        versions = f"torch {torch.__version__}, Python {platform.python_version()}, one CPU thread"
        text = "Milliseconds of `weights`, best of several calls; TorchJD 0.18.0 in brackets where it has the method"
        args.markdown.write_text(f"{text} ({versions}).\n\n{markdown(rows, args.groups)}", encoding="utf-8")


if __name__ == "__main__":
    main()
