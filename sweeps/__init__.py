"""Studies as Ray Tune trials; the only package that imports Ray.

Read study (what is compared), ledger (what is finished), trial (one trial, knows no Ray), tune (Ray), estimate,
progress, wandb_log; commands puts them together for `zslx sweep`, session for `zslx.sweep`.
"""
