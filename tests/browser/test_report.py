"""The report in a real browser: it draws without an error or a request, the reader's choices hold everywhere, names are
text. Needs Chromium (`apt-get install chromium`, or its path in CHROMIUM); installs nothing."""

from __future__ import annotations

import csv
import io
import os
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.inference.pooled_breaks import load
from analysis.report.report import write_report
from analysis.simulation.study import BASELINE, SimulatedArm, write_study

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.medium, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "=HYPERLINK(\"q\", 'u') %{y} <b>bold</b>",
    "n" * 300 + " 😀",
]
PATIENCE = 120_000  # ms: on a busy machine


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arms = (
        BASELINE,
        *(
            SimulatedArm(name=n, intervention=n, effect=-0.01 * i, metrics={f"{n}/x": 1.0} if i == 2 else {})
            for i, n in enumerate(HOSTILE)
        ),
    )
    folder = tmp_path_factory.mktemp("report")
    results = write_study(
        folder, np.random.default_rng(0), name=HOSTILE[0], arms=arms, sizes=("0.1M", "0.2M"), seeds=2, steps=60
    )
    return write_report(load(results), folder / "report.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The report, opened once; `page.heard` is whatever went wrong in it."""
    page = browser.new_page(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    page.set_default_timeout(PATIENCE)
    page.heard = heard = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("dialog", lambda dialog: heard.append(f"dialog {dialog.message}"))
    page.on("request", lambda r: r.url.startswith(("data:", "blob:", report.as_uri())) or heard.append(r.url))
    page.goto(report.as_uri())
    page.wait_for_selector("html.ready", state="attached")
    yield page
    page.close()


@pytest.fixture(autouse=True)
def as_it_opens(page: Any) -> None:
    """All arms and sizes, steps, logarithmic axes."""
    page.evaluate("() => { Object.assign(chosen, {size: '', unit: 'steps', x: 'log', y: 'log', hidden: new Set()}); }")
    page.evaluate("() => document.querySelector('.view form').reset()")


def draw(page: Any, first: int = 1) -> None:
    """The first figures, whether they are near the window or not, and no others."""
    near = "figures.forEach((f, i) => f.panels.forEach((p) => { p.near = i < first; }));"
    page.evaluate(f"async (first) => {{ {near} await update(); }}", first)


def test_every_figure_is_drawn_without_an_error_or_a_request(page: Any) -> None:
    draw(page, first=99)
    paths = "(p) => [p.empty, p.plot.querySelectorAll('path').length]"
    drawn = page.evaluate(f"figures.flatMap((f) => f.panels.map({paths}))")
    assert len(drawn) > 20 and all(paths > 3 for empty, paths in drawn if not empty)
    assert page.locator(".panel.drawn:not([hidden]) .still:visible").count() == 0
    assert page.heard == []


def test_an_arm_is_hidden_in_every_figure_and_table_at_once(page: Any) -> None:
    names = (
        "figures.slice(0, 4).flatMap((f) => f.panels.flatMap((p) => (p.plot.data ?? []).map((t) => t.meta?.[0] ?? '')))"
    )
    draw(page, first=4)
    arm = page.evaluate("plain(choices.arms[1])")
    rows = page.locator('tbody tr[data-arm="1"]')
    assert any(name.startswith(arm) for name in page.evaluate(names)) and rows.first.is_visible()
    page.locator('.legend button[data-arm="1"]').first.click()
    page.wait_for_function("figures.slice(0, 4).every((f) => f.panels.every((p) => !p.stale || p.element.hidden))")
    assert not any(name.startswith(arm) for name in page.evaluate(names))
    assert rows.evaluate_all("(rows) => rows.length > 3 && rows.every((row) => row.hidden)")
    buttons = page.locator('.legend button[data-arm="1"]')
    pressed = buttons.evaluate_all("(all) => all.map((b) => b.getAttribute('aria-pressed'))")
    assert len(pressed) > 3 and set(pressed) == {"false"}
    assert page.locator("#counted").inner_text() == "3 of 4"


def test_a_size_is_chosen_for_figures_and_tables(page: Any) -> None:
    page.locator("select[name=size]").select_option("1")
    sizes = "figures.flatMap((f) => f.panels).filter((p) => !p.element.hidden).map((p) => p.data.size)"
    assert set(page.evaluate(sizes)) == {1, None}
    headline = page.locator("h2#table ~ .scroll tbody").first
    assert headline.locator("tr:visible").count() == 4
    assert headline.locator("tr:visible th span:not(.same)").first.inner_text() == "0.2M"


def test_axes_follow_the_choices(page: Any) -> None:
    draw(page)
    axis = "(name) => figures[0].panels[0].plot._fullLayout[name]"
    assert page.evaluate(f"({axis})('xaxis').type") == page.evaluate(f"({axis})('yaxis').type") == "log"
    page.locator("select[name=unit]").select_option("flops")
    page.locator("select[name=x]").select_option("linear")
    page.locator("select[name=y]").select_option("linear")
    page.wait_for_function(f"({axis})('xaxis').type === 'linear' && ({axis})('yaxis').type === 'linear'")
    assert page.evaluate(f"({axis})('xaxis').title.text") == "FLOPs"
    last = page.evaluate("figures[0].panels[0].plot.data.at(-1).x[0] / figures[0].panels[0].data.marks.at(-1).x[0]")
    assert last == pytest.approx(page.evaluate("choices.sizes[0].flops"))


def test_zoom_and_theme_work_by_keyboard(page: Any) -> None:
    draw(page)
    span = "(() => { const r = figures[0].panels[0].plot._fullLayout.xaxis.range; return r[1] - r[0]; })()"
    before = page.evaluate(span)
    page.locator("figure").first.get_by_role("button", name="zoom in").press("Enter")
    page.wait_for_function(f"{span} < {0.7 * before}")
    page.locator("figure").first.get_by_role("button", name="show everything").press("Enter")
    page.wait_for_function(f"{span} > {0.9 * before}")
    ink = "figures[0].panels[0].plot._fullLayout.font.color"
    light = page.evaluate(ink)
    page.locator("#theme").press("Enter")
    page.wait_for_function(f"{ink} !== {light!r}")
    page.locator("#theme").press("Enter")


def test_what_a_reader_points_at_is_told(page: Any) -> None:
    figure = page.locator("figure", has=page.get_by_role("heading", name="D of one step on held-out text", exact=True))
    panel = figure.locator(".panel").first
    panel.scroll_into_view_if_needed()
    panel.locator(".nsewdrag").first.wait_for()
    page.wait_for_function("figures.every((f) => f.panels.every((p) => !p.near || !p.stale || p.element.hidden))")
    box = panel.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2)
    panel.locator(".hoverlayer text").first.wait_for()
    told = " ".join(panel.locator(".hoverlayer text").all_text_contents())
    assert "baseline" in told and HOSTILE[0][:30] in told and "%{y} <b>bold" in told


def test_figures_are_saved_as_svg_png_and_csv(page: Any) -> None:
    def button(name: str) -> bytes:
        with page.expect_download() as download:
            page.locator("figure").first.get_by_role("button", name=name).click()
        assert download.value.suggested_filename.startswith("held-out-loss.")
        return Path(download.value.path()).read_bytes()

    drawn = ElementTree.fromstring(button("save as SVG"))
    texts = [element.text or "" for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "Held-out loss" in texts and any(t.startswith(HOSTILE[0][:30]) for t in texts)
    assert button("save as PNG").startswith(b"\x89PNG")
    rows = list(csv.DictReader(io.StringIO(button("save the numbers as CSV").decode())))
    names = {row["series"] for row in rows}
    assert not any(name.startswith(("=", "+", "-", "@")) for name in names)
    assert any(name.startswith("'=HYPERLINK") for name in names)
    losses = [float(row["y"]) for row in rows if row["series"] == "baseline" and row["kind"] == "line"]
    assert len(losses) > 40 and all(1 < loss < 20 for loss in losses)


def test_nothing_is_cut_off_on_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    draw(page, first=8)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    drawn = "figures.slice(0, 8).flatMap((f) => f.panels).filter((p) => !p.element.hidden)"
    assert max(page.evaluate(f"{drawn}.map((p) => p.plot.getBoundingClientRect().right)")) <= 390
    page.set_viewport_size({"width": 1200, "height": 900})


def test_paper_has_still_pictures_and_everything_open(page: Any) -> None:
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    panels = page.locator(".panel").count()
    assert page.locator(".panel .still:visible").count() == panels and page.locator(".live:visible").count() == 0
    assert page.locator("main details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert page.locator("main details[open]").count() == 0


def test_names_are_text(page: Any) -> None:
    assert page.locator("img").count() == 0 and page.title() == f"zslx: {HOSTILE[0]}"
    shown = page.locator(".legend").first.inner_text()
    assert all(name in shown for name in HOSTILE)
    assert page.heard == []


def test_without_scripts_there_are_still_pictures(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri(), timeout=PATIENCE)
    assert page.locator(".still svg").count() == page.locator(".panel").count() > 20
    assert page.locator(".still svg").first.is_visible() and not page.locator(".view").is_visible()
    context.close()
