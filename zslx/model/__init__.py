"""The transformer, its per-token losses, and the default optimizer and schedule; models of transformers.

Read transformer, losses, weights, optimization; then hugging_face and export. Imports settings and batches only.
"""
