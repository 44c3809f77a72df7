"""The command line: one line for a user's error, quick help, no half-written output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from zslx.commands import cli
from zslx.commands.cli import COMMANDS, main
from zslx.places import ROOT


@pytest.fixture
def command(cache: Path, plugins: Path, capsys):
    """Runs a command in an empty working directory: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def test_help_needs_no_torch_and_names_every_command():
    code = "import sys; from zslx.commands import cli; cli.main([]); "
    code += "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_version(command):
    import zslx

    assert command("--version") == (0, f"{zslx.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "smoke"], "say where the run goes: --out DIR"),
        (["train", "smok", "--out", "x"], "unknown preset 'smok'; did you mean smoke"),
        (["train", "smoke", "optim.lrr=1", "--out", "x"], "unknown key 'optim.lrr'"),
        (["train", "smoke", "intervention=pcgrd", "--out", "x"], "did you mean 'pcgrad'"),
        (["train", "smoke", "intervention=focal", "focal.gamma=9", "--out", "x"], "focal.gamma=9.0: must be"),
        (["train", "smoke", "data.path=/nowhere", "--out", "x"], "/nowhere"),
        (["interventions", "show", "pcgrd"], "did you mean 'pcgrad'"),
        (["interventions", "show", "pcgrad+focl"], "did you mean 'focal'"),
        (["interventions", "show", "pcgrad+"], "its part '' is empty"),
        (["interventions", "show", "placebo:poly"], "poly has no placebo"),
        (["interventions", "show", "placebo:none"], "none has no placebo"),
        (["interventions", "new", "Bad-Name"], "'Bad-Name' is no name for an intervention"),
        (["interventions", "new", "class"], "'class' is no name for an intervention: it is a Python keyword"),
        (["interventions", "new", "test_x"], "'test_x' is no name"),
        *(
            (["interventions", "new", n], f"{n!r} is no name for an intervention: it is a key of the configuration;")
            for n in ("data", "optim", "train", "model", "run", "instruments", "intervention", "reference", "settings")
        ),
        *(
            (["interventions", "new", n], f"{n!r} is no name for an intervention: {n}.py would hide the Python module")
            for n in ("torch", "zslx", "numpy", "json", "this", "sweeps", "setuptools")
        ),
        (["interventions", "new", "baseline"], "it is what reports call the run without an intervention; allowed are"),
        (["interventions", "new", "none"], "none.py; choose another name"),
        (["interventions", "new", "placebo"], "placebo.py; choose another name"),
        (["interventions", "new", "../evil"], "is no name"),
        (["interventions", "new", "pcgrad"], "intervention 'pcgrad' exists"),
        (["interventions", "check", "pcgrd"], "did you mean 'pcgrad'"),
        (["interventions", "check", "focal", "--set", "gamma=1"], "--set 'gamma=1'"),
        (["interventions", "check", "focal+mile"], "names several interventions: check each alone (focal, then mile)"),
        (["interventions", "bench", "focal", "--size", "3M"], "3M"),
        (["interventions", "bench", "focal", "--rounds", "1"], "--rounds 1: must be at least 2"),
    ],
)
def test_a_users_error_is_one_line_and_exit_code_2(arguments: list[str], message: str, command):
    code, out, err = command(*arguments)
    assert code == 2 and not out
    assert err.startswith("zslx: error: ") and message in err and err.count("\n") == 1


def test_an_unknown_command_is_refused(command):
    code, _, err = command("swep")
    assert code == 2 and "swep" in err


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "report", ("not_installed_anywhere", "x"))
    monkeypatch.setattr("zslx.places.ours", lambda package: package)
    assert main(["report"]) == 2
    assert "this command needs the package 'not_installed_anywhere'" in capsys.readouterr().err


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch):
    def broken(args):
        raise ZeroDivisionError

    monkeypatch.setattr("zslx.commands.presets.run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["presets"])


def test_a_closed_pipe_is_silent():
    shell = f"{sys.executable} -m zslx interventions list --json | head -c 10"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == ""


def test_list_json(command):
    code, out, _ = command("interventions", "list", "--json")
    cards = json.loads(out)
    assert code == 0 and {"none", "pcgrad", "cosine", "ema", "random", "placebo"} <= {c["name"] for c in cards}
    assert all({"name", "family", "source", "settings", "cost", "status"} <= c.keys() for c in cards)


def test_show_of_several_gives_the_card_of_each(command):
    code, out, _ = command("interventions", "show", "pcgrad + placebo:focal")
    assert code == 0 and "pcgrad (gradient_surgery)" in out and "placebo:focal (token_weighting)" in out
    code, out, _ = command("interventions", "show", "pcgrad+focal", "--json")
    assert code == 0 and [card["name"] for card in json.loads(out)] == ["pcgrad", "focal"]


def test_show_of_a_placebo_says_of_what_and_what_it_permutes(command, plugins: Path):
    code, out, _ = command("interventions", "show", "placebo:pcgrad")
    assert code == 0 and "The placebo of pcgrad: all that pcgrad does, but its weights are permuted over the gr" in out
    assert "placebo  this is the placebo of pcgrad" in out and "  pcgrad.groups=sequence" in out
    command("interventions", "new", "my_idea")
    code, out, _ = command("interventions", "show", "placebo:my_idea", "--json")
    card = json.loads(out)
    assert code == 0 and card["name"] == "placebo:my_idea" and card["placebo"] is None
    assert "its weights are permuted over the tokens of the batch" in card["summary"]
    from zslx.commands.interventions import PLACEBOS
    from zslx.intervention.placebo import KINDS

    assert PLACEBOS.keys() == KINDS.keys()


def test_new_writes_what_runs_and_overwrites_nothing(command, plugins: Path, tmp_path: Path):
    code, out, _ = command("interventions", "new", "my_idea")
    assert code == 0 and "plugins/my_idea.py" in out and "make sweep INTERVENTION=my_idea" in out
    from zslx.intervention.registry import load_intervention

    assert type(load_intervention("my_idea")).__name__ == "MyIdea"
    before = {p: p.read_text() for p in plugins.glob("*.py")}
    assert {p.name for p in before} == {"my_idea.py", "test_my_idea.py"}
    for text in before.values():
        compile(text, "x", "exec")
        assert "@" not in text.replace("@dataclass", "").replace("@pytest", "")
    code, _, err = command("interventions", "new", "my_idea")
    assert code == 2 and "exists" in err
    (plugins / "test_other.py").write_text("mine")
    code, _, err = command("interventions", "new", "other")
    assert code == 2 and "test_other.py exists" in err and not (plugins / "other.py").exists()
    code, out, _ = command("interventions", "new", "elsewhere", "--folder", str(tmp_path / "methods"))
    assert code == 0 and "export ZSLX_PLUGINS=" in out and (tmp_path / "methods" / "elsewhere.py").exists()


@pytest.mark.medium
def test_check_reports_a_line_a_check(command, plugins: Path):
    command("interventions", "new", "my_idea")
    code, out, _ = command("interventions", "check", "my_idea", "--set", "my_idea.power=0.25")
    assert code == 0 and out.rstrip().endswith("my_idea: passes")
    assert "pass  resumes" in out and "skip  survives_gramians" in out and "pass  smoke study" in out
    file = plugins / "my_idea.py"
    file.write_text(file.read_text().replace("** self.power", "** (self.power + 0.1)"))
    code, out, _ = command("interventions", "check", "my_idea")
    assert code == 1 and "fail  neutral" in out and out.rstrip().endswith("my_idea: fails 1 check")


@pytest.mark.medium
def test_bench_says_where_the_time_goes(cache: Path, plugins: Path):
    arguments = ["interventions", "bench", "placebo:pcgrad", "--size", "0.1M", "--rounds", "3", "--json"]
    done = subprocess.run([sys.executable, "-m", "zslx", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Profiler" not in done.stderr and "USDT" not in done.stderr  # torch's own lines
    cost = json.loads(done.stdout)
    assert cost["ratio"] == cost["seconds"] / cost["plain_seconds"] > 0 and cost["peak"] > 50
    assert cost["parts"]["method"] > 0 == cost["plain_parts"]["method"]
    assert sum(cost["parts"].values()) > 0 and cost["operators"]


def test_sigterm_ends_a_command_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch, capsys):
    import os
    import signal

    monkeypatch.setattr("zslx.commands.presets.run", lambda args: os.kill(os.getpid(), signal.SIGTERM) or 0)
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["presets"]) == 143
    assert "stopped; the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
