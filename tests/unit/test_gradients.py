"""The parts of the gradient engine that stand beside the exactness: roles, batches, budgets, the benchmark."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import gradients as benchmark
from zslx.gradients import body_of, parameter_roles, sequence_stats, token_interference
from zslx.gradients.engine.loss_batch import batch_size, take
from zslx.model.losses import token_losses
from zslx.model.transformer import ModelConfig, Transformer
from zslx.text.loader import Batch


def build(**config):
    small = {"d_model": 8, "n_layers": 2, "n_heads": 2, "vocab_size": 11, "mlp_ratio": 2}
    return Transformer(ModelConfig(**(small | config)), torch.Generator().manual_seed(0))


def draw(B, T):
    ids = torch.randint(11, (B, T + 1), generator=torch.Generator().manual_seed(1))
    return Batch(tokens=ids[:, :-1], targets=ids[:, 1:], domains=torch.zeros(B, dtype=torch.int64))


def test_roles_of_the_native_model():
    roles = parameter_roles(build(norm_gain=True, bias=True, positions="learned", tied=False))
    assert (roles["embedding.weight"].group, roles["embedding.weight"].layer) == ("embedding", None)
    assert roles["position_embedding.weight"].group == "embedding"
    assert roles["unembedding.weight"].group == "unembedding"
    assert roles["blocks.1.attention.qkv.weight"].group == "attention"
    assert roles["blocks.1.attention.qkv.weight"].layer == 1 and roles["blocks.1.attention.qkv.weight"].body
    assert roles["blocks.0.mlp.up.bias"].group == "mlp" and not roles["blocks.0.mlp.up.bias"].body
    assert roles["blocks.0.attention_norm.weight"].group == "norm"
    assert roles["norm.weight"].group == "norm"


def test_roles_by_the_names_of_other_models():
    model = nn.ModuleDict(
        {
            "wte": nn.Embedding(3, 2),
            "h": nn.ModuleList(
                [nn.ModuleDict({"ln_1": nn.LayerNorm(2), "attn": nn.Linear(2, 2), "mlp": nn.Linear(2, 2)})]
            ),
            "ln_f": nn.LayerNorm(2),
            "lm_head": nn.Linear(2, 3),
            "probe": nn.Linear(2, 2),
        }
    )
    groups = {name: role.group for name, role in parameter_roles(model).items() if name.endswith("weight")}
    assert groups == {
        "wte.weight": "embedding",
        "h.0.ln_1.weight": "norm",
        "h.0.attn.weight": "attention",
        "h.0.mlp.weight": "mlp",
        "ln_f.weight": "norm",
        "lm_head.weight": "unembedding",
        "probe.weight": "other",
    }


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.decoder.layers.0.fc1", "mlp"),
        ("model.transformer.blocks.1.att_proj", "attention"),
        ("model.transformer.blocks.1.ff_proj", "mlp"),
        ("model.transformer.blocks.1.ff_out", "mlp"),
        ("model.transformer.ff_out", "unembedding"),
        ("transformer.h.0.attn.c_proj", "attention"),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h", "mlp"),
        ("embed_out", "unembedding"),
    ],
)
def test_roles_by_path(name, group):
    """Names of OPT, OLMo, GPT-2 and Pythia."""
    model = nn.Module()
    *path, last = name.split(".")
    inner = model
    for part in path:
        inner.add_module(part, nn.Module())
        inner = inner.get_submodule(part)
    inner.add_module(last, nn.Linear(2, 2))
    assert parameter_roles(model)[f"{name}.weight"].group == group


def test_a_model_whose_names_say_nothing_has_a_body_all_the_same():
    model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 11))
    batch = draw(4, 5)

    def loss_fn(model, batch):
        return torch.nn.functional.cross_entropy(model(batch.tokens).mT, batch.targets, reduction="none")

    assert body_of(model, dict(model.named_parameters())) == ("1.weight", "3.weight")
    exact, sampled = (token_interference(model, loss_fn, batch, n) for n in ("all", 8))
    assert 0 < exact.ratio < 1 and exact.mean is not None and exact.ratio_se == 0
    assert abs(sampled.ratio - exact.ratio) < 6 * sampled.ratio_se
    assert body_of(nn.LayerNorm(3), ["weight", "bias"]) == ("weight", "bias")


def test_the_guide_runs_as_written(capsys):
    """docs/gradients.md: its example, and every attribute that its tables name."""
    text = (Path(__file__).parents[2] / "docs" / "gradients.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1), names)
    assert re.fullmatch(r"D over tokens: 0\.\d{3} ± 0\.\d{3}\n", capsys.readouterr().out)
    for section, value in (("## sequence_stats", names["stats"]), ("## token_interference", names["found"])):
        table = text.split(section)[1].split("| attribute |")[1].split("\n\n")[0]
        attributes = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)", row.split("|")[1])]
        assert len(attributes) >= 6 and all(hasattr(value, name) for name in attributes), attributes


def test_batches_of_every_kind():
    batch = draw(4, 5)
    assert batch_size(batch) == batch_size({"x": batch.tokens}) == batch_size((batch.tokens, 3)) == 4
    part = take(batch, torch.tensor([2, 0]))
    assert torch.equal(part.tokens, batch.tokens[[2, 0]])
    assert torch.equal(take({"x": batch.tokens, "scale": 2.0}, torch.tensor([1]))["x"], batch.tokens[1:2])
    assert isinstance(take((batch.tokens,), torch.tensor([1])), tuple)
    with pytest.raises(ValueError, match="no tensor with a batch dimension in a str"):
        batch_size("tokens")
    stats = sequence_stats(build(), token_losses, batch)
    assert stats.gramian.shape == (4, 4) and stats.num_tokens == 20
    assert token_interference(build(), token_losses, batch, "all", sequences_at_once=3).num_tokens == 20


def test_the_check_of_a_model_happens_once(monkeypatch):
    from zslx.gradients.engine.tape import Tape

    seen = []
    monkeypatch.setattr(Tape, "_check", lambda self, losses, check=Tape._check: seen.append(1) or check(self, losses))
    model = build()
    for T in (5, 5, 3):
        sequence_stats(model, token_losses, draw(4, T))
    assert len(seen) == 1
    sequence_stats(model, token_losses, draw(4, 5), parameters=["embedding.weight"])
    sequence_stats(build(), token_losses, draw(4, 5))
    assert len(seen) == 3


def test_a_diverged_loss_is_not_taken_for_a_layout():
    model = build()
    with torch.no_grad():
        model.blocks[0].mlp.up.weight[0, 0] = torch.nan
    stats = sequence_stats(model, token_losses, draw(4, 5))
    assert not stats.slow and not stats.gramian.isfinite().all()
    with torch.no_grad():
        model.blocks[0].mlp.up.weight[0, 0] = 0.1
    assert not sequence_stats(model, token_losses, draw(4, 5)).slow


def test_low_memory_mode_holds_less_than_the_plain_step_times_one_and_a_half():
    work = benchmark.Workload.make(64, 3, 2, 8, 64, vocabulary=256)
    plain = benchmark.peak_bytes(work, work.plain)
    low = benchmark.peak_bytes(work, lambda: work.pcgrad(0))
    assert low <= 1.5 * plain
    # The meter sees what a step must hold: logits and their gradient at least.
    assert plain >= 2 * 8 * 64 * 256 * 4


def test_the_benchmark_compares_equal_jobs():
    work = benchmark.Workload.make(16, 2, 2, 4, 8, vocabulary=32)
    work.pcgrad()
    ours = [p.grad.clone() for p in work.model.parameters()]
    work.loop()
    for p, g in zip(work.model.parameters(), ours, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-6)


def test_the_benchmark_divides_by_the_plain_passes_on_both_sides(monkeypatch):
    jobs = {"plain": iter([1.0, 1.0, 3.0, 1.0]), "a": iter([2.0, 4.0, 8.0])}
    monkeypatch.setattr(benchmark, "seconds", lambda run: next(jobs[run()]))
    assert benchmark.ratios(lambda: "plain", {"a": lambda: "a"}, 3) == {"a": 2.0}  # of 2, 2 and 4


@pytest.mark.medium
def test_the_peer_in_the_benchmark_does_the_same_job():
    pytest.importorskip("torchjd.autogram")
    work = benchmark.Workload.make(16, 2, 2, 4, 8, vocabulary=32, tied=False)
    work.pcgrad()
    ours = [p.grad.clone() for p in work.model.parameters()]
    work.torchjd()()
    for p, g in zip(work.model.parameters(), ours, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-6)
