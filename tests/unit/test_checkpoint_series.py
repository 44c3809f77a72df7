"""Series of checkpoints as the hub lays them out: what is measured, what is kept, and that a killed probe goes on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from zslx.commands.cli import main
from zslx.instruments.loss_interference import interference
from zslx.probing.checkpoint_series import SeriesProbe, probe_text
from zslx.probing.probe import ProbeSettings
from zslx.testing.subject import text
from zslx.text.token_cache import prepare

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.medium, pytest.mark.usefixtures("cache")]

SETTINGS = ProbeSettings(n=8, sequences=4, seq_len=8)
OPTIONS = ["--n", "8", "--sequences", "4", "--seq-len", "8"]
PYTHIA = [f"step{s}" for s in (0, 1, 2)]


def series(folder: Path, kind: str, names: list[str], width: int = 8) -> Path:
    """Checkpoints whose weights move by their step, in bfloat16 as the hub has them, and the text's tokenizer."""
    tokenizer = prepare(str(text()), 308).tokenizer
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    if kind != "gpt2":
        sizes["intermediate_size"] = 2 * width
    config = transformers.AutoConfig.for_model(
        kind, hidden_size=width, vocab_size=320, bos_token_id=0, eos_token_id=0, pad_token_id=None, **sizes
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    for name in names:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=generator).to(p))
        model.save_pretrained(folder / name)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "zslx-probe" / "probe.jsonl").read_text().splitlines()]


def their_losses(place: Path) -> torch.Tensor:
    """(S, T) of transformers' own forward, in float32."""
    tokenizer = prepare(str(text()), 308).tokenizer
    batch = probe_text(str(text()), tokenizer, 4, 8).batch
    model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(batch.tokens).logits
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none").view(4, 8)


def test_losses_and_their_changes_are_those_of_transformers(tmp_path, capsys):
    folder = series(tmp_path / "pythia", "gpt_neox", PYTHIA)
    assert main(["probe", str(folder), "--text", str(text()), *OPTIONS, "--no-figures"]) == 0
    said = capsys.readouterr()
    assert "pythia: 3 checkpoints, 0.0 MiB on disk, about 0." in said.err
    found = {r["step"]: r for r in records(folder)}
    assert list(found) == [0, 1, 2]
    losses = {s: their_losses(folder / f"step{s}") for s in found}
    for step, record in found.items():
        assert record["heldout_loss"] == pytest.approx(losses[step].double().mean().item(), rel=1e-6)
        parts = record["decomposition"]
        assert parts["ee"] + parts["sa"] - parts["conf"] == pytest.approx(record["heldout_loss"], rel=1e-6)
        assert 0 < record["grad_sequence"]["ratio"] < 1 and 0 < record["grad_token"]["ratio"] < 1
        kept = np.load(next((folder / "zslx-probe" / "losses").glob(f"*-{step:09d}.npy")), mmap_mode="r")
        assert kept.dtype == np.float32
        np.testing.assert_allclose(kept, losses[step], rtol=1e-5, atol=1e-6)
    assert "dtt" not in found[0] and "dtt" not in found[1]
    expected = interference(losses[2] - losses[1])
    assert found[2]["dtt"]["from"] == 1
    assert found[2]["dtt"]["D"] == pytest.approx(expected["D"], abs=1e-4)
    assert found[2]["dtt"]["M"] == pytest.approx(expected["M"], rel=1e-4)
    assert found[1]["parameters"] == 8 * 8 * 4 + 2 * 8 * 16 + 8 * 3 + 8 + 16 + 8 + 6 * 8


@pytest.mark.parametrize(
    ("kind", "names", "tokens"),
    [
        ("olmo2", ["stage1-step1000-tokens5B", "stage1-step2000-tokens9B"], 9 * 10**9),
        pytest.param("llama", ["step1000-tokens4M", "step2000-tokens8M"], 8 * 10**6, marks=pytest.mark.slow),
        ("gpt2", ["step500", "step1000"], None),
    ],
)
def test_other_classes_and_names(kind, names, tokens, tmp_path):
    folder = series(tmp_path / kind, kind, names)
    probe = SeriesProbe(folder, SETTINGS, str(text()))
    found = probe.measure(probe.steps(), lambda share, what: None)
    last = found[max(found)]
    assert last.get("tokens") == tokens and last["checkpoint"] == names[-1] and last["dtt"]["from"] == min(found)
    assert last["heldout_loss"] == pytest.approx(their_losses(folder / names[-1]).double().mean().item(), rel=1e-6)


def test_a_killed_probe_goes_on_and_a_changed_checkpoint_is_measured_again(tmp_path, monkeypatch):
    folder = series(tmp_path / "pythia", "gpt_neox", PYTHIA)
    probe = SeriesProbe(folder, SETTINGS, str(text()))
    measured: list[int] = []
    real = SeriesProbe._at

    def counted(self, step, at):
        if measured == [0, 1]:
            measured.append(-1)
            raise KeyboardInterrupt
        measured.append(step)
        return real(self, step, at)

    monkeypatch.setattr(SeriesProbe, "_at", counted)
    with pytest.raises(KeyboardInterrupt):
        probe.measure(probe.steps(), lambda share, what: None)
    with open(folder / "zslx-probe" / "probe.jsonl", "a") as file:
        file.write('{"step": 2, "half a li')
    found = probe.measure(probe.steps(), lambda share, what: None)
    assert measured == [0, 1, -1, 2] and sorted(found) == [0, 1, 2]
    whole = SeriesProbe(series(tmp_path / "other", "gpt_neox", PYTHIA), SETTINGS, str(text()))
    again = whole.measure(whole.steps(), lambda share, what: None)
    assert {s: r | {"weights": ""} for s, r in found.items()} == {s: r | {"weights": ""} for s, r in again.items()}

    measured.clear()
    series(folder / "new", "gpt_neox", ["step2"])
    (folder / "new" / "step2" / "model.safetensors").rename(folder / "step2" / "model.safetensors")
    probe.measure(probe.steps(), lambda share, what: None)
    assert measured == [2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no text", "give --text PATH, the text on which the checkpoints are measured"),
        ("short text", r"domain .* has \d+ tokens, and 2 sequences of 9999 need 20000; allowed are fewer or shorter"),
        ("cut", r"step1: its weights cannot be read"),
        ("no tokenizer", r"no tokenizer.json in it or in one of its checkpoints"),
        ("twice", r"main-step1 and step1 are both of step 1"),
        ("no disk", r"it takes 256 bytes of disk and there are 10"),
        ("nan", r"step1: its losses are not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(damage, message, tmp_path, monkeypatch):
    folder, where, settings = series(tmp_path / "pythia", "gpt_neox", ["step0", "step1"]), str(text()), SETTINGS
    weights = folder / "step1" / "model.safetensors"
    if damage == "no text":
        where = ""
    elif damage == "short text":
        settings = ProbeSettings(n=8, sequences=4, seq_len=9999)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif damage == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif damage == "twice":
        (folder / "step1").rename(folder / "main-step1")
        series(folder, "gpt_neox", ["step1"])
    elif damage == "no disk":
        usage = type("Usage", (), {"free": 10})
        monkeypatch.setattr("zslx.probing.checkpoint_series.shutil.disk_usage", lambda path: usage)
    elif damage == "nan":
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "step1")
        with torch.no_grad():
            model.lm_head.weight[0, 0] = float("nan")
        model.save_pretrained(folder / "step1")
    with pytest.raises(ValueError, match=message):
        probe = SeriesProbe(folder, settings, where)
        probe.before(probe.steps(), lambda line: None)
        probe.measure(probe.steps(), lambda share, what: None)


WINDOWS = 640


def trained_series(folder: Path, width: int, names: list[str], rate: float = 3e-3) -> Path:
    """A GPT-NeoX model trained on the text with AdamW, saved at the steps that `names` ask for."""
    tokenizer = prepare(str(text()), 308).tokenizer
    windows = probe_text(str(text()), tokenizer, WINDOWS, 32).batch  # in the order of domains, what is probed first
    probed = {row.numpy().tobytes() for row in probe_text(str(text()), tokenizer, 16, 32).batch.tokens}
    kept = torch.tensor([row.numpy().tobytes() not in probed for row in windows.tokens])
    tokens, targets = windows.tokens[kept], windows.targets[kept]
    assert len(tokens) == WINDOWS - 16
    config = transformers.AutoConfig.for_model(
        "gpt_neox", hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=320, max_position_embeddings=32, bos_token_id=0, eos_token_id=0, pad_token_id=None, use_cache=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    chosen = torch.Generator().manual_seed(0)
    for step in range(max(int(name.removeprefix("step")) for name in names) + 1):
        if f"step{step}" in names:
            model.save_pretrained(folder / f"step{step}")
        rows = torch.randint(len(tokens), (8,), generator=chosen)
        logits = model(tokens[rows]).logits
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), targets[rows].flatten()).backward()
        optimizer.step()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.slow
def test_three_sizes_of_twelve_checkpoints_end_to_end(tmp_path, capsys):
    """Losses fall as they train, more in larger models; figures and the scaling law come out of one command."""
    steps = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
    names = [f"step{s}" for s in steps]
    folders = [str(trained_series(tmp_path / f"pythia-{width}", width, names)) for width in (16, 32, 64)]
    options = ["--n", "32", "--sequences", "16", "--seq-len", "32", "--together", str(tmp_path / "all")]
    assert main(["probe", *folders, "--text", str(text()), *options]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 3 * 14 + 7 and "3 models of 6,592 to 100,096 parameters" in out
    last = []
    for folder in folders:
        found = {r["step"]: r for r in records(Path(folder))}
        assert len(found) == 12 and found[1000]["dtt"]["from"] == 512
        assert found[1000]["heldout_loss"] < found[64]["heldout_loss"] < found[0]["heldout_loss"] - 0.5
        assert found[1000]["dtt"]["D"] > found[4]["dtt"]["D"]
        assert (Path(folder) / "zslx-probe" / "figures" / "interference.png").exists()
        last.append(found[1000]["heldout_loss"])
    assert last == sorted(last, reverse=True)
    drawn = {p.name for p in (tmp_path / "all").iterdir()}
    assert drawn >= {"interference.png", "decomposition.png", "plane.svg", "scaling.png"}
    law = json.loads((tmp_path / "all" / "scaling.json").read_text())
    assert [m["name"] for m in law["models"]] == ["pythia-16", "pythia-32", "pythia-64"]
    assert law["trends"]["ce"]["alpha"] < 0 and law["trends"]["ce"]["interval"][1] > law["trends"]["ce"]["alpha"]
    assert set(law["steps"]) == {str(s) for s in steps[1:]}
