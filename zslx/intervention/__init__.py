"""What an intervention is, and how the interventions of a run act as one.

Read base (the hooks that every family shares), gradient_method (what gradient surgery adds), hooks (the table of hooks
and their checks), composed (the interventions of one run), placebo; then class_text, discovery and registry (found and
loaded by name), from_text (how they are imported), scaffold and templates (what `zslx interventions new` writes).
Training and what stands on it import this.
"""
