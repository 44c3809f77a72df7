"""What a step takes on a GPU: the plain step eager and compiled, the gradient engine, whole steps of the trainer.

    python -m benchmarks.gpu            one JSON line a row, at most 5 minutes on one GPU
    python -m benchmarks.gpu --tiny     the same rows at a size that a CPU takes in seconds; the times mean nothing

MFU is tokens/s × (6 × matrix parameters + 6·L·d·T) over 989 TFLOP/s, the bf16 peak of an H100. bf16 autocast.
Tokens are random for the bare steps; the rows `trainer` train on the embedded text.
`nanogpt` restates the 124M model of nanoGPT as plain torch, in the same loop as ours of that shape.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zslx
from zslx.config.groups import ModelConfig
from zslx.config.presets import preset
from zslx.config.run_config import override
from zslx.config.sizes import model_preset
from zslx.gradients import sequence_stats
from zslx.model.losses import cross_entropy
from zslx.model.transformer import Transformer
from zslx.training.clock import Clock
from zslx.training.loop import TrainingRun
from zslx.training.pack import train_pack

PEAK = 989e12
FIRST, LAST = 134, 198  # steps of a pack between which it is timed: no checkpoint and no probe lie there
NANO = ModelConfig(
    d_model=768, n_layers=12, n_heads=12, vocab_size=50304, mlp_ratio=4.0, gated_mlp=False,
    positions="learned", norm="layernorm", norm_gain=True,
)  # fmt: skip
TINY = ModelConfig(d_model=32, n_layers=2, n_heads=2, vocab_size=64)


class NanoBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.attn_proj = nn.Linear(width, width, bias=False)
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.heads, C // self.heads).transpose(1, 2)
            for part in self.c_attn(self.ln_1(x)).split(C, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(y.transpose(1, 2).contiguous().view(B, T, C))
        return x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x))))


class NanoGPT(nn.Module):
    """nanoGPT's architecture: learned positions, LayerNorm without bias, GELU, tied head."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.wpe = nn.Embedding(config.max_positions, config.d_model)
        self.h = nn.ModuleList([NanoBlock(config.d_model, config.n_heads) for _ in range(config.n_layers)])
        self.ln_f = nn.LayerNorm(config.d_model, bias=False)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        for p in self.parameters():
            nn.init.normal_(p, std=0.02, generator=torch.Generator().manual_seed(0)) if p.ndim > 1 else None

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class Bare:
    """A loop of plain steps: forward, backward, clip, fused AdamW, on random tokens (B, T)."""

    def __init__(self, model: nn.Module, config: ModelConfig, B: int, T: int, device: str, compiled: bool):
        self.model, self.config, self.B, self.T, self.device = model.to(device), config, B, T, device
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(config.vocab_size, (B, T + 1), generator=generator).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.loss = torch.compile(self.mean_loss) if compiled else self.mean_loss
        with torch.no_grad():  # makes the rotary table, as the first measurement of a run does
            self.losses(self.model, self.ids[:1])

    def losses(self, model: nn.Module, ids: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16):
            return cross_entropy(model(ids[:, :-1]), ids[:, 1:])

    def mean_loss(self) -> Tensor:
        return self.losses(self.model, self.ids).mean()

    def step(self) -> None:
        self.model.zero_grad(set_to_none=True)
        self.loss().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def plain(self) -> None:
        self.model.zero_grad(set_to_none=True)
        self.loss().backward()

    def interference(self) -> None:
        sequence_stats(self.model, self.losses, self.ids, want=("sum", "abs_sum"))

    def pcgrad(self) -> None:
        self.model.zero_grad(set_to_none=True)
        stats = sequence_stats(self.model, self.losses, self.ids, want=("gramian",), keep=True)
        weights = zslx.load_intervention("pcgrad").weights(stats.gramian, stats.group_losses)  # type: ignore[attr-defined]
        stats.combine(weights)

    def row(self, what: str, run: Callable[[], None], repeats: int) -> dict[str, Any]:
        seconds, peak = timed(run, self.device, repeats)
        tokens = self.B * self.T / seconds
        c = self.config
        matrices = sum(p.numel() for p in self.model.parameters() if p.ndim > 1)
        if c.positions == "learned":
            matrices -= c.max_positions * c.d_model
        flops = 6 * matrices + 6 * c.n_layers * c.d_model * self.T
        return {"what": what, "B": self.B, "T": self.T, "ms": round(seconds * 1e3, 2), "tokens_per_s": round(tokens),
                "mfu": round(tokens * flops / PEAK, 3), "peak_gb": round(peak / 2**30, 1)}  # fmt: skip


def timed(run: Callable[[], None], device: str, repeats: int) -> tuple[float, int]:
    """(median seconds, peak bytes) of `run` after three calls that warm up."""
    for _ in range(3):
        run()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times), torch.cuda.max_memory_allocated() if device == "cuda" else 0


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def bare_rows(device: str, tiny: bool) -> Iterator[dict[str, Any]]:
    shapes = [("14M", model_preset("14M"), 64), ("144M", model_preset("144M"), 32), ("nanoGPT's shape", NANO, 32)]
    repeats, T = (3, 8) if tiny else (10, 1024)
    for name, full, B in shapes:
        config = dataclasses.replace(full, d_model=32, n_layers=2, n_heads=2, vocab_size=64) if tiny else full
        makers: list[tuple[str, Callable[[], nn.Module]]] = [
            (f"ours, {name}", lambda c=config: Transformer(c, torch.Generator().manual_seed(0)))  # type: ignore[misc]
        ]
        if full is NANO:
            makers.append(("nanogpt", lambda c=config: NanoGPT(c)))  # type: ignore[misc]
        for label, make in makers:
            for compiled in (False, True):
                bare = Bare(make(), config, 2 if tiny else B, T, device, compiled)
                how = "compiled" if compiled else "eager"
                yield bare.row(f"plain step, {label}, {how}", bare.step, repeats)
                if name == "144M" and compiled:
                    base = bare.row("forward and backward, ours, 144M, compiled", bare.plain, repeats)
                    yield base
                    for what in ("interference", "pcgrad"):
                        row = bare.row(f"{what} over {bare.B} sequences, 144M", getattr(bare, what), repeats)
                        yield row | {"over_compiled": round(row["ms"] / base["ms"], 3)}
                del bare
                torch._dynamo.reset()
                if device == "cuda":
                    torch.cuda.empty_cache()


def trainer_rows(device: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """Whole steps of the trainer, instruments off."""
    cases = [("0.4M", 8, 64, "none"), ("4M", 16, 128, "none"), ("144M", 16, 1024, "none"), ("144M", 16, 1024, "pcgrad"),
             ("144M", 16, 1024, "agreement")]  # fmt: skip
    plain: dict[str, float] = {}
    for size, B, T, spec in [(size, 4, 8, spec) for size, _, _, spec in cases if size == "0.4M"] if tiny else cases:
        config = preset("smoke").for_size("0.1M" if tiny else size)
        values = {"intervention": spec, "data.batch_size": B, "data.seq_len": T, "train.steps": 40,
                  "train.device": device, "train.dtype": "bfloat16", "instruments.probes": False,
                  "instruments.heldout_points": 2, "train.compile": spec == "none" and not tiny}  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            run = TrainingRun(override(config, list(values.items())), Path(folder))
            clock, steps = Clock(run.records), iter(range(2, 40))
            seconds, peak = timed(lambda: run.step(next(steps), clock) and None, device, 4 if tiny else 20)  # noqa: B023
            run.records.close()
        plain.setdefault(size, seconds)
        yield {"what": f"trainer, {size}, {spec}", "B": B, "T": T, "ms": round(seconds * 1e3, 2),
               "tokens_per_s": round(B * T / seconds), "peak_gb": round(peak / 2**30, 1),
               "over_plain": round(seconds / plain[size], 3)}  # fmt: skip


def pack_rows(device: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """Steps of packs, instruments off: milliseconds for all runs of the pack."""
    cases = [("0.4M", 16, 64, 1, "none"), ("0.4M", 16, 64, 32, "none"), ("4M", 16, 128, 32, "none"),
             ("0.1M", 16, 32, 16, "pcgrad")]  # fmt: skip
    for size, B, T, runs, spec in [("0.1M", 4, 8, 3, "pcgrad")] if tiny else cases:
        config = preset("smoke").for_size(size)
        values = {"data.batch_size": B, "data.seq_len": T, "train.steps": 204, "train.device": device,
                  "train.dtype": "bfloat16", "intervention": spec, "instruments.probes": False,
                  "instruments.heldout_points": 2, "run.resume_seconds": 1e9}  # fmt: skip
        times = []

        def done(times: list[float] = times) -> None:
            if len(times) in (FIRST, LAST):
                wait(device)
            times.append(time.perf_counter())

        with tempfile.TemporaryDirectory() as folder:
            configs = [override(config, [*values.items(), ("train.seed", seed)]) for seed in range(runs)]
            for found in train_pack(configs, [Path(folder) / str(seed) for seed in range(runs)], done):
                if isinstance(found, BaseException):
                    raise found
        seconds = (times[LAST] - times[FIRST]) / (LAST - FIRST)
        yield {"what": f"pack of {runs}, {size}, {spec}", "B": B, "T": T, "ms": round(seconds * 1e3, 2),
               "run_steps_per_s": round(runs / seconds)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU takes in seconds")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() and not args.tiny else "cpu"
    if device == "cpu" and not args.tiny:
        sys.exit("benchmarks.gpu: this machine has no GPU that torch can use; --tiny runs the rows on the CPU")
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU, tiny"
    print(json.dumps({"card": card, "torch": torch.__version__}), flush=True)
    for rows in (bare_rows, trainer_rows, pack_rows):
        for row in rows(device, args.tiny):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
