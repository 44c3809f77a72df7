"""`zslx presets`: the presets and model sizes."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from zslx.config.presets import PRESETS
    from zslx.config.sizes import LAPTOP_SIZES, PAPER_SIZES

    presets: list[dict[str, Any]] = [
        {
            "name": n,
            "help": p.help,
            "sizes": list(p.sizes),
            "seeds": p.seeds,
            "steps": p.config.train.steps,
            "tokens_per_step": p.config.data.batch_size * p.config.data.seq_len,
            "arms": list(p.arms),
        }
        for n, p in PRESETS.items()
    ]
    sizes = [
        {"name": n, "d_model": d, "n_layers": layers, "n_heads": h, "parameters": parameters(n)}
        for n, (d, layers, h) in (LAPTOP_SIZES | PAPER_SIZES).items()
    ]
    if args.json:
        print(json.dumps({"presets": presets, "sizes": sizes}, indent=1))
        return 0
    for p in presets:
        print(f"{p['name']:8} {p['help']}")
        print(
            f"{'':8} sizes {' '.join(p['sizes'])}; {p['seeds']} seeds; {p['steps']} steps of "
            f"{p['tokens_per_step']} tokens; arms {', '.join(p['arms'])}"
        )
    print()
    for s in sizes:
        print(
            f"{s['name']:6} width {s['d_model']:5}  layers {s['n_layers']:3}  heads {s['n_heads']:3}  "
            f"{s['parameters']:>12,} parameters"
        )
    return 0


def parameters(size: str) -> int:
    """Number of parameters, at the vocabulary of the size's family."""
    from zslx.config.sizes import LAPTOP_VOCABULARY, model_preset

    return model_preset(size).parameters(LAPTOP_VOCABULARY).total
