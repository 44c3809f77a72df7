"""One method of each family that acts on data or optimizer, against its closed form or the library's own."""

from __future__ import annotations

import pytest
import torch

from zslx import RunView, load_intervention
from zslx.gradients.parameter_roles import Role


def test_temperature_mixes_by_powers_of_the_sizes():
    run = RunView(domains=("a", "b", "c"), domain_tokens=(100, 400, 1600))
    share = {tau: load_intervention("temperature", tau=tau).mixture(run, {}) for tau in (1.0, 2.0, 100.0)}
    assert share[1.0] == pytest.approx([1 / 21, 4 / 21, 16 / 21])
    assert share[2.0] == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert share[100.0] == pytest.approx([1 / 3] * 3, abs=0.01)


def test_unimax_gives_equal_shares_that_the_text_can_fill():
    run = RunView(domains=("a", "b", "c"), domain_tokens=(400, 100, 10_000), steps=9, batch_size=10, seq_len=20)
    shares = {epochs: load_intervention("unimax", epochs=epochs).mixture(run, {}) for epochs in (1.0, 2.0, 1000.0)}
    assert shares[1.0] == pytest.approx([400 / 1800, 100 / 1800, 1300 / 1800])
    assert shares[2.0] == pytest.approx([800 / 1800, 200 / 1800, 800 / 1800])  # a and c share what b leaves
    assert shares[1000.0] == pytest.approx([1 / 3] * 3)
    # Too little text for the run: everything is read `epochs` times.
    run.steps = 10**6
    assert load_intervention("unimax").mixture(run, {}) == pytest.approx([400 / 10500, 100 / 10500, 10_000 / 10500])


def test_the_length_grows_linearly_and_is_full_in_the_end():
    method = load_intervention("length_warmup", start=0.125, duration=0.5)
    lengths = [method.sequence(RunView(step=t, steps=100, seq_len=64), {}) for t in (1, 26, 51, 100)]
    assert lengths == [8, 36, 64, 64]
    assert method.sequence(RunView(step=1, steps=100, seq_len=4), {}) == 1
    assert load_intervention("length_warmup", duration=0.0).sequence(RunView(step=1, seq_len=64), {}) == 64


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest():
    generator = torch.Generator().manual_seed(0)
    matrix, table, gain = (torch.nn.Parameter(torch.randn(s, generator=generator)) for s in ((4, 6), (9, 4), (4,)))
    roles = dict.fromkeys("en", Role(group="other", layer=None, body=False))
    roles["m"] = Role(group="attention", layer=0, body=True)
    run = RunView(parameters={"m": matrix, "e": table, "n": gain}, roles=roles)
    groups = [{"params": [matrix, table], "weight_decay": 0.1}, {"params": [gain], "weight_decay": 0.0}]
    adamw, muon = load_intervention("muon", rate=2.0).optimizer(run, groups, {})
    assert [p for g in muon.param_groups for p in g["params"]] == [matrix]
    assert [len(g["params"]) for g in adamw.param_groups] == [1, 1]
    twin = torch.nn.Parameter(matrix.detach().clone())
    lr, decay = run.config.optim.lr, run.config.optim.weight_decay
    assert adamw.param_groups[0]["lr"] == lr  # a tuning moves this, and both optimizers with it
    theirs = torch.optim.Muon([twin], lr=2 * lr, momentum=0.95, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    for p in (matrix, twin):
        p.grad = torch.ones_like(p).cumsum(1)
    muon.step()
    theirs.step()
    assert torch.equal(matrix, twin)
