"""`zslx compare` and `zslx report` rebuild everything from the records, without torch."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from analysis.commands import compare, report
from analysis.simulation.study import BASELINE, SimulatedArm, write_study

ROOT = Path(__file__).parents[2]


def run(command, *argv) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(a) for a in argv]))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    arms = (BASELINE, SimulatedArm(name="pcgrad", intervention="pcgrad", effect=-0.02))
    return write_study(
        tmp_path_factory.mktemp("r"), np.random.default_rng(0), arms=arms, sizes=("0.1M",), seeds=1, steps=60
    )


def test_compare_prints_the_table_or_strict_json(results, capsys):
    assert run(compare, results) == 0
    assert "held-out loss at T" in capsys.readouterr().out
    assert run(compare, results, "--json") == 0

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found["study"] == "simulated" and len(found["cells"]) == 2


@pytest.mark.medium
def test_report_prints_its_path_last_and_alone(results, capsys, tmp_path):
    assert run(report, results) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str((results / "simulated.html").resolve())
    assert run(report, results, "--study", "simulated", "--out", tmp_path / "a" / "b.html") == 0
    assert (tmp_path / "a" / "b.html").stat().st_size > 10_000


def test_an_unknown_study_is_an_error_that_lists_what_there_is(results):
    with pytest.raises(ValueError, match="there are: simulated"):
        run(compare, results, "--study", "x")


def test_analysis_imports_no_torch_and_no_ray():
    files = [p.relative_to(ROOT) for p in (ROOT / "analysis").rglob("*.py") if p.stem != "__init__"]
    modules = [".".join(f.with_suffix("").parts) for f in files]
    heavy = ("torch", "ray", "wandb", "matplotlib")
    code = f"import sys, {', '.join(modules)}; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
