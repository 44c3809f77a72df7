"""The transformer: parameter counts, a slow forward in plain loops, initialisation, causality, shapes."""

from __future__ import annotations

import math

import pytest
import torch

from zslx.config.groups import DataConfig, ModelConfig, TrainConfig
from zslx.config.run_config import Config
from zslx.config.sizes import LAPTOP_SIZES, PAPER_SIZES, model_preset
from zslx.model.transformer import Transformer, build_model

# Totals of the paper's Table 3 sizes with V = 50,304: V·d + 5.5·L·d², tied, no gains, no biases.
PAPER_COUNTS = {
    "14M": 14_319_616,
    "37M": 37_289_984,
    "78M": 77_561_856,
    "144M": 143_785_984,
    "285M": 284_884_992,
    "472M": 472_121_344,
}
ODD = [
    {},
    {"tied": False, "bias": True, "norm": "layernorm", "norm_gain": True},
    {"positions": "learned", "max_positions": 9},
    {"gated_mlp": False, "mlp_ratio": 2.0, "init": "normal"},
    {"mlp_ratio": 0.7, "norm_gain": True},
]


@pytest.mark.parametrize("size", PAPER_SIZES)
def test_parameter_counts_of_the_paper(size: str):
    config = model_preset(size)
    with torch.device("meta"):
        model = Transformer(config)
    d, n = config.d_model, config.n_layers
    total = sum(p.numel() for p in model.parameters())
    assert total == PAPER_COUNTS[size] == config.vocab_size * d + 11 * n * d * d // 2 == config.parameters().total
    assert config.parameters().non_embedding == 11 * n * d * d // 2
    assert round(total / 1e6) == int(size.rstrip("M"))


@pytest.mark.parametrize("size", LAPTOP_SIZES)
def test_laptop_sizes_are_about_what_they_say(size: str):
    assert model_preset(size).parameters(2048).total / 1e6 == pytest.approx(float(size.rstrip("M")), rel=0.5)


def tiny(seed: int = 0, **options) -> Transformer:
    config = ModelConfig(d_model=12, n_layers=3, n_heads=2, vocab_size=17, **options)
    model = Transformer(config, torch.Generator().manual_seed(seed)).double()
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():  # biases and gains away from their start, so that leaving them out would show
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=draws, dtype=p.dtype))
    return model


def slow_forward(model: Transformer, tokens: list[int]) -> list[torch.Tensor]:
    """Logits (V,) at each position of one sequence, one number after the other, from the formulas."""
    c, p = model.config, dict(model.named_parameters())
    width = c.d_model // c.n_heads

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        if c.norm == "layernorm":
            x = x - x.mean()
        x = x / math.sqrt(float((x * x).mean()) + 1e-5)
        x = x * p[f"{name}.weight"] if f"{name}.weight" in p else x
        return x + p[f"{name}.bias"] if f"{name}.bias" in p else x

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        y = torch.stack([(row * x).sum() for row in p[f"{name}.weight"]])
        return y + p[f"{name}.bias"] if f"{name}.bias" in p else y

    def rotated(x: torch.Tensor, position: int) -> torch.Tensor:
        if c.positions != "rope":
            return x
        out = x.clone()
        for i in range(width // 2):
            angle = position * 10_000.0 ** (-2 * i / width)
            a, b = x[i], x[i + width // 2]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + width // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    def sigmoid(v: torch.Tensor) -> torch.Tensor:
        return 1 / (1 + torch.exp(-v))

    def mlp(x: torch.Tensor, name: str) -> torch.Tensor:
        h = linear(x, f"{name}.up")
        if c.gated_mlp:
            value, gate = h[: c.mlp_width], h[c.mlp_width :]
            return linear(gate * sigmoid(gate) * value, f"{name}.down")
        return linear(h * 0.5 * (1 + torch.erf(h / math.sqrt(2))), f"{name}.down")

    xs = [p["embedding.weight"][t] for t in tokens]
    if c.positions == "learned":
        xs = [x + p["position_embedding.weight"][t] for t, x in enumerate(xs)]
    for layer in range(c.n_layers):
        name = f"blocks.{layer}"
        qkv = [linear(norm(x, f"{name}.attention_norm"), f"{name}.attention.qkv") for x in xs]
        attended = []
        for t in range(len(xs)):
            heads = []
            for h in range(c.n_heads):
                part = slice(h * width, (h + 1) * width)
                q = rotated(qkv[t][: c.d_model][part], t)
                scores = torch.stack(
                    [
                        (q * rotated(qkv[s][c.d_model : 2 * c.d_model][part], s)).sum() / math.sqrt(width)
                        for s in range(t + 1)
                    ]
                )
                share = scores.exp() / scores.exp().sum()
                heads.append(sum(share[s] * qkv[s][2 * c.d_model :][part] for s in range(t + 1)))
            attended.append(linear(torch.cat(heads), f"{name}.attention.out"))
        xs = [x + a for x, a in zip(xs, attended, strict=True)]
        xs = [x + mlp(norm(x, f"{name}.mlp_norm"), f"{name}.mlp") for x in xs]
    head = p["embedding.weight"] if c.tied else p["unembedding.weight"]
    return [torch.stack([(row * norm(x, "norm")).sum() for row in head]) for x in xs]


@pytest.mark.parametrize("options", ODD)
@torch.no_grad()
def test_forward_equals_the_formulas(options: dict):
    model = tiny(**options)
    for tokens in ([3], [5, 5, 0, 16, 2, 5, 1]):
        fast = model(torch.tensor([tokens, tokens[::-1]]))
        for row, sequence in zip(fast, (tokens, tokens[::-1]), strict=True):
            assert torch.allclose(row, torch.stack(slow_forward(model, sequence)), rtol=0, atol=1e-10)


@torch.no_grad()
def test_no_position_sees_what_comes_later():
    model = tiny()
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    changed = tokens.clone()
    changed[0, 4:] = 9
    a, b = model(tokens), model(changed)
    assert torch.equal(a[:, :4], b[:, :4]) and not torch.equal(a[:, 4:], b[:, 4:])


def test_initialisation():
    """std 1/√d, outputs 1/√(2·fan_in·(layer+1)), truncated at 3σ (which makes the std .9866 of σ)."""
    config = ModelConfig(d_model=256, n_layers=4, n_heads=4, vocab_size=4096)
    model = Transformer(config, torch.Generator().manual_seed(0))
    expected = {"embedding.weight": 256**-0.5}
    for i in range(4):
        expected[f"blocks.{i}.attention.qkv.weight"] = expected[f"blocks.{i}.mlp.up.weight"] = 256**-0.5
        expected[f"blocks.{i}.attention.out.weight"] = (2 * 256 * (i + 1)) ** -0.5
        expected[f"blocks.{i}.mlp.down.weight"] = (2 * 128 * (i + 1)) ** -0.5
    weights = dict(model.named_parameters())
    assert weights.keys() == expected.keys()
    truncation = math.sqrt(1 - 6 * math.exp(-4.5) / math.sqrt(2 * math.pi) / math.erf(3 / math.sqrt(2)))
    for name, sigma in expected.items():
        w = weights[name].detach().double()
        five = 5 / math.sqrt(2 * w.numel())  # five standard errors
        assert float(w.std()) == pytest.approx(sigma * truncation, rel=five), name
        assert abs(float(w.mean())) < 5 * sigma / math.sqrt(w.numel()), name
        assert 2.9 * sigma < float(w.abs().max()) <= 3 * sigma, name


def test_initial_weights_are_the_seeds_alone():
    before = torch.get_rng_state()
    first, second = tiny(0).state_dict(), tiny(0).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["embedding.weight"], tiny(1).state_dict()["embedding.weight"])


def test_initial_loss_is_near_that_of_guessing():
    model = Transformer(ModelConfig(vocab_size=512), torch.Generator().manual_seed(0))
    tokens = torch.randint(512, (8, 32), generator=torch.Generator().manual_seed(0))
    targets = torch.randint(512, (8, 32), generator=torch.Generator().manual_seed(1))
    loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    assert float(loss.detach()) == pytest.approx(math.log(512), rel=0.1)


def test_a_tied_head_is_the_embedding():
    model = tiny()
    assert model.unembedding.weight is model.embedding.weight
    untied = tiny(tied=False)
    assert untied.unembedding.weight is not untied.embedding.weight
    counts, tied_counts = untied.config.parameters(), model.config.parameters()
    assert counts.total - tied_counts.total == 17 * 12
    assert counts.non_embedding == tied_counts.non_embedding


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"d_model": 10, "n_heads": 3}, "model.n_heads=3 does not divide model.d_model=10"),
        ({"d_model": 9, "n_heads": 3}, "rotary positions need an even width per head"),
        ({"mlp_ratio": 0.01}, "the MLP would have no width"),
        ({"norm": "batchnorm"}, "allowed are rmsnorm, layernorm"),
        ({"n_layers": 0}, "must be a number at least 1"),
    ],
)
def test_impossible_architectures_are_refused(values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**values)


def test_vocabulary_and_positions_must_fit_the_data():
    with pytest.raises(ValueError, match=r"model\.vocab_size=100: the tokenizer has 308 entries"):
        build_model(Config(model=ModelConfig(vocab_size=100)), 308, None)
    short = ModelConfig(positions="learned", max_positions=8)
    with pytest.raises(ValueError, match=r"model\.max_positions=8 is less than data\.seq_len=64"):
        build_model(Config(model=short, data=DataConfig(seq_len=64)), 308, None)
    assert build_model(Config(model=ModelConfig(vocab_size=400)), 308, None).embedding.num_embeddings == 400
    double = build_model(Config(train=TrainConfig(dtype="float64")), 308, torch.Generator().manual_seed(0))
    assert {p.dtype for p in double.parameters()} == {torch.float64}
