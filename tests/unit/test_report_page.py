"""The HTML report: every section in order, nothing from outside, hostile names shown as text."""

import base64
import dataclasses
import gzip
import hashlib
import json
import math
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from analysis.inference.compare import compare_study
from analysis.inference.pooled_breaks import PooledBreaks, load
from analysis.report.blocks import Choices, Figure, LegendEntry, Panel, SizeScale, Stroke
from analysis.report.curves import Line
from analysis.report.drawing import style
from analysis.report.figures import Figures
from analysis.report.instrument_blocks import term_trends
from analysis.report.page_data import PageData, embedded
from analysis.report.report import blocks, write_report
from analysis.report.tables import laws, seeds_needed, training
from analysis.simulation.study import ARMS, BASELINE, SimulatedArm, write_study
from analysis.study.load import load_study
from analysis.study.measures import Measures, flops_per_token
from zslx.config.groups import ModelConfig

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '"quoted\' name" onmouseover="x',
    "=HYPERLINK(0)",
    "n" * 300,
    "emoji 😀 $\\frac{x}$ &amp; %s {0} \x1b[31m",
]


class Page(HTMLParser):
    """Elements, attributes and text of a page; its scripts apart, each with its type."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "script":
            self.scripts.append((dict(attrs).get("type", ""), ""))

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        else:
            self.texts.append(data)

    def figures(self) -> list[dict]:
        """The data of the interactive figures."""
        found = [json.loads(text) for kind, text in self.scripts if kind == "application/json"]
        return [data for data in found if "panels" in data]


@pytest.fixture(scope="module")
def breaks(tmp_path_factory):
    faults = {("pcgrad", "0.2M", 1): "diverged"}
    results = write_study(
        tmp_path_factory.mktemp("results"), np.random.default_rng(0), arms=ARMS[:4], sizes=("0.1M", "0.2M"), seeds=2,
        steps=200, faults=faults,
    )  # fmt: skip
    return load(results)


@pytest.fixture(scope="module")
def html(breaks, tmp_path_factory):
    return write_report(breaks, tmp_path_factory.mktemp("out") / "report.html").read_text(encoding="utf-8")


def hostile_study(folder):
    arms = (
        BASELINE,
        *(
            SimulatedArm(name=n, intervention=n, effect=-0.01 * i, metrics={f"{n}/x": 1.0})
            for i, n in enumerate(HOSTILE)
        ),
    )
    faults = {(HOSTILE[1], "0.1M", 1): "failed", (HOSTILE[0], "0.1M", 0): "diverged"}
    return write_study(
        folder, np.random.default_rng(0), name=HOSTILE[0], arms=arms, sizes=("0.1M",), seeds=2, steps=40, faults=faults
    )


@pytest.mark.medium
def test_sections_come_in_the_order_of_the_questions(html):
    headings = re.findall(r'<h2 id="(\w+)">', html)
    assert headings == [
        "table", "loss", "interference", "differences", "deceleration", "heldout", "gradients", "decomposition",
        "mechanism", "sizes", "cost", "did", "failures", "reproduce", "fits",
    ]  # fmt: skip
    assert html.index('class="answer"') < html.index('id="table"')
    assert "Does pcgrad lower the loss" in html and "exploratory" in html


@pytest.mark.medium
def test_the_instruments_tables_have_their_numbers(breaks):
    measures = breaks.measures
    table = training(measures)
    assert table is not None and all(re.fullmatch(r"[0-9.e−-]+", row[-1]) for row in table.rows)
    terms = term_trends(measures, ["0.1M", "0.2M"])
    assert terms is not None and len(terms.rows) == 4 * len(measures.study.arms)
    ce, ee = terms.rows[0], terms.rows[1]
    assert float(ee[2]) == pytest.approx(0.7 * float(ce[2]), abs=0.002)
    assert ee[-3] == ce[-3] and ee[-1] == "0.000"  # a fixed share of the loss has the loss's own slope


def test_laws_and_seeds_needed_are_told_or_why_not():
    found = {"kaplan": {"alpha": 0.07, "log_N_c": 28.0, "rmse_log": 0.001}, "chinchilla": {"refused": "3 sizes"}}
    table = laws({"trends": {"laws": found}})
    assert table is not None and table.rows[0][1:] == ("α = 0.07, log N_c = 28", "0.10 %")
    assert table.rows[1][1] == "not fitted: 3 sizes" and laws({"trends": {"refused": "no sizes"}}) is None
    rows = [{"arm": "a", "seeds_needed": {"0.0025": 40, "0.02": None}}, {"arm": "b", "seeds_needed": None}]
    seeds = seeds_needed({"contrasts": rows})
    assert seeds is not None and seeds.columns == ("arm", "0.25 %", "2.0 %")
    assert seeds.rows == (("a", "40", "over 10,000"),)


@pytest.mark.medium
def test_the_page_asks_nothing_of_the_network_and_runs_its_own_script_alone(html):
    page = Page(html)
    assert not {"iframe", "img", "object", "embed", "base"} & set(page.tags)
    [script] = [text for kind, text in page.scripts if not kind]
    [library] = [text for kind, text in page.scripts if kind == "application/octet-stream"]
    allowed = re.search(r"script-src ([^;]*);", html)
    assert allowed is not None
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(code).digest()).decode()}'"
        for code in (script.encode(), gzip.decompress(base64.b64decode(library)))
    ]
    assert allowed[1].split() == hashes
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("href", "src", "xlink:href", "action"):
            assert value.startswith("#") or value == "data:,", (tag, name, value)
    outside = [u for u in re.findall(r"https?://[^\s\"'<)]+", html) if not u.startswith("http://www.w3.org/")]
    assert outside == []
    assert "default-src 'none'" in html and "@import" not in html and len(html) < 8e6


@pytest.mark.medium
def test_panels_are_well_formed_follow_the_theme_and_share_no_id(html):
    drawn = html[: html.index('id="choices"')]  # the script after it makes SVG, too
    panels = re.findall(r"<svg xmlns.*?</svg>", drawn, flags=re.DOTALL)
    assert len(panels) >= 12 and len(panels) == sum(len(f["panels"]) for f in Page(html).figures())
    ids: list[str] = []
    for panel in panels:
        root = ElementTree.fromstring(panel)
        ids += [e.get("id") for e in root.iter() if e.get("id")]
        used = set(re.findall(r"url\(#([^)]+)\)", panel)) | set(re.findall(r'href="#([^"]+)"', panel))
        assert used <= {e.get("id") for e in root.iter()}
        assert "var(--s0" in panel or "var(--s1" in panel
        assert not re.search(r"#0[123]0[12]0[0-9a-f]", panel), "a stand-in colour was left"
    assert len(ids) == len(set(ids))
    assert "prefers-color-scheme: dark" in html


@pytest.mark.medium
def test_the_same_records_give_the_same_page(breaks, html, tmp_path):
    again = write_report(PooledBreaks(breaks.measures), tmp_path / "again.html").read_text(encoding="utf-8")
    assert again == html


@pytest.mark.medium
def test_hostile_names_are_text(tmp_path):
    m = load(hostile_study(tmp_path))
    html = write_report(m, tmp_path / "out.html").read_text(encoding="utf-8")
    assert not [c for c in html if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    page = Page(html)
    assert "img" not in page.tags and [kind for kind, _ in page.scripts if not kind.startswith("application/")] == [""]
    assert not [a for a in page.attributes if a[1].startswith("on")]
    told = {line["name"] for figure in page.figures() for panel in figure["panels"] for line in panel["lines"]}
    assert HOSTILE[0] in told and max(map(len, told)) <= 48
    shown = "".join(page.texts)
    for name in HOSTILE[:5]:
        assert name in shown, name
    assert "emoji 😀 $\\frac{x}$" in shown


@pytest.mark.medium
def test_a_study_with_nothing_finished_still_gives_a_page(tmp_path):
    faults = {(a.name, "0.1M", i): "failed" for a in ARMS[:3] for i in range(2)}
    results = write_study(
        tmp_path, np.random.default_rng(0), arms=ARMS[:3], sizes=("0.1M",), seeds=2, steps=40, faults=faults
    )
    m = load(results)
    found = blocks(m, compare_study(m))
    assert [b.anchor for b in found if b.kind == "heading"][-3:] == ["failures", "reproduce", "fits"]
    assert "out of memory" in write_report(m, tmp_path / "r.html").read_text()


def test_tuned_rates_are_told_with_their_cost_and_drawn(breaks):
    losses = {"0.5": 0.02, "1": 0.0, "2": None}
    by_size = {size: losses for size in breaks.study.sizes}
    tuning = {"study": "focal-rates", "seeds": [1000, 1001], "trials": 30, "train_seconds": 812.4}
    other = {size: {"0.5": math.log(0.9), "1": 0.0, "2": 0.1} for size in breaks.study.sizes}
    tuning["log_loss"] = {"baseline": by_size, ARMS[1].name: other, "gone": other}
    comparison = compare_study(breaks) | {"tuning": tuning}
    found = blocks(breaks, comparison)
    [text] = [b.text for b in found if "tuned before" in getattr(b, "text", "")]
    assert "seeds 1000, 1001: 30 trials, 812 s of training (study focal-rates)" in text
    [figure] = [b for b in found if getattr(b, "title", "") == "Loss at T over the learning rate"]
    assert [panel.title for panel in figure.panels] == list(breaks.study.sizes)
    for panel in figure.panels:
        assert [list(s.line.x) for s in panel.strokes] == [[0.5, 1.0], [0.5, 1.0, 2.0]]  # what diverged is left out
        best = {m.name: (m.x[0], m.y[0]) for m in panel.marks}
        assert best == {"baseline": (1.0, 0.0), ARMS[1].name: (0.5, pytest.approx(-10.0))}


@pytest.mark.medium
def test_many_arms_are_one_answer_and_one_ranked_table(tmp_path):
    effects = {"a": -0.01, "b": -0.03, "c": 0.02}
    arms = (BASELINE, *(SimulatedArm(name=n, intervention=n, effect=e) for n, e in effects.items()))
    sizes = ("0.1M",)
    breaks = load(write_study(tmp_path, np.random.default_rng(0), arms=arms, sizes=sizes, seeds=3, steps=60))
    found = blocks(breaks, compare_study(breaks))
    [answer] = [b for b in found if b.kind == "answer"]
    assert answer.sentence.startswith("The lowest loss: b: ") and "95 % interval" in answer.sentence
    assert "of 3" in answer.word and "Does any of 3 methods" in answer.question
    ranked, full = [b for b in found if b.kind == "table"][:2]
    assert [row[0] for row in ranked.rows] == [row[0] for row in full.rows] == ["b", "a", "c"]


@pytest.mark.medium
def test_declared_contrasts_stand_in_the_forest_plot_under_those_with_the_baseline(tmp_path):
    write_study(tmp_path, np.random.default_rng(0), sizes=("0.1M",), seeds=3, steps=60, instruments=False)
    study = dataclasses.replace(load_study(tmp_path), contrasts={"pcgrad+cosine": "cosine"})
    breaks = PooledBreaks(Measures(study))
    comparison = compare_study(breaks)
    [figure] = [b for b in blocks(breaks, comparison) if getattr(b, "title", "").startswith("Held-out loss at T, arm")]
    [panel] = figure.panels
    assert list(panel.axes.rows[-2:]) == [f"pcgrad+cosine against cosine  {s}" for s in ("0.1M", "all sizes")]
    [declared] = comparison["declared_contrasts"]
    last = panel.marks[-1]
    assert last.x == [100 * np.expm1(declared["primary"]["estimate"])] and last.low[0] < last.x[0] < last.high[0]
    assert len(panel.marks) == len(panel.axes.rows) == 2 * 5 and "pcgrad+cosine against cosine -" in panel.alternative


@pytest.mark.medium
def test_a_methods_own_numbers_are_one_figure(tmp_path):
    metrics = {"focal/weight": 1.0, "focal/share": 0.5}
    arms = (BASELINE, SimulatedArm(name="focal", intervention="focal", metrics=metrics))
    breaks = load(write_study(tmp_path, np.random.default_rng(0), arms=arms, sizes=("0.1M",), seeds=2, steps=60))
    [figure] = Figures(breaks).metrics()
    assert figure.title == "What focal reported" and [p.title for p in figure.panels] == ["weight", "share"]


def test_the_figures_data_may_stand_in_a_script_and_knows_no_infinity():
    line = Line(x=np.array([1.0, 2.0, 4.0]), y=np.array([np.inf, 1 / 3, np.nan]))
    panel = Panel(
        title="</script>", alternative="", strokes=[Stroke(line=line, index=1, name="<!--", arm="a", size="s")]
    )
    data = PageData(
        Choices(arms=(LegendEntry(name="a", index=0, arm=True),), sizes=(SizeScale(name="s", tokens=1, flops=6),))
    )
    text = embedded(data.figure(Figure(title="&", panels=(panel,), caption="")))
    assert not set("<>&") & set(text)
    [drawn] = json.loads(text)["panels"][0]["lines"]
    assert drawn["y"] == [None, 0.33333, None] and (drawn["arm"], drawn["size"], drawn["name"]) == (0, 0, "<!--")


def test_a_tied_matrix_multiplies_once_and_so_does_an_untied_one(breaks):
    trial = breaks.measures.example("0.1M")
    found = []
    for tied in (True, False):
        config = trial.config | {"model": trial.config["model"] | {"tied": tied}}
        found.append(flops_per_token(dataclasses.replace(trial, config=config)))
    model, attention = trial.config["model"], 6 * trial.config["model"]["n_layers"] * trial.config["model"]["d_model"]
    tied = ModelConfig(**model | {"tied": True}).parameters(trial.config["data"]["vocab_size"])
    assert found[0] == found[1] == 6 * tied.total + attention * trial.config["data"]["seq_len"]
    other = dataclasses.replace(trial, manifest={"parameters": {"non_embedding": 2, "embedding": 3, "total": 5}})
    assert flops_per_token(dataclasses.replace(other, config=other.config | {"model": {"hf": "gpt2"}})) == 30


def test_no_two_arms_are_drawn_alike():
    styles = [style(i) for i in range(40)]
    assert len(set(styles)) == 40
    assert styles[0][0] == "" and not any(dash == "" or "--s0" in colour for dash, colour in styles[1:])
