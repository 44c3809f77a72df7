"""Renders the blocks of a report to a report in wandb: the same list that page.py renders to HTML.

Texts, answers and tables become wandb's own blocks. A figure of a number that every run has over its steps is drawn by
wandb from the runs, in a grid of panels for each size; a figure of rows, such as the forest plot, becomes a table. The
other figures are in the page itself, which the study's run holds (wandb_study.py) and the report shows.

Nothing here needs the network but `publish`. Names are text: what wandb reads as Markdown is escaped.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.numbers import minus, printable
from analysis.report.blocks import Answer, Block, Figure, Heading, Table, Text
from analysis.report.markdown import answer, escaped, pipes, table
from analysis.study.load import Study
from zslx.printable import one_line
from zslx.runs.json_files import loads, read_json, write_json
from zslx.tracking.wandb_run import PROJECT, run_id

LONGEST_TITLE = 128  # of a report
PAGE = "page"  # the key of the HTML report in the study's run


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The runs of a study in wandb: of the study itself, and (arm, size, seed, id) of each trial."""

    study: str
    trials: Sequence[tuple[str, str, int, str]]

    @staticmethod
    def of(study: Study) -> Runs:
        trials = [(t.arm, t.size, t.seed, run_id(t.identity)) for t in study.trials if t.folder]
        return Runs(study=study_run_id(study.name), trials=trials)

    def at(self, size: str) -> list[str]:
        return list(dict.fromkeys(identifier for _, of, _, identifier in self.trials if of == size))

    def table(self, address: str) -> str:
        """Each run, as a link where `address` says where runs are, else by its id."""
        rows: dict[tuple[str, str], list[str]] = {}
        for arm, size, seed, identifier in self.trials:
            shown = f"[{seed}]({address}/{identifier})" if address else f"{seed}: {identifier}"
            rows.setdefault((escaped(arm), escaped(size)), []).append(shown)
        return pipes(("arm", "size", "runs by seed"), [(*key, ", ".join(each)) for key, each in rows.items()])


def study_run_id(name: str) -> str:
    return run_id(f"study {name}")


def library() -> Any:
    """wandb's report interface, which warns of itself when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import wandb_workspaces.reports.v2 as reports
    return reports


def render(blocks: Sequence[Block], *, title: str, runs: Runs, entity: str = "", address: str = "") -> Any:
    """The report, not saved. `entity` owns the project; `address` is where its runs are, to link them."""
    wr = library()
    opening, *sections = in_sections(blocks)
    found = [block for some in opening for block in rendered(some)]
    page = wr.Runset(name="study", filters=f"ID = '{runs.study}'")
    browser = wr.MediaBrowser(title="The report as one page", media_keys=[PAGE], layout=wr.Layout(x=0, y=0, w=24, h=30))
    found += [wr.H2("The report as one page"), wr.PanelGrid(runsets=[page], panels=[browser])]
    found += curves([block for block in blocks if isinstance(block, Figure)], runs)
    for heading, *inner in sections:
        if below := [block for some in inner for block in rendered(some)]:
            found += [*rendered(heading), *below]
    found += [wr.H2("The runs"), wr.MarkdownBlock(runs.table(address))]
    title = printable(one_line(title), LONGEST_TITLE)
    return wr.Report(project=PROJECT, entity=entity, title=title, blocks=found, width="fluid")


def in_sections(blocks: Sequence[Block]) -> list[list[Block]]:
    """What stands before the first heading; then each heading with what is under it."""
    found: list[list[Block]] = [[]]
    for block in blocks:
        if isinstance(block, Heading):
            found.append([])
        found[-1].append(block)
    return found


def rendered(block: Block) -> Iterator[Any]:
    """What one block becomes."""
    wr = library()
    if isinstance(block, Heading):
        yield wr.H2(one_line(block.text))
    elif isinstance(block, Answer):
        yield wr.H1(one_line(block.question))
        yield wr.MarkdownBlock("\n\n".join(answer(block)))
    elif isinstance(block, Text):
        inner = wr.CodeBlock(code=block.text, language=None) if block.mono else wr.P(one_line(block.text))
        yield wr.H3(block.folded, collapsed_blocks=[inner]) if block.folded else inner
    elif isinstance(block, Table):
        inner = wr.MarkdownBlock(table(block))
        yield wr.H3(block.folded, collapsed_blocks=[inner]) if block.folded else inner
    elif any(panel.axes.rows is not None for panel in block.panels):
        yield wr.H3(one_line(block.title))
        yield wr.MarkdownBlock(table(as_table(block)))


def curves(figures: Sequence[Figure], runs: Runs) -> Iterator[Any]:
    """The figures that wandb draws from the runs: a grid a size, the runs of an arm grouped; then their captions."""
    wr = library()
    drawn = [figure for figure in figures if figure.metric]
    sizes = dict.fromkeys(panel.size for figure in drawn for panel in figure.panels)
    if not drawn:
        return
    yield wr.H2("Curves of the runs")
    for size in sizes:
        panels = [
            wr.LinePlot(
                title=figure.title,
                x="step",
                y=[f"probe/{figure.metric.replace('.', '/')}"],
                log_x=True,
                log_y=panel.axes.log_y,
            )
            for figure in drawn
            for panel in figure.panels
            if panel.size == size
        ]
        listed = ", ".join(f"'{identifier}'" for identifier in runs.at(size))
        runset = wr.Runset(name=printable(size), filters=f"ID in [{listed}]", groupby=["JobType"])
        yield wr.H3(printable(size))
        yield wr.PanelGrid(runsets=[runset], panels=panels)
    captions = [f"**{escaped(figure.title)}**: {escaped(figure.caption)}" for figure in drawn]
    yield wr.H3("How to read them", collapsed_blocks=[wr.MarkdownBlock("\n\n".join(captions))])


def as_table(figure: Figure) -> Table:
    """The numbers of a figure of rows: a column a panel, in each cell the value with its interval, and its note."""
    cells: dict[str, dict[int, list[str]]] = {}
    for column, panel in enumerate(figure.panels):
        for marks in panel.marks:
            row = (panel.axes.rows or ())[round(marks.y[0])]
            low, high = marks.low, marks.high
            interval = f" [{low[0]:.3g}, {high[0]:.3g}]" if low is not None and high is not None else ""
            name = "" if printable(marks.name, 20).rstrip("…") in row else f"{marks.name}: "
            note = f" ({marks.note})" if marks.note and marks.note not in row else ""
            text = name + minus(f"{marks.x[0]:.3g}{interval}") + note
            cells.setdefault(row, {}).setdefault(column, []).append(text)
    rows = [(row, *("; ".join(of.get(i, [])) for i in range(len(figure.panels)))) for row, of in cells.items()]
    columns = ("", *(panel.title or panel.axes.x_label for panel in figure.panels))
    return Table(columns=columns, rows=tuple(rows), caption=figure.caption)


def as_json(report: Any) -> dict[str, Any]:
    """What wandb keeps of a report, as its interface would send it."""
    model = report._to_model()  # the library has no public way to get it without an account
    spec = loads(model.spec.model_dump_json(by_alias=True, exclude_none=True).encode())
    names: Mapping[str, str] = {"id": report.id, "entity": report.entity, "project": report.project}
    return {**names, "title": report.title, "spec": spec}


def write(report: Any, path: Path) -> None:
    """Write the report as JSON."""
    write_json(path, as_json(report))


def publish(blocks: Sequence[Block], path: Path, *, title: str, runs: Runs) -> str:
    """Save the report to the account that wandb knows; its address. One that was saved before from the same `path` is
    replaced. Raises whatever wandb raises."""
    import wandb
    from wandb_workspaces._graphql import get_app_url

    api = wandb.Api()
    entity = str(api.settings.get("entity") or api.default_entity or "")
    address = f"{get_app_url(api).rstrip('/')}/{entity}/{PROJECT}/runs"
    report = render(blocks, title=title, runs=runs, entity=entity, address=address)
    before = read_json(path) if path.exists() else {}
    if before.get("entity") == entity and isinstance(before.get("id"), str):
        report.id = before["id"]
    report.save()
    write(report, path)
    return str(report.url)
