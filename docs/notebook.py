# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A study in a notebook
#
# The study in `results` is read, or, where there is none, made: PCGrad against the baseline at smoke size, about a
# minute. A study shows itself as its answers and the headline table.

# %%
from pathlib import Path

import numpy as np

import zslx

study = zslx.load_study("results") if Path("results").is_dir() else zslx.sweep("pcgrad", options=["--preset", "smoke"])
study

# %% [markdown]
# ## Trials
#
# A row a trial. `heldout_loss` is in nats per token, at the step T that all trials of a size reach. `L_d`, `t_d` and
# `r_d` place the break of the loss curve; unless `break_status` is `break`, they describe the fit and claim nothing.

# %%
trials = study.trials
trials[["arm", "size", "seed", "status", "heldout_loss", "L_d", "t_d", "r_d", "break_status", "tail_slope", "seconds"]]

# %% [markdown]
# ## Contrasts
#
# Trials are paired by seed. The first row of an arm decides its word: the difference of log held-out loss, averaged
# over sizes (−0.01 is 1 % lower), with its 95 % interval.

# %%
study.comparison[["arm", "against", "measure", "size", "estimate", "low", "high", "p", "seeds", "word"]]

# %% [markdown]
# The estimate is the mean over seeds of what anyone can take from the trials.

# %%
finished = trials[trials["status"] == "finished"]
losses = finished.pivot_table(index=["size", "seed"], columns="arm", values="heldout_loss")
differences = np.log(losses).sub(np.log(losses["baseline"]), axis=0)
differences.groupby("size").mean()

# %% [markdown]
# ## Records
#
# `steps` and `probes` take an arm, a size and a seed, or leave some open. Here: D, the destructive interference of the
# changes of held-out losses by one update, late in training.

# %%
probes = study.probes(size=study.study.sizes[0])
probes[probes["step"] >= probes["step"].max() / 4].groupby(["arm", "seed"])["dt1_heldout.D"].mean()

# %% [markdown]
# ## The break of all seeds together
#
# A seed's own fit is noisy. The report fits the mean log loss of the seeds of an arm, and so does `fit`.

# %%
study.fit("baseline")

# %% [markdown]
# Any curve can be fitted; a short one has no break, and the fit says so.

# %%
steps = study.steps("baseline", study.study.sizes[0], study.study.seeds[0])
found = zslx.fit(zslx.curve(steps["step"].to_numpy(), steps["loss"].to_numpy()))
found.status, found.reason

# %% [markdown]
# ## Figures
#
# Those of the report; `figures` lists their titles. `savefig` writes one to a file.

# %%
study.figures

# %%
study.plot("Held-out loss")

# %%
study.plot("D of one step")
