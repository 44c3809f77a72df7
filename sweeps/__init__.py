"""Studies as Ray Tune trials; the only package that imports Ray.

Read study (what is compared; its arms and planned trials), ledger (what is finished), earlier (who looked before),
rounds (what comes first), trial (one trial, knows no Ray), tune (Ray), ranks (a trial across nodes), estimate, progress
and live, wandb_log; tune_rate, or search with arm_search, halving, failed_points and search_storage, for what comes
before a comparison; commands plans what `zslx sweep` is asked for, carry_out trains and compares it; session does so
for `zslx.sweep`.
"""
