"""Same identity, same bits; stopped anywhere and resumed, the run is the same; doing nothing is the baseline."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from zslx import RunView
from zslx.intervention.base import Intervention
from zslx.intervention.composed import Methods
from zslx.runs import checkpoints, provenance
from zslx.runs.json_files import read_json, write_json
from zslx.runs.records import read_run
from zslx.testing.subject import WATCHED, Outcome, Stopped, plain, trained
from zslx.training.loop import TrainingRun
from zslx.training.pack import train_pack
from zslx.training.train import train

pytestmark = pytest.mark.usefixtures("cache")

# Everything that draws or remembers at once: dropout of samples, random weights over groups, a moving average.
# The whole state is kept after every step, so that a stopped run goes on where it stopped.
BUSY = {"intervention": "infobatch+random+ema", "infobatch.prune": 0.5, "train.steps": 12} | WATCHED
BUSY |= {"run.resume_seconds": 0}


def test_same_identity_same_bits(tmp_path: Path):
    first, second = (trained(plain(BUSY), tmp_path / name) for name in "ab")
    assert first.difference(second) is None
    assert read_json(tmp_path / "a/manifest.json")["identity"] == read_json(tmp_path / "b/manifest.json")["identity"]


def test_another_seed_is_another_run(tmp_path: Path):
    first, second = (trained(plain(BUSY | {"train.seed": seed}), tmp_path / str(seed)) for seed in (0, 1))
    assert first.difference(second) is not None


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory) -> Outcome:
    return trained(plain(BUSY), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("stops", [(1,), (3, 3, 9), pytest.param(tuple(range(1, 13)), marks=pytest.mark.medium)])
def test_stopped_and_resumed(stops: tuple[int, ...], whole: Outcome, tmp_path: Path):
    assert whole.difference(trained(plain(BUSY), tmp_path, stops)) is None


def test_stopped_without_a_state_to_go_on_from(whole: Outcome, tmp_path: Path):
    """The state is kept at the end alone: the run begins anew, and nothing differs but config.json's own line."""
    resumed = trained(plain(BUSY | {"run.resume_seconds": 1e9}), tmp_path, (5, 11))
    assert whole.difference(resumed) == "config.json"
    assert all(whole.records[name] == resumed.records[name] for name in ("steps.jsonl", "probes.jsonl"))
    assert checkpoints.steps(tmp_path / "checkpoints") == [1, 2, 4, 8, 12]
    assert checkpoints.steps(tmp_path / "resume") == [12]


@pytest.mark.parametrize("pauses", [(5, 11), (4, 4, 12)])
def test_paused_and_gone_on_with(pauses: tuple[int, ...], whole: Outcome, tmp_path: Path):
    """Paused at steps that keep a checkpoint and at others: the run is the one in one go."""
    for until in pauses:
        manifest = train(plain(BUSY | {"run.until": until}), tmp_path)
        assert manifest["status"] == ("paused" if until < 12 else "finished")
        assert manifest["totals"]["steps"] == until and len(read_run(tmp_path).steps["step"]) == until
    resumed = trained(plain(BUSY), tmp_path)
    assert whole.difference(resumed) == ("config.json" if pauses[-1] == 12 else None)


def test_a_run_that_stands_after_the_pause_stays_there(whole: Outcome, tmp_path: Path):
    for until, stands in ((9, 9), (5, 9)):
        manifest = train(plain(BUSY | {"run.until": until}), tmp_path)
        assert (manifest["status"], manifest["totals"]["steps"]) == ("paused", stands)
    assert whole.difference(trained(plain(BUSY), tmp_path)) is None


def test_a_run_of_an_earlier_version_goes_on(whole: Outcome, tmp_path: Path):
    """It kept the whole state among the checkpoints."""
    trained(plain(BUSY), tmp_path)
    _forget_end(tmp_path)
    (tmp_path / "resume/000000012").rename(tmp_path / "resume/gone")
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "resume").rename(tmp_path / "checkpoints")
    seen: list[int] = []
    train(plain(BUSY), tmp_path, progress=lambda step, *_: seen.append(step))
    assert seen == [12] and whole.difference(Outcome.read(tmp_path)) is None


def test_stopped_before_the_first_checkpoint(whole: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Step 0's probe is on disk, nothing else: it is measured again, not twice."""
    true = TrainingRun.advance
    monkeypatch.setattr(TrainingRun, "advance", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(plain(BUSY), tmp_path)
    monkeypatch.setattr(TrainingRun, "advance", true)
    assert whole.difference(trained(plain(BUSY), tmp_path)) is None


def test_finished_run_is_not_trained_again(whole: Outcome):
    before = {p: p.stat().st_mtime_ns for p in whole.folder.rglob("*") if p.name != ".lock"}
    assert train(plain(BUSY), whole.folder)["status"] == "finished"
    assert before == {p: p.stat().st_mtime_ns for p in whole.folder.rglob("*") if p.name != ".lock"}


def test_killed_between_the_last_checkpoint_and_the_manifest(whole: Outcome, tmp_path: Path):
    """Every step is done, only the word "finished" is missing: the next call writes it and trains nothing."""
    trained(plain(BUSY), tmp_path)
    totals = read_json(tmp_path / "manifest.json")["totals"]
    _forget_end(tmp_path)
    again = train(plain(BUSY), tmp_path)
    assert again["status"] == "finished" and again["totals"] == totals
    assert whole.difference(Outcome.read(tmp_path)) is None


def test_truncated_checkpoint_falls_back_to_an_older_one(whole: Outcome, tmp_path: Path):
    out = tmp_path / "run"
    trained(plain(BUSY), out)
    for name, damage in (("tensors.safetensors", _truncate), ("state.json", _flip), ("complete.json", Path.unlink)):
        _forget_end(out)
        newest = out / "resume" / f"{checkpoints.steps(out / 'resume')[-1]:09d}"
        damage(newest / name)
        train(plain(BUSY), out)
        assert whole.difference(Outcome.read(out)) is None, name


def test_all_checkpoints_damaged_starts_afresh(whole: Outcome, tmp_path: Path):
    trained(plain(BUSY), tmp_path)
    _forget_end(tmp_path)
    for step in checkpoints.steps(tmp_path / "resume"):
        _truncate(tmp_path / "resume" / f"{step:09d}" / "tensors.safetensors")
    train(plain(BUSY), tmp_path)
    assert whole.difference(Outcome.read(tmp_path)) is None


def test_records_shorter_than_the_checkpoint(whole: Outcome, tmp_path: Path):
    """Lines lost with the disk: an older checkpoint that they still reach is taken."""
    trained(plain(BUSY), tmp_path)
    _forget_end(tmp_path)
    lines = (tmp_path / "steps.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "steps.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:7])
    train(plain(BUSY), tmp_path)
    assert whole.difference(Outcome.read(tmp_path)) is None


def _on(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, this machine has that processor."""
    monkeypatch.setattr(provenance, "_processor", lambda: machine)


def _earlier(out: Path) -> list[str] | None:
    """The processors in which the run trained before, as its manifest says."""
    earlier = read_json(out / "manifest.json").get("earlier")
    return earlier and [there["hardware"]["processor"] for there in earlier]


def test_a_run_that_goes_on_elsewhere_keeps_where_it_was(whole: Outcome, tmp_path: Path, monkeypatch):
    """Each machine once, the last one left last; a manifest of a run that stayed has no such entry."""
    for machine, until, earlier in (("A", 3, None), ("B", 5, ["A"]), ("A", 7, ["B"]), ("C", 9, ["B", "A"])):
        _on(machine, monkeypatch)
        train(plain(BUSY | {"run.until": until}), tmp_path)
        assert _earlier(tmp_path) == earlier
    manifest = train(plain(BUSY), tmp_path)
    assert manifest["hardware"]["processor"] == "C" and _earlier(tmp_path) == ["B", "A"]
    assert manifest["earlier"][0]["versions"] == manifest["versions"]
    assert "earlier" not in read_json(whole.folder / "manifest.json")


def test_a_run_that_begins_anew_elsewhere_is_wholly_of_there(tmp_path: Path, monkeypatch):
    """What trained before it left no state to go on from."""

    def stop(step: int, *_: object) -> None:
        if step == 3:
            raise Stopped

    _on("A", monkeypatch)
    with pytest.raises(Stopped):
        train(plain({}), tmp_path, progress=stop)
    _on("B", monkeypatch)
    assert train(plain({}), tmp_path)["hardware"]["processor"] == "B" and _earlier(tmp_path) is None


def test_the_runs_of_a_pack_keep_where_they_were(tmp_path: Path, monkeypatch):
    outs = [tmp_path / name for name in "ab"]
    for machine, until in (("A", 3), ("B", 0)):
        _on(machine, monkeypatch)
        train_pack([plain({"train.seed": seed, "run.until": until}) for seed in (0, 1)], outs)
    assert [_earlier(out) for out in outs] == [["A"], ["A"]]


def _forget_end(out: Path) -> None:
    """As if the run had been killed after its last checkpoint."""
    manifest = read_json(out / "manifest.json")
    write_json(out / "manifest.json", manifest | {"status": "running"})


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


# ------------------------------------------------------------------------------------ doing nothing


@dataclass(frozen=True)
class Idle(Intervention):
    """Overrides every hook that can say "as it was", and says so."""

    name = "idle"

    def mixture(self, run, state):
        return None

    def sequence(self, run, state):
        return None

    def token_weights(self, run, view, state):
        return torch.ones_like(view.losses)

    def windows(self, run, walk, state):
        return walk.windows

    def lr_factor(self, run, state):
        return 1.0

    def optimizer(self, run, groups, state):
        from zslx.model.optimization import adamw

        return adamw(groups, run.config.optim)

    def average(self, run, state):
        return run.parameters

    def observe(self, run, stats, state):
        state["seen"] = run.step


def test_an_intervention_that_does_nothing_is_bitwise_the_baseline(tmp_path: Path):
    config, folder = plain(WATCHED), tmp_path / "idle"
    folder.mkdir()
    write_json(folder / "config.json", config.to_dict())
    run = TrainingRun(config, folder, [Idle()])
    run.loop(None)
    baseline = trained(config, tmp_path / "baseline")
    state = checkpoints.load(folder / "resume", config.train.steps)
    assert state["interventions"]["idle"]["seen"] == config.train.steps  # it was asked
    tensors: dict = {}
    packed = checkpoints.pack({k: v for k, v in state.items() if k != "interventions"}, tensors)
    assert packed == {k: v for k, v in baseline.state.items() if k != "interventions"}
    for path, tensor in tensors.items():
        assert torch.equal(tensor, baseline.tensors[path]), path
    assert (folder / "steps.jsonl").read_bytes() == baseline.records["steps.jsonl"]


def test_none_calls_no_hook():
    methods = Methods([], RunView(config=plain({"intervention": "none"})))
    assert not any(methods.hooks.values()) and not methods.surgery and not methods.needs


def test_cosine_is_the_schedule_cosine(tmp_path: Path):
    """The control equals `optim.schedule=cosine` bitwise, whatever schedule the run names."""
    longer = {"train.steps": 10, "optim.warmup": 3}
    control = trained(plain(longer | {"intervention": "cosine", "cosine.final": 0.2}), tmp_path / "control")
    schedule = trained(plain(longer | {"optim.schedule": "cosine", "optim.final": 0.2}), tmp_path / "schedule")
    assert control.difference(schedule, weights_only=True) is None
    assert control.records["steps.jsonl"] == schedule.records["steps.jsonl"]
    assert control.records["probes.jsonl"] == schedule.records["probes.jsonl"]
    rates = read_run(control.folder).steps["lr"]
    assert rates[-1] == pytest.approx(0.2 * config_lr(longer)) and rates[2] == pytest.approx(config_lr(longer))


def config_lr(values: dict) -> float:
    return plain(values).optim.lr


def test_ema_without_decay_ships_the_trained_weights(tmp_path: Path):
    ema = trained(plain({"intervention": "ema", "ema.decay": 0.0}), tmp_path / "ema")
    baseline = trained(plain({}), tmp_path / "baseline")
    assert ema.difference(baseline, weights_only=True) is None
    for mine, plain_line in zip(read_run(ema.folder).probes, read_run(baseline.folder).probes, strict=True):
        assert mine["heldout_loss"] == plain_line["heldout_loss"] == mine["heldout_loss_trained"]


def test_ema_ships_the_average(tmp_path: Path):
    """Its held-out loss is that of the average (with decay, not of the trained weights); training is untouched."""
    ema = trained(plain({"intervention": "ema", "ema.decay": 0.9}), tmp_path / "ema")
    baseline = trained(plain({}), tmp_path / "baseline")
    assert ema.difference(baseline, weights_only=True) is None
    last = read_run(ema.folder).probes[-1]
    assert last["heldout_loss_trained"] == read_run(baseline.folder).probes[-1]["heldout_loss"]
    assert last["heldout_loss"] != last["heldout_loss_trained"]


# ------------------------------------------------------------------------------------ one folder, one run


def test_folder_of_another_run_is_refused(tmp_path: Path):
    trained(plain({}), tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(optim\.lr\)"):
        train(plain({"optim.lr": 1e-3}), tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(intervention, settings\)|other settings \(intervention\)"):
        train(plain({"intervention": "focal"}), tmp_path)


def test_only_one_process_trains_a_run(tmp_path: Path):
    def inside(step: int, steps: int, loss: float) -> None:
        with pytest.raises(ValueError, match="another process is training"):
            train(plain({}), tmp_path)

    train(plain({}), tmp_path, progress=inside)


def test_settings_of_the_run_do_not_bind_the_resume(tmp_path: Path):
    """`run.resume_seconds` may change between two starts of one run."""

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train(plain({}), tmp_path, progress=stop)
    assert train(plain({"run.resume_seconds": 0}), tmp_path)["status"] == "finished"


# ------------------------------------------------------------------------------------ a finished run goes on


def test_a_finished_run_goes_on_for_more_steps(tmp_path: Path):
    """The losses, the weights and the state are those of the longer run; the probes keep the shorter one's points."""
    short, long = plain(WATCHED | {"train.steps": 11}), plain(WATCHED | {"train.steps": 20})
    whole = trained(long, tmp_path / "whole")
    train(short, tmp_path / "on")
    manifest = train(long, tmp_path / "on")
    assert (manifest["status"], manifest["continued_from"], manifest["totals"]["steps"]) == ("finished", 11, 20)
    went_on = trained(long, tmp_path / "on")  # finished: nothing to do
    assert whole.difference(went_on, weights_only=True) is None
    assert whole.records["steps.jsonl"] == went_on.records["steps.jsonl"]
    lines = {line["step"]: line for line in read_run(tmp_path / "on").probes}
    wanted = {line["step"]: line for line in read_run(tmp_path / "whole").probes}
    assert {step for step in lines if step > 11} == {step for step in wanted if step > 11}
    assert all(lines[step] == wanted[step] for step in lines.keys() & wanted.keys())


def test_a_run_that_went_on_is_resumed(tmp_path: Path):
    def stop(step: int, steps: int, loss: float) -> None:
        if step == 18:
            raise Stopped

    short, long = (plain({"train.steps": steps, "run.resume_seconds": 0}) for steps in (11, 20))
    whole = trained(long, tmp_path / "whole")
    train(short, tmp_path / "on")
    with pytest.raises(Stopped):
        train(long, tmp_path / "on", progress=stop)
    seen: list[int] = []
    train(long, tmp_path / "on", progress=lambda step, *_: seen.append(step))
    assert seen[0] == 18 and read_json(tmp_path / "on/manifest.json")["continued_from"] == 11
    assert whole.records["steps.jsonl"] == (tmp_path / "on/steps.jsonl").read_bytes()


def test_a_run_that_was_killed_as_it_went_on_goes_on(tmp_path: Path, monkeypatch):
    """The process dies when one of the folder's two files is that of the longer run."""
    short, long = (plain({"train.steps": steps}) for steps in (11, 20))
    whole = trained(long, tmp_path / "whole")
    train(short, tmp_path / "on")
    written: list[str] = []

    def killed(path: Path, value: object) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path.name)
        write_json(path, value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("zslx.training.train.write_json", killed)
        train(long, tmp_path / "on")
    seen: list[int] = []
    manifest = train(long, tmp_path / "on", progress=lambda step, *_: seen.append(step))
    assert (manifest["status"], manifest["continued_from"], seen[0]) == ("finished", 11, 12)
    assert whole.records["steps.jsonl"] == (tmp_path / "on/steps.jsonl").read_bytes()


def test_a_run_of_another_text_does_not_go_on(tmp_path: Path):
    train(plain({"train.steps": 4}), tmp_path)
    manifest = read_json(tmp_path / "manifest.json")
    manifest["ingredients"]["corpus"] = "another"
    write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(ValueError, match="another text, plugin source, version or machine"):
        train(plain({"train.steps": 8}), tmp_path)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"optim.schedule": "cosine"}, "optim.schedule=cosine depends on the number of steps"),
        ({"intervention": "focal"}, "intervention=focal sees the number of steps"),
    ],
)
def test_a_run_that_would_differ_from_its_first_step_on_does_not_go_on(settings, reason, tmp_path: Path):
    train(plain(settings | {"train.steps": 4}), tmp_path)
    with pytest.raises(ValueError, match=f"holds a run of 4 steps, and {reason}: choose another folder"):
        train(plain(settings | {"train.steps": 8}), tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(train\.steps\)"):
        train(plain(settings | {"train.steps": 2}), tmp_path)
