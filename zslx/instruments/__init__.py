"""What is measured of a run, while it trains or afterwards; never changes training.

Read loss_interference (D and M), domain_interference, heldout, measuring_steps (when), gradient_interference,
rank_decomposition, and during_training, which puts them together for the loop.
"""
