"""`zslx presets`: the presets and model sizes, and what they cost."""

from __future__ import annotations

import argparse
import json
from typing import Any

# Tokens a second of the compiled plain step on one H100, bf16 (benchmarks/README.md, "On a GPU").
MEASURED = {"14M": 2_658_000, "144M": 385_000}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "List the presets and model sizes: parameters, tokens, and what a trial costs.\n\n"
        "flops: of forward and backward, by arithmetic. H100 hours: from the measured tokens a second of the compiled\n"
        "plain step (benchmarks/README.md), for the sizes where there is one. For a time on your own machine:\n"
        "zslx sweep ... --dry-run, which measures a step there."
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from zslx.config.presets import PRESETS
    from zslx.config.sizes import SIZES

    presets = [described(name) for name in PRESETS]
    sizes = [
        {"name": n, "d_model": d, "n_layers": layers, "n_heads": h, "parameters": parameters(n)}
        for n, (d, layers, h) in SIZES.items()
    ]
    if args.json:
        print(json.dumps({"presets": presets, "sizes": sizes}, indent=1))
        return 0
    for p in presets:
        print(f"{p['name']}: {p['help']}")
        print(
            f"  {p['seeds']} seed{'s' * (p['seeds'] > 1)}; {p['steps']:,} steps of {p['tokens_per_step']:,} tokens; "
            f"arms {', '.join(p['arms'])}; {p['trials']} trials, {p['flops']:.1e} flops"
        )
        for t in p["costs"]:
            hours = f"{t['h100_hours']:.1f} H100 hours" if t["h100_hours"] else "not measured"
            print(
                f"  {t['size']:6} {t['parameters']:>12,} parameters  rate {t['lr']:.3g}  {t['tokens']:>15,} tokens  "
                f"{t['flops']:.1e} flops  {hours}"
            )
    print()
    for s in sizes:
        print(
            f"{s['name']:12} width {s['d_model']:5}  layers {s['n_layers']:3}  heads {s['n_heads']:3}  "
            f"{s['parameters']:>12,} parameters"
        )
    print("\nmodel=hf:gpt2, model=hf:FOLDER: a model of transformers")
    return 0


def described(name: str) -> dict[str, Any]:
    """A preset with the cost of its trials, each with one intervention that costs nothing."""
    from zslx.config.presets import preset

    chosen = preset(name)
    data, steps = chosen.config.data, chosen.config.train.steps
    tokens = steps * data.batch_size * data.seq_len
    costs: list[dict[str, Any]] = []
    for size in chosen.sizes:
        config = chosen.for_size(size)
        costs.append(
            {
                "size": size,
                "parameters": config.model.parameters(data.vocab_size).total,
                "lr": config.optim.lr,
                "tokens": tokens,
                "flops": tokens * config.model.flops_per_token(data.seq_len, data.vocab_size),
                "h100_hours": tokens / MEASURED[size] / 3600 if size in MEASURED and data.seq_len == 1024 else None,
            }
        )
    each = len(chosen.arms) * chosen.seeds
    return {
        "name": name,
        "help": chosen.help,
        "sizes": list(chosen.sizes),
        "seeds": chosen.seeds,
        "steps": steps,
        "tokens_per_step": data.batch_size * data.seq_len,
        "arms": list(chosen.arms),
        "trials": each * len(costs),
        "flops": each * sum(cost["flops"] for cost in costs),
        "costs": costs,
    }


def parameters(size: str) -> int:
    """Number of parameters, at the vocabulary of the size's family."""
    from zslx.config.sizes import LAPTOP_VOCABULARY, model_preset

    return model_preset(size).parameters(LAPTOP_VOCABULARY).total
