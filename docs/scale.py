"""Writes the table of costs in docs/scale.md, from the sizes and the cost code of `zslx presets`.

    python docs/scale.py

tests/unit/test_scale_page.py checks that the table is up to date.
"""

from __future__ import annotations

from pathlib import Path

from zslx.commands.presets import MEASURED
from zslx.config.groups import ModelConfig
from zslx.config.presets import preset
from zslx.config.sizes import PAPER_SIZES, PAPER_VOCABULARY, model_preset

PAGE = Path(__file__).parent / "scale.md"
START, END = "<!-- costs: made by docs/scale.py -->", "<!-- end of costs -->"

PEAK = 989e12  # bf16 operations a second of an H100
MFU = 0.375  # of it, measured at 144M compiled (benchmarks/README.md, "On a GPU")
CHECKPOINT, STATE = 8, 12  # bytes a parameter, measured ("What a run keeps on disk")
STATES = 2
# OLMo's two larger models: width, layers, width of the MLP (gate and value together, over the width), tied embeddings.
LARGER = {"1.2B": (2048, 16, 8.0, True), "6.9B": (4096, 32, 5.375, False)}


def models() -> dict[str, ModelConfig]:
    named = {name: model_preset(name) for name in PAPER_SIZES}
    larger = {
        name: ModelConfig(d_model=d, n_layers=n, n_heads=d // 128, mlp_ratio=r, tied=tied, vocab_size=PAPER_VOCABULARY)
        for name, (d, n, r, tied) in LARGER.items()
    }
    return named | larger


def table() -> str:
    config = preset("paper").config
    steps, length = config.train.steps, config.data.seq_len
    tokens = steps * config.data.batch_size * length
    checkpoints = (steps - 1).bit_length() + 1  # powers of two, the end among them
    rows = [
        f"{steps:,} steps of {config.data.batch_size * length:,} tokens ({tokens / 1e9:.0f} billion), {checkpoints} "
        "checkpoints:",
        "",
        "| model | parameters | operations | H100 hours of a trial | checkpoints | whole states | a probe's download |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, model in models().items():
        count = model.parameters(PAPER_VOCABULARY).total
        operations = tokens * model.flops_per_token(length, PAPER_VOCABULARY)
        seconds = tokens / MEASURED[name] if name in MEASURED else operations / (PEAK * MFU)
        hours = f"{seconds / 3600:,.0f} ({'measured' if name in MEASURED else 'arithmetic'})"
        disk = f"{checkpoints * CHECKPOINT * count / 1e9:,.1f} GB | {STATES * STATE * count / 1e9:,.1f} GB"
        rows.append(f"| {name} | {count:,} | {operations:.1e} | {hours} | {disk} | {154 * 2 * count / 1e9:,.1f} GB |")
    return "\n".join(rows)


def written() -> str:
    """The page with the table as it should be."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
