"""Runs of models of transformers: seeds, resume, folders with and without weights, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from zslx.commands.cli import main
from zslx.config.run_config import Config, parse_overrides
from zslx.config.sizes import model_preset
from zslx.gradients import sequence_stats
from zslx.model.losses import token_losses
from zslx.model.transformer import build_model
from zslx.runs.identity import identity, ingredients
from zslx.runs.load import load_run_model
from zslx.testing.subject import WATCHED, global_draws_watched, trained
from zslx.text.loader import Batch
from zslx.text.token_cache import prepare
from zslx.training.pack_shape import check_shapes
from zslx.training.train import train

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.medium

MAMBA = {"model": "hf:mamba", "model.n_heads": 1}


def built(*items: str, vocabulary: int = 31, seed: int = 0):
    heads = () if "model=hf:mamba" in items else ("model.n_heads=2",)
    config = parse_overrides(Config(), (*items, "model.d_model=8", "model.n_layers=2", "data.seq_len=9", *heads))
    return build_model(config, vocabulary, torch.Generator().manual_seed(seed))


def batch(context: torch.Tensor | None = None, vocabulary: int = 31) -> Batch:
    ids = torch.randint(vocabulary, (3, 8), generator=torch.Generator().manual_seed(5))
    return Batch(tokens=ids[:, :-1], targets=ids[:, 1:], domains=ids[:, 0], context=context)


@pytest.fixture
def folder(tiny, tmp_path: Path) -> Path:
    """A checkpoint folder of GPT-NeoX, of the text's vocabulary."""
    corpus = prepare(tiny().data.path, tiny().data.vocab_size)
    config = transformers.GPTNeoXConfig(
        vocab_size=corpus.vocab_size, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=0, hidden_dropout=0.5,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "checkpoint")
    corpus.tokenizer.save(str(tmp_path / "checkpoint" / "tokenizer.json"))
    return tmp_path / "checkpoint"


def of(tiny, folder: Path, **values):
    """The tiny run whose model is that of the folder."""
    sizes = {f"model.{key}": getattr(model_preset(f"hf:{folder}"), key) for key in ("d_model", "n_layers", "n_heads")}
    return tiny(**{"model": f"hf:{folder}"} | sizes | values)


def test_weights_come_from_the_runs_generator_alone():
    with global_draws_watched() as drawn:
        first, again, other = built("model=hf:gpt2"), built("model=hf:gpt2"), built("model=hf:gpt2", seed=1)
    assert not drawn
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs) and not all(torch.equal(a, c) for a, _, c in pairs)
    assert not any(m.training for m in first.train().modules()), "dropout would draw from the global generator"


@pytest.mark.parametrize("model", [{"model": "hf:gpt2"}, MAMBA], ids=lambda m: m["model"])
def test_a_run_resumes_bit_for_bit_with_every_instrument(model, tiny, tmp_path):
    config = tiny(**model | WATCHED | {"instruments.probes": True})
    whole, parts = trained(config, tmp_path / "whole"), trained(config, tmp_path / "parts", stops=(2, 5))
    assert whole.difference(parts) is None
    probe = json.loads(whole.records["probes.jsonl"].splitlines()[-1])
    assert {"dt1_heldout", "grad_sequence", "grad_token", "first_order", "decomposition"} <= probe.keys()
    loaded = load_run_model(tmp_path / "whole")
    counted = json.loads((tmp_path / "whole" / "manifest.json").read_text())["parameters"]
    assert (
        counted["total"]
        == sum(p.numel() for p in loaded.parameters())
        == counted["embedding"] + counted["non_embedding"]
    )


@pytest.mark.parametrize("spec", ["pcgrad+cosine", "muon"])
def test_methods_act_on_them(spec, tiny, tmp_path):
    assert train(tiny(model="hf:llama", intervention=spec), tmp_path)["status"] == "finished"


def test_a_run_begins_with_the_weights_of_its_folder(folder, tiny, tmp_path):
    config = of(tiny, folder)
    assert config.model.pretrained and config.model.vocab_size == prepare(config.data.path, 308).vocab_size
    train(config, tmp_path / "run")
    start = json.loads((tmp_path / "run" / "probes.jsonl").read_text().splitlines()[0])
    from zslx.text.loader import heldout

    fixed = heldout(prepare(config.data.path, 308), sequences=4, seq_len=8)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.cat([fixed.tokens, fixed.targets[:, -1:]], 1)
    logits = theirs(ids[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert start["step"] == 0 and start["heldout_loss"] == pytest.approx(loss.item(), rel=1e-5)

    # The run folder says by itself what it holds: neither weights nor config.json of the folder are needed any more.
    moved = folder.rename(tmp_path / "moved")
    assert load_run_model(tmp_path / "run").inner.config.hidden_dropout == 0.5
    with pytest.raises(ValueError, match="the weights that the run begins with are not there"):
        train(config, tmp_path / "run")
    assert identity(of(tiny, moved)) == json.loads((tmp_path / "run" / "manifest.json").read_text())["identity"]


def test_identity_covers_architecture_weights_and_version(folder, tiny):
    first, fresh = identity(of(tiny, folder)), identity(of(tiny, folder, **{"model.pretrained": False}))
    assert {"transformers", "weights"} <= ingredients(of(tiny, folder)).keys()
    assert "transformers" not in ingredients(tiny()) and "hf" not in ingredients(tiny())["config"]["model"]
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(json.dumps(json.loads(text) | {"rotary_pct": 0.5}))
    third = identity(of(tiny, folder))
    (folder / "config.json").write_text(text)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(folder)
    assert len({first, fresh, third, identity(of(tiny, folder))}) == 4


def test_a_limited_context_is_that_of_a_shorter_sequence():
    model, seen = built("model=hf:llama"), batch()
    context = torch.zeros_like(seen.tokens)
    context[:, 4:] = 4
    cut = token_losses(model, batch(context))
    whole = token_losses(model, seen)
    alone = token_losses(model, Batch(tokens=seen.tokens[:, 4:], targets=seen.targets[:, 4:], domains=seen.domains))
    torch.testing.assert_close(cut[:, :4], whole[:, :4])
    torch.testing.assert_close(cut[:, 4:], alone)  # rotary positions: only distances count
    assert not torch.allclose(cut[:, 4:], whole[:, 4:])
    mamba = built("model=hf:mamba")
    with pytest.raises(ValueError, match="hf:mamba: it has no attention that a mask could limit"):
        token_losses(mamba, batch(context))


@pytest.mark.parametrize(
    ("kind", "option"),
    [("gpt_neox", "train.loss_chunk=3"), ("gpt2", "train.checkpointing=true"), ("mamba", "train.checkpointing=true")],
)
def test_what_saves_memory_changes_no_gradient(kind, option):
    found = []
    for more in ((), (option,)):
        model = built(f"model=hf:{kind}", *more)
        token_losses(model, batch()).mean().backward()
        found.append([p.grad for p in model.parameters()])
        stats = sequence_stats(model, token_losses, batch(), want=("sum",))
        found.append([stats.sum[name] for name, _ in model.named_parameters()])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_a_pack_of_them_is_refused(tiny):
    with pytest.raises(ValueError, match="a pack needs the native model: a run of model=hf:gpt2 trains by itself"):
        check_shapes([tiny(model="hf:gpt2")] * 2)


def test_a_model_that_grows_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="hf:gpt2: a model that grows has to be the native one"):
        train(tiny(model="hf:gpt2", intervention="depth_warmup", **{"model.n_layers": 2}), tmp_path)


REFUSED = [
    (["model=hf:gpt3"], r"model=hf:gpt3: neither a folder nor .* did you mean gptj, gpt2"),
    (["model=hf:EleutherAI/pythia-14m"], r"A model of the hub has to be in a folder: hf download NAME"),
    (["model=hf:t5"], r"neither a folder nor a causal language model"),
    (["model=hf:llama", "model.norm=layernorm"], r"model.norm=layernorm: no setting of model=hf:llama; a folder with"),
    (
        ["model=hf:llama", "model.pretrained=true"],
        r"model=hf:llama names no folder with weights",
    ),
    (["model.pretrained=true"], r"belong to model.hf: give model=hf:FOLDER"),
    (["model=hf:llama", "model.max_positions=8"], r"data.seq_len=64: model=hf:llama has 8 positions \(model.max_pos"),
    (["model=hf:llama", "model.d_model=8", "model.n_heads=3"], r"transformers refuses|n_heads"),
    (["model=hf:mamba", "model.n_heads=2"], r"model.n_heads=2: of model=hf:mamba it is 1 in every mamba"),
    (["model=hf:llama", "model.vocab_size=9"], r"has 9 entries in its vocabulary and the text's tokenizer 31"),
    (["model=hf:bert", "model.n_heads=2", "model.d_model=8"], r"hf:bert: the logits of a position depend on later"),
]


@pytest.mark.parametrize(("items", "message"), REFUSED, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_what_cannot_be_is_refused_by_name(items, message):
    with pytest.raises(ValueError, match=message):
        build_model(parse_overrides(Config(), items), 31, torch.Generator().manual_seed(0))


def damaged(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif how == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "other shape":
        config.write_text(config.read_text().replace('"intermediate_size": 24', '"intermediate_size": 20'))
    elif how == "layer missing":
        config.write_text(config.read_text().replace('"num_hidden_layers": 1', '"num_hidden_layers": 2'))
    elif how == "not JSON":
        config.write_text("{")
    elif how == "code of its own":
        values = json.loads(config.read_text()) | {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
        config.write_text(json.dumps(values))
        (folder / "evil.py").write_text("raise SystemExit('ran')")
    elif how == "no config":
        config.unlink()
    elif how == "other tokens":
        values = json.loads((folder / "tokenizer.json").read_text())
        values["model"]["vocab"] = dict(
            zip(values["model"]["vocab"], reversed(values["model"]["vocab"].values()), strict=True)
        )
        (folder / "tokenizer.json").write_text(json.dumps(values))
    elif how == "broken tokenizer":
        (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", r"checkpoint: its weights cannot be read"),
        ("pickle", r"pytorch_model.bin: weights are read from \*.safetensors alone"),
        ("other shape", r"checkpoint: its weights (cannot be read|do not fit its config.json)"),
        ("layer missing", r"its weights do not fit its config.json: missing gpt_neox.layers.1"),
        ("not JSON", r"config.json: not JSON"),
        ("code of its own", r"model_type='evil' is no causal language model that transformers knows"),
        ("no config", r"there is no config.json in the folder"),
        ("other tokens", r"its weights were trained on the tokens of .*tokenizer.json, and the text has others"),
        ("broken tokenizer", r"tokenizer.json: cannot be read as a tokenizer"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(how, message, folder, tiny, tmp_path):
    damaged(folder, how)
    with pytest.raises(ValueError, match=message):
        train(of(tiny, folder), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_size_of_a_folder_cannot_be_changed(folder, tiny, tmp_path):
    with pytest.raises(ValueError, match=r"model.d_model=32: of model=hf:.* it is fixed by its config.json at 16"):
        train(of(tiny, folder, **{"model.d_model": 32}), tmp_path / "run")


def test_a_run_of_a_folder_is_exported_as_it_came(folder, tiny, tmp_path, capsys):
    train(of(tiny, folder), tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for (name, a), b in zip(loaded.named_parameters(), load_run_model(tmp_path / "run").parameters(), strict=True):
        assert torch.equal(a, b), name
