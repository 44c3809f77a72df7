"""From documents to batches of token ids.

Read documents and builtin (where text comes from), heldout_split, tokenizer, corpus (a prepared text), token_cache
(memory-mapped, prepared once), data_set, token_chunks and data_set_tokens (texts that `datasets` reads, however
large), token_frequency, permutation, and loader (which batch comes at which step). May be imported by all that
follows; knows no model.
"""
