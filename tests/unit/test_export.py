"""Native models exported to transformers: read back with its own loader, they give the same logits."""

import json

import pytest
import torch

from zslx.commands.cli import main
from zslx.config.groups import ModelConfig
from zslx.model.export import as_hugging_face
from zslx.model.transformer import Transformer
from zslx.runs.load import load_run_model
from zslx.training.train import train

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.medium

GPT2 = {"positions": "learned", "max_positions": 11, "norm": "layernorm", "gated_mlp": False, "mlp_ratio": 4.0}
MODELS = {
    "the paper's": {},
    "untied, gains, biases": {"tied": False, "norm_gain": True, "bias": True, "mlp_ratio": 2.7},
    "nanoGPT's": GPT2 | {"norm_gain": True, "init": "normal"},
    "GPT-2's": GPT2 | {"norm_gain": True, "bias": True, "init": "normal"},
    "GPT-2's, untied, no gains": GPT2 | {"tied": False},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_logits_are_those_of_the_native_model(name, tmp_path):
    config = ModelConfig(d_model=24, n_layers=3, n_heads=2, vocab_size=37, **MODELS[name])
    generator = torch.Generator().manual_seed(0)
    model = Transformer(config, generator)
    with torch.no_grad():  # gains and biases away from their start, so that leaving one out would show
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    as_hugging_face(model, 11, end_of_text=3).save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert loaded.config.eos_token_id == 3
    tokens = torch.randint(37, (3, 11), generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens), rtol=1e-5, atol=1e-5)
    counted = sum(p.numel() for p in loaded.parameters())
    extra = sum(p.numel() for p in model.parameters()) - counted
    assert extra == 0 or not (config.norm_gain and config.bias), "ones and zeros stand for what the model has not"


def test_a_model_that_no_class_computes_is_refused_by_its_settings():
    model = Transformer(ModelConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=9, norm="layernorm"))
    with pytest.raises(ValueError, match=r"model.positions=rope, model.norm=layernorm, model.gated_mlp=True: no class"):
        as_hugging_face(model, 8)


@pytest.mark.parametrize("spec", ["none", "ema"])
def test_a_run_is_exported_with_its_tokenizer(spec, tiny, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    train(tiny(intervention=spec), run)
    assert main(["export", str(run), str(out)]) == 0
    assert "LlamaForCausalLM, step 6" in capsys.readouterr().out
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ids = tokenizer("def wrap(text, width=70):", return_tensors="pt")["input_ids"]
    own, trained = load_run_model(run), loaded(ids).logits
    assert tokenizer.decode(ids[0]) == "def wrap(text, width=70):"
    assert torch.allclose(own(ids), trained, rtol=1e-5, atol=1e-5) == (spec == "none")  # ema ships an average
    if spec == "ema":
        probe = json.loads((run / "probes.jsonl").read_text().splitlines()[-1])
        assert probe["heldout_loss"] != probe["heldout_loss_trained"]

    assert main(["export", str(run), str(out)]) == 2
    assert "exists; give a folder that does not" in capsys.readouterr().err
    assert main(["export", str(run), str(tmp_path / "other"), "--step", "3"]) == 2
    assert "no checkpoint at step 3; there are 1, 2, 4, 6" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
