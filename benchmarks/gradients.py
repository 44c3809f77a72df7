"""What the gradient engine costs, over a plain forward and backward of the same model.

    python -m benchmarks.gradients         a table
    python -m benchmarks.gradients --json  one JSON object, name to ratio

How cost and memory grow with B, T, width and vocabulary: benchmarks/gradients_scaling.py.

The yardstick is the mean loss, `cross_entropy(reduction="mean").backward()`, all parameters. Candidates and
yardstick take turns, and each number is the median of the turns' ratios, so that a machine busy with other things
slows both alike. Memory is the peak of live tensor bytes above the weights (allocator events, not RSS).
4M: d=320, 6 layers, 5 heads, vocabulary 2,048, tied, B=16, T=128. 04M: d=96, 4 layers, 3 heads, B=16, T=64.
float32, 2 threads. On a GPU, names end in `_gpu`: bfloat16, 144M preset, B=32, T=1,024.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import zslx
from zslx.gradients import position_interference, sequence_stats, token_interference
from zslx.model.transformer import ModelConfig, Transformer
from zslx.training.malloc import keep_freed_memory

GOALS = {
    "interference_4M": 1.20,
    "interference_04M": 1.20,
    "interference_chance_4M": 1.30,
    "pcgrad_4M": 1.25,
    "pcgrad_04M": 1.40,
    "position_4M": 1.30,
    "memory_4M": 1.5,
    "lowmem_pcgrad_4M": 1.5,
    "token_speedup": 100,
    "interference_gpu": 1.15,
    "pcgrad_gpu": 1.35,
}
PROBE = (64, 1024)  # sequences, positions of the per-token probe
LOW_MEMORY = 64 << 20  # bytes for group gradients kept whole; 0 is slower and no smaller at its peak
TARGET_ERROR = 0.002  # absolute standard error of D_grad_token


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model, a batch of tokens (B, T + 1), and how to compute its losses."""

    model: Transformer
    ids: Tensor
    autocast: bool = False

    @classmethod
    def make(
        cls,
        width: int,
        layers: int,
        heads: int,
        B: int,
        T: int,
        *,
        vocabulary: int = 2048,
        device: str = "cpu",
        tied: bool = True,
        mlp_ratio: float = 1.0,
    ) -> Workload:
        config = ModelConfig(
            d_model=width, n_layers=layers, n_heads=heads, vocab_size=vocabulary, tied=tied, mlp_ratio=mlp_ratio
        )
        generator = torch.Generator().manual_seed(0)
        model = Transformer(config, generator).to(device)
        # Zipf's law: text repeats its frequent tokens.
        shares = 1 / torch.arange(1.0, vocabulary + 1)
        ids = torch.multinomial(shares, B * (T + 1), replacement=True, generator=generator).view(B, T + 1)
        return cls(model=model, ids=ids.to(device), autocast=device != "cpu")

    def logits(self, model: nn.Module, ids: Tensor) -> Tensor:
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.autocast):
            return model(ids[:, :-1])

    def plain(self) -> None:
        self.model.zero_grad()
        logits = self.logits(self.model, self.ids)
        F.cross_entropy(logits.flatten(0, 1), self.ids[:, 1:].flatten()).backward()

    def losses(self, model: nn.Module, ids: Tensor) -> Tensor:
        logits = self.logits(model, ids)
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)

    def interference(self, chance: torch.Generator | None = None) -> None:
        sequence_stats(self.model, self.losses, self.ids, want=("sum", "abs_sum"), chance=chance)

    def pcgrad(self, memory_budget: int | None = None) -> None:
        self.model.zero_grad()
        stats = sequence_stats(
            self.model, self.losses, self.ids, want=("gramian",), keep=True, memory_budget=memory_budget
        )
        assert stats.gramian is not None
        stats.combine(PCGRAD.weights(stats.gramian, stats.group_losses))

    def position(self) -> None:
        position_interference(self.model, self.losses, self.ids)

    def loop(self) -> None:
        """The same job with a backward a sequence."""
        parameters = list(self.model.parameters())
        losses = self.losses(self.model, self.ids)
        rows = [torch.autograd.grad(row.sum() / losses.numel(), parameters, retain_graph=True) for row in losses]
        flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        gramian = flat @ flat.T
        combined = PCGRAD.weights(gramian, losses.detach().sum(1)) @ flat
        for p, g in zip(parameters, combined.split([p.numel() for p in parameters]), strict=True):
            p.grad = g.view_as(p)

    def torchjd(self) -> Callable[[], None]:
        """The same job with TorchJD's Gramian engine and a second, weighted backward."""
        from torchjd.autogram import Engine

        engine = Engine(self.model, batch_dim=0)  # watches the forwards from here on

        def step() -> None:
            self.model.zero_grad()
            losses = self.losses(self.model, self.ids).sum(1) / self.ids[:, 1:].numel()
            gramian = engine.compute_gramian(losses)
            losses.backward(PCGRAD.weights(gramian, losses.detach()))

        return step


PCGRAD = zslx.load_intervention("pcgrad")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def seconds(run: Callable[[], None]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratios(plain: Callable[[], None], candidates: dict[str, Callable[[], None]], turns: int) -> dict[str, float]:
    """Median over turns of each candidate's time over that of the plain passes on both sides of it."""
    for run in (plain, *candidates.values()):
        run()
    found: dict[str, list[float]] = {name: [] for name in candidates}
    before = seconds(plain)
    for turn in range(turns):
        for name, run in candidates.items():
            taken = seconds(run)
            after = seconds(plain)
            found[name].append(2 * taken / (before + after))
            before = after
        say(f"  turn {turn + 1}/{turns}: " + ", ".join(f"{n} {v[-1]:.2f}" for n, v in found.items()))
    return {name: statistics.median(values) for name, values in found.items()}


def peak_bytes(workload: Workload, run: Callable[[], object]) -> int:
    """Most bytes that tensors held at a time, above what was held before (weights)."""
    run()
    workload.model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    assert record.profiler is not None
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def token_speedup() -> float:
    """One backward a position on a kept graph, over the sampled estimate at the target error.

    The former is measured on a few positions and scaled to all of them: forward once, then plain backwards of a
    position's losses summed over sequences (less than the real job, which needs them apart).
    """
    say("per token")
    sequences, positions = PROBE
    workload = Workload.make(96, 4, 3, sequences, positions)
    sample = token_interference(workload.model, workload.losses, workload.ids, sequences, mean=False)
    n = sequences * max(1, round(sample.count * (sample.ratio_se / TARGET_ERROR) ** 2 / sequences + 0.5))
    say(f"  D_grad_token {sample.ratio:.4f}, se {sample.ratio_se:.4f} at n = {sample.count}: {n} tokens are needed")
    start = time.perf_counter()
    sample = token_interference(workload.model, workload.losses, workload.ids, n, mean=False)
    ours = time.perf_counter() - start
    say(f"  sampled: {ours:.1f} s, D {sample.ratio:.4f}, se {sample.ratio_se:.5f} at n = {sample.count}")
    parameters = list(workload.model.parameters())
    start = time.perf_counter()
    losses = workload.losses(workload.model, workload.ids)
    forward = time.perf_counter() - start
    timed = []
    for position in range(positions // 8, positions, positions // 4):
        start = time.perf_counter()
        torch.autograd.grad(losses[:, position].sum(), parameters, retain_graph=True)
        timed.append(time.perf_counter() - start)
    theirs = forward + positions * statistics.median(timed)
    say(
        f"  one backward a position: {statistics.median(timed):.2f} s each (4 measured), {theirs:.0f} s for {positions}"
    )
    return theirs / ours


def measure_4M() -> dict[str, float]:
    say("4M")
    work = Workload.make(320, 6, 5, 16, 128)
    signs = torch.Generator().manual_seed(0)
    candidates: dict[str, Callable[[], None]] = {
        "interference_4M": work.interference,
        "interference_chance_4M": lambda: work.interference(signs),
        "pcgrad_4M": work.pcgrad,
        "position_4M": work.position,
        "lowmem_pcgrad_4M": lambda: work.pcgrad(LOW_MEMORY),
    }
    found = ratios(work.plain, candidates, 11)
    say("4M, a loop of backwards; TorchJD on an untied copy")
    untied = Workload.make(320, 6, 5, 16, 128, tied=False)
    found |= ratios(work.plain, {"loop_4M": work.loop, "torchjd_4M": untied.torchjd()}, 3)
    say("4M, memory")
    plain = peak_bytes(work, work.plain)
    found["memory_4M"] = peak_bytes(work, lambda: work.pcgrad(LOW_MEMORY)) / plain
    say(f"  plain {plain / 2**20:.0f} MiB, keeping all gradients {peak_bytes(work, work.pcgrad) / plain:.2f} of it")
    return found


def measure_04M() -> dict[str, float]:
    say("04M")
    work = Workload.make(96, 4, 3, 16, 64)
    return ratios(work.plain, {"interference_04M": work.interference, "pcgrad_04M": work.pcgrad}, 40)


def measure_gpu() -> dict[str, float]:
    say("144M on the GPU")
    work = Workload.make(1024, 16, 16, 32, 1024, vocabulary=50304, device="cuda")
    budget = torch.cuda.get_device_properties(0).total_memory // 4
    runs = {"interference_gpu": work.interference, "pcgrad_gpu": lambda: work.pcgrad(budget)}
    return ratios(work.plain, runs, 7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    args = parser.parse_args()
    start = time.perf_counter()
    torch.set_num_threads(2)
    keep_freed_memory()  # as training does: a plain step is a quarter faster with it
    found = measure_4M() | measure_04M() | {"token_speedup": token_speedup()}
    if torch.cuda.is_available():
        found |= measure_gpu()
    say(f"{time.perf_counter() - start:.0f} s")
    if args.json:
        print(json.dumps({name: round(value, 4) for name, value in found.items()}))
        return
    print(f"{'name':24} {'ratio':>8}  goal")
    for name, value in found.items():
        relation = "≥" if name == "token_speedup" else "≤"
        print(f"{name:24} {value:8.2f}  {relation + str(GOALS[name]) if name in GOALS else '–'}")


if __name__ == "__main__":
    main()
