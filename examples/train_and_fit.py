"""Trains one small run and fits where its loss decelerates.

    python examples/train_and_fit.py [FOLDER] [STEPS]

A run is bitwise the same each time. Started again, the script goes on where it was.
"""

import dataclasses
import sys

import zslx

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/example"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 4096

config = zslx.preset("laptop").for_size("0.08M")
config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))
manifest = zslx.train(config, folder)
print(f"{manifest['status']} after {manifest['totals']['steps']} steps, {manifest['totals']['seconds']:.0f} s")

lines = zslx.load_run(folder).probes[1:]  # step 0 has no place on a logarithmic axis
curve = zslx.curve([x["step"] for x in lines], [x["heldout_loss"] for x in lines], warmup=config.optim.warmup)
found = zslx.fit(curve, zslx.FitOptions(smoothing="none"))
print(found.status, found.reason)
if found.estimate:
    print(", ".join(f"{name} {value:.4g}" for name, value in found.estimate.items()))
