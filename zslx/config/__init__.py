"""The settings of a run: frozen groups of fields, named sizes and presets, dotted overrides. Torch-free.

Read fields (one setting), groups (one dataclass a concern), run_config (`Config`, which holds one of each), then sizes
(hugging_face: architectures of transformers) and presets. Everything else may import this package; it imports none of
zslx.
"""
