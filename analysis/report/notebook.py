"""A study in a notebook: trials, records and comparison as pandas frames, the report's figures by matplotlib.

A frame says in words what `zslx compare --json` says in keys: the names are the same, and so are the units (losses in
nats per token, differences of log loss as they are, times in seconds). What could not be computed is nan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, fields
from functools import cache, cached_property
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.inference.compare import compare_study
from analysis.inference.pooled_breaks import CURVES, PooledBreaks
from analysis.inference.rows import ArmComparison, Comparison
from analysis.numbers import count, printable
from analysis.report.blocks import Figure
from analysis.report.headline import headline
from analysis.report.print_figures import NARROWEST, WIDEST, drawn
from analysis.report.report import blocks
from analysis.study import load
from analysis.study.evaluations import Score, scores
from analysis.study.join import join
from analysis.study.load import Study, Trial
from analysis.study.measures import Measures, parameters
from analysis.study.step_records import read_columns
from zslx.deceleration.intervals import MEASURES

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

ALL = "all"  # the size of a contrast that is averaged over sizes
LOSS = "log_heldout_loss"
INTERVAL = ("estimate", "low", "high", "se", "p", "p_holm", "seeds", "smallest_effect")


def load_study(*studies: str | Path, results: str | Path = "results") -> LoadedStudy:
    """A study that a sweep left: a results folder (its newest study), a study's folder, or its name in `results`.

    Several that share a baseline are joined. ValueError, naming file or name, where there is none or it is damaged; a
    trial whose records are damaged is one that failed. What is loaded has

        trials                     a row a trial: status, loss at T, L_d, t_d, r_d, tail slope, parameters, seconds
        steps(arm, size, seed)     the step records of the trials chosen; probes(...) what the instruments measured
        evaluations                a row a downstream score, where `zslx evaluate` has left some
        fit(arm, size)             L_d, t_d, r_d and L_T_hat of all seeds together, with intervals
        comparison                 a row a contrast: estimate, interval, p, and the word where one is given
        figures, plot(title)       the titles of the report's figures, and one of them as a matplotlib figure
        results                    everything, as `zslx compare --json` prints it

    and shows itself in a notebook as the answers and the headline table. Needs pandas and matplotlib (zslx[sweep]).
    """
    if not studies:
        raise ValueError("load_study: name a results folder, a study's folder or a study")
    places = [load.place_of(str(word), Path(results)) for word in studies]
    return LoadedStudy(join([load.load_study(folder, name) for folder, name in places]))


class LoadedStudy:
    """A study as frames and figures. Everything is computed when it is first asked for (a fit a trial: 0.2 s)."""

    def __init__(self, study: Study):
        self.study = study
        self._breaks = PooledBreaks(Measures(study))

    @cached_property
    def results(self) -> Comparison:
        """Everything that the records say, as `zslx compare --json` prints it."""
        return compare_study(self._breaks)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row a trial, in the order of arms, sizes and seeds.

        L_d, t_d and r_d are of the fit of the trial's own held-out curve; unless `break_status` is "break", they
        describe the fit and claim nothing. `parameters` are all, `seconds` those of training without instruments.
        """
        return pd.DataFrame([self._row(trial) for trial in self.study.trials])

    def _row(self, trial: Trial) -> dict[str, Any]:
        measures = self._breaks.measures
        counts = parameters(trial) if trial.config else {}
        row: dict[str, Any] = {"arm": trial.arm, "size": trial.size, "seed": trial.seed, "status": trial.status}
        row |= dict.fromkeys(("heldout_loss", "L_d", "t_d", "r_d"), np.nan) | {"break_status": "", "tail_slope": np.nan}
        if trial.finished:
            fit = measures.fit(trial)
            row |= {name: (fit.estimate or {}).get(name, np.nan) for name in ("L_d", "t_d", "r_d")}
            row |= {"heldout_loss": np.exp(measures.log_loss(trial)), "tail_slope": measures.tail(trial)}
            row["break_status"] = fit.status
        return row | {
            "non_embedding": counts.get("non_embedding", np.nan),
            "parameters": counts.get("total", np.nan),
            "seconds": (trial.manifest.get("totals") or {}).get("train_seconds", np.nan),
            "identity": trial.identity,
            "folder": str(trial.folder or ""),
            "error": trial.error,
        }

    def steps(self, arm: str | None = None, size: str | None = None, seed: int | None = None) -> pd.DataFrame:
        """The step records of all trials that have some, or of the arm, size and seed given: a row a step.

        Columns: arm, size, seed, step, tokens, loss, lr, grad_norm and what the methods report. ValueError for an
        arm, size or seed that the study has not, for trials without records, and for a damaged file.
        """
        return self._records(lambda t: read_columns(Path(t.folder or "") / "steps.jsonl"), arm, size, seed)

    def probes(self, arm: str | None = None, size: str | None = None, seed: int | None = None) -> pd.DataFrame:
        """What the instruments measured, chosen as in `steps`: a row a probe step, a column a number (dt1_heldout.D).

        nan where an instrument has not measured at a step.
        """
        return self._records(_probe_columns, arm, size, seed)

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """Downstream scores of every trial: a row a trial, step, task and metric, with the standard error over samples.

        `few_shot` and `limit` are those of `zslx evaluate` (nan: as the task has it; 0: all samples); rows of one `key`
        have the same settings and task files. ValueError, naming the file, for one that is damaged.
        """
        columns = [f.name for f in fields(Score)]
        found = pd.DataFrame([astuple(score) for score in scores(self.study.trials)], columns=columns)
        return _numbers(found, ("score", "stderr", "few_shot"))

    def _records(
        self,
        read: Callable[[Trial], Mapping[str, np.ndarray]],
        arm: str | None,
        size: str | None,
        seed: int | None,
    ) -> pd.DataFrame:
        self._known("arm", arm, [a.name for a in self.study.arms])
        self._known("size", size, self.study.sizes)
        self._known("seed", seed, self.study.seeds)
        trials = [t for t in self.study.trials if arm in (None, t.arm) and size in (None, t.size)]
        trials = [t for t in trials if seed in (None, t.seed)]
        there = [t for t in trials if t.config]  # has records that can be read
        if not there:
            why = "; ".join(f"{t.label} {t.status}{t.error and ': '}{t.error}" for t in trials[:3])
            raise ValueError(f"no trial here has records ({why or 'the study has no such trial'})")
        frames = []
        for t in there:
            frame = pd.DataFrame(read(t))
            for at, name in enumerate(("arm", "size", "seed")):
                frame.insert(at, name, getattr(t, name))
            frames.append(frame)
        found = pd.concat(frames, ignore_index=True)
        whole = [name for name in ("step", "tokens") if name in found]
        return found.astype(dict.fromkeys(whole, "int64"))

    def _known(self, what: str, value: object, allowed: Any) -> None:
        if value is not None and value not in allowed:
            names = ", ".join(str(a) for a in allowed)
            raise ValueError(f"study {self.study.name} has no {what} {value!r}; there are: {names}")

    def fit(self, arm: str | None = None, size: str | None = None, curve: str | None = None) -> pd.DataFrame:
        """L_d, t_d, r_d and L_T_hat of each arm and size, from one fit of the mean log loss of all seeds.

        A row an arm, size and measure: estimate, low and high (95 % over seeds), seeds, identified, status and reason.
        `curve`: "heldout" or "training"; by default the one that the study declares. Where `identified` is False, the
        numbers describe the fit and claim nothing.
        """
        self._known("arm", arm, [a.name for a in self.study.arms])
        self._known("size", size, self.study.sizes)
        kind = curve or self._breaks.kind
        self._known("curve", kind, tuple(CURVES))
        rows = []
        for cell in self.results["cells"]:
            if arm not in (None, cell["arm"]) or size not in (None, cell["size"]):
                continue
            found: Mapping[str, Any] = cell["fits"][kind]
            broken = found["break"] or {}
            for measure in MEASURES:
                interval = found[measure] or {}
                row: dict[str, Any] = {"arm": cell["arm"], "size": cell["size"], "measure": measure}
                row |= {"estimate": interval.get("mean"), "low": interval.get("low"), "high": interval.get("high")}
                row |= {"seeds": interval.get("n", 0), "identified": bool(interval.get("identified"))}
                rows.append(row | {"status": broken.get("status", ""), "reason": broken.get("reason", "")})
        return _numbers(pd.DataFrame(rows), ("estimate", "low", "high"))

    @cached_property
    def comparison(self) -> pd.DataFrame:
        """A row a paired contrast: arm, against, measure and size; estimate, 95 % interval, se, p, seeds; word.

        First of each arm comes the one that decides: log held-out loss at T, averaged over sizes ("all"), with the
        word of the rule of evidence. Then the same at each size, against the placebo and against the baseline at other
        rates, and the secondary measures with `p_holm`, adjusted for their number.
        """
        every = self.results["contrasts"] + self.results["declared_contrasts"]
        columns = ["arm", "against", "measure", "size", *INTERVAL, "word", "exploratory"]
        found = pd.DataFrame([row for contrast in every for row in _contrast_rows(contrast)], columns=columns)
        return _numbers(found, INTERVAL)

    @cached_property
    def _figures(self) -> dict[str, Figure]:
        found = (block for block in blocks(self._breaks, self.results) if isinstance(block, Figure))
        return {figure.title: figure for figure in found}

    @property
    def figures(self) -> list[str]:
        """The titles of the report's figures that this study has."""
        return list(self._figures)

    def plot(self, title: str = "Held-out loss", width: float = 7.0) -> Canvas:
        """A figure of the report, `width` inches wide: by its title, or a part of it that only one title has."""
        if not NARROWEST <= width <= WIDEST:
            raise ValueError(f"width {width} inches: allowed is {NARROWEST:g} to {WIDEST:g}")
        wanted = title.casefold()
        there = [name for name in self._figures if wanted in name.casefold()]
        exact = [name for name in there if wanted == name.casefold()]
        if len(exact or there) != 1:
            what = "several figures have" if there else "no figure has"
            raise ValueError(f"{what} {title!r} in the title; there are: {', '.join(there or self._figures)}")
        return drawn(self._figures[(exact or there)[0]], _shown_in_notebooks(), width=width)

    def __repr__(self) -> str:
        s, done = self.study, sum(t.finished for t in self.study.trials)
        shape = ", ".join((count(len(s.arms), "arm"), count(len(s.sizes), "size"), count(len(s.seeds), "seed")))
        return f"<study {printable(s.name)}: {shape}; {done} of {len(s.trials)} trials finished>"

    def _repr_html_(self) -> str:
        answers = [("exploratory: " if a["exploratory"] else "") + a["sentence"] for a in self.results["answers"]]
        told = "".join(f"<p>{escape(printable(text, 2000))}</p>" for text in [repr(self).strip("<>"), *answers])
        table = headline(self.results)
        rows = [[printable(text) for text in row] for row in table.rows]
        return told + str(pd.DataFrame(rows, columns=list(table.columns)).to_html(index=False))


@cache
def _shown_in_notebooks() -> type[Canvas]:
    """matplotlib's figure, which a notebook shows by itself only where pyplot was imported."""
    from matplotlib.figure import Figure as Canvas

    class NotebookFigure(Canvas):
        def _repr_png_(self) -> bytes:
            file = BytesIO()
            self.savefig(file, format="png", dpi=150)
            return file.getvalue()

    return NotebookFigure


def _probe_columns(trial: Trial) -> dict[str, np.ndarray]:
    columns = {"step": trial.probe_steps, "tokens": trial.probe_tokens}
    for key, (rows, values) in trial.values.items():
        columns[key] = np.full(len(trial.probe_steps), np.nan)
        columns[key][rows] = values
    return columns


def _contrast_rows(found: ArmComparison) -> list[dict[str, Any]]:
    """The contrasts of one arm; those that could not be computed are left out, but for the first."""
    names = {"arm": found["arm"], "against": found["against"]}
    word = {"word": found["word"], "exploratory": found["exploratory"]}
    rows = [names | {"measure": LOSS, "size": ALL} | dict(found["primary"] or {}) | word]
    rows += [names | {"measure": LOSS, "size": s} | dict(d) for s, d in found["by_size"].items() if d]
    if (placebo := found["placebo"]) and "estimate" in placebo:
        rows.append(placebo | {"arm": found["arm"], "against": placebo["arm"], "measure": LOSS, "size": ALL})
    for factor, rate in found["rates"].items():
        if rate:
            rows.append(dict(rate) | names | {"against": f"baseline at {factor} rate", "measure": LOSS, "size": ALL})
    return rows + [names | {"measure": key, "size": ALL} | d for key, d in found["secondary"].items()]


def _numbers(frame: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    """The frame with null as nan in these columns."""
    return frame.astype(dict.fromkeys(columns, "float64"))
