"""The report in wandb: the blocks of the page, built without network, and saved to a server that answers as wandb's."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from analysis.commands.to_wandb import report_in_wandb
from analysis.inference.compare import compare_study
from analysis.inference.pooled_breaks import PooledBreaks, load
from analysis.inference.rows import Comparison
from analysis.report.blocks import Answer, Block, Figure, Heading, Table
from analysis.report.report import blocks as blocks_of
from analysis.report.wandb_report import Runs, as_json, as_table, render
from analysis.simulation.study import ARMS, BASELINE, SimulatedArm, write_study
from zslx.places import ROOT
from zslx.tracking.wandb_run import run_id

pytestmark = pytest.mark.medium
HOSTILE = "<script>x</script> | *b* [l](http://x)"


@pytest.fixture(scope="module")
def breaks(tmp_path_factory) -> PooledBreaks:
    arms = (BASELINE, SimulatedArm(name=HOSTILE, intervention="pcgrad", effect=-0.02), ARMS[1])
    sizes = ("0.1M", "0.2M")
    return load(
        write_study(tmp_path_factory.mktemp("r"), np.random.default_rng(0), arms=arms, sizes=sizes, seeds=2, steps=60)
    )


@pytest.fixture(scope="module")
def comparison(breaks) -> Comparison:
    return compare_study(breaks)


@pytest.fixture(scope="module")
def blocks(breaks, comparison) -> list[Block]:
    return blocks_of(breaks, comparison)


@pytest.fixture(scope="module")
def report(breaks, blocks) -> list[dict[str, Any]]:
    made = render(
        blocks, title=f"zslx: {HOSTILE}", runs=Runs.of(breaks.study), entity="me", address="https://h/me/zslx/runs"
    )
    return as_json(made)["spec"]["blocks"]


def texts(found: list[dict[str, Any]], kind: str) -> list[str]:
    """The texts of the blocks of a kind, those folded away included."""
    inside = [inner for block in found for inner in block.get("collapsedChildren") or []]
    chosen = [block for block in [*found, *inside] if block["type"] == kind]
    return [block.get("content") or "".join(c.get("text", "") for c in block["children"]) for block in chosen]


def test_answer_headings_and_every_table_are_in_it(blocks, report):
    answer = next(b for b in blocks if isinstance(b, Answer))
    assert answer.question in texts(report, "heading")
    shown = "\n".join(texts(report, "markdown-block")).replace("\\", "")
    assert answer.sentence in shown and answer.word in shown
    for table in (b for b in blocks if isinstance(b, Table)):
        assert f"| {' | '.join(table.columns)} |" in shown
        assert all(cell in shown for row in table.rows for cell in row)
    headings = texts(report, "heading")
    wanted = [b.text for b in blocks if isinstance(b, Heading)]
    assert [h for h in headings if h in wanted] == [h for h in wanted if h in headings] and len(headings) > 10


def test_what_every_run_has_is_drawn_by_wandb_from_the_runs_of_each_size(breaks, blocks, report):
    drawn = [b for b in blocks if isinstance(b, Figure) and b.metric]
    metrics = {f"probe/{figure.metric.replace('.', '/')}" for figure in drawn}
    assert {"probe/heldout_loss", "probe/dt1_heldout/D", "probe/dtt/D", "probe/grad_token/ratio"} <= metrics
    page, *grids = [b["metadata"] for b in report if b["type"] == "panel-grid"]
    assert page["panelBankSectionConfig"]["panels"][0]["config"]["mediaKeys"] == ["page"]
    for size, grid in zip(("0.1M", "0.2M"), grids, strict=True):
        [runset] = grid["runSets"]
        [chosen] = runset["filters"]["filters"]
        assert sorted(chosen["value"]) == sorted(run_id(t.identity) for t in breaks.study.trials if t.size == size)
        assert runset["grouping"] == [{"section": "run", "name": "jobType"}]
        panels = grid["panelBankSectionConfig"]["panels"]
        assert {panel["config"]["metrics"][0] for panel in panels} == metrics
        assert all(panel["config"]["xAxis"] == "step" for panel in panels)


def test_the_forest_plot_is_a_table_of_its_numbers(blocks, report):
    [forest] = [b for b in blocks if isinstance(b, Figure) and b.title.startswith("Held-out loss at T, arm")]
    table = as_table(forest)
    assert [row[0] for row in table.rows] == list(forest.panels[0].axes.rows)
    mark = forest.panels[0].marks[0]
    assert table.rows[0][1] == f"{mark.x[0]:.3g} [{mark.low[0]:.3g}, {mark.high[0]:.3g}]".replace("-", "−")
    assert any(table.rows[0][1] in text.replace("\\", "") for text in texts(report, "markdown-block"))


def test_runs_are_links_where_it_is_known_where_they_are_and_names_are_text(breaks, report):
    [runs] = [text for text in texts(report, "markdown-block") if "runs by seed" in text]
    trial = next(t for t in breaks.study.trials if t.arm == HOSTILE)
    assert f"[{trial.seed}](https://h/me/zslx/runs/{run_id(trial.identity)})" in runs
    without = Runs.of(breaks.study).table("")
    assert f"{trial.seed}: {run_id(trial.identity)}" in without and "https" not in without
    markdown = "\n".join(texts(report, "markdown-block"))
    for live in ("<script", "| *b*", "[l](http"):
        assert live not in markdown.replace("\\<", "").replace("\\[", "").replace("\\*", "")


def test_without_an_account_it_is_a_file_and_the_command_says_so(breaks, comparison, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    results = breaks.study.folder.parents[1]
    page = results / "simulated.html"
    page.write_text("<!DOCTYPE html><p>the report</p>")
    why, place = report_in_wandb(breaks, comparison, page, "online")
    assert "the report was not saved: no account here; WANDB_API_KEY" in why and "zslx report" in place
    assert json.loads((results / "simulated.wandb.json").read_text())["spec"]["blocks"]
    [logged] = results.glob("wandb/offline-run-*/files/media/html/*.html")
    assert "</html>" in logged.read_text(), "a page of its own, since the one here has what looks like a path"


VIEWER = {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
PROJECT = {"id": "p", "name": "zslx", "entityName": "me", "createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False}


class Server(BaseHTTPRequestHandler):
    """Answers the questions that saving a report asks; `saved` has what was sent."""

    saved: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        self.answer({"data": self.data(json.loads(body))} if self.path.endswith("graphql") else {})

    def data(self, asked: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" in asked["query"]:
            sent = asked["variables"]
            self.saved.append(sent)
            project = {"id": "p", "name": sent["projectName"], "entityName": sent["entityName"]}
            same = {key: sent[key] for key in ("name", "displayName", "description", "spec")}
            view = {"id": "one", "type": "runs", "project": project, "updatedAt": None, **same}
            return {"upsertView": {"view": view, "inserted": True}}
        if "models" in asked["query"]:
            edges = [{"cursor": "c", "node": PROJECT | {"user": None}}]
            return {"models": {"totalCount": 1, "edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}
        return {"viewer": VIEWER}

    def answer(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


def test_it_is_saved_with_links_to_the_runs_and_the_second_time_replaces_the_first(server, tmp_path):
    code = """
from pathlib import Path
from analysis.report.blocks import Answer
from analysis.report.wandb_report import Runs, publish
blocks = [Answer(question="Is it?", sentence="It is.", word="improves", exploratory=False)]
runs = Runs(study="s", trials=[("baseline", "0.1M", 0, "id0")])
for _ in range(2):
    print(publish(blocks, Path("report.wandb.json"), title="zslx: a study", runs=runs))
"""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    account = {"WANDB_BASE_URL": server, "WANDB_API_KEY": "k" * 40, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ours | account, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, second = Server.saved
    assert first["id"] is None and second["id"] == "one" and first["entityName"] == "me"
    assert first["displayName"] == "zslx: a study" and f"{server}/me/zslx/runs/id0" in first["spec"]
    assert [line for line in done.stdout.splitlines() if line.startswith(f"{server}/me/zslx/reports/")]
    kept = (tmp_path / "report.wandb.json").read_text()
    assert json.loads(kept)["id"] == "one" and "k" * 40 not in kept
