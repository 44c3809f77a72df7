"""From documents to batches of token ids.

Read documents and builtin (where text comes from), heldout_split, tokenizer, token_cache (memory-mapped, prepared
once), token_frequency, permutation, and loader (which batch comes at which step). May be imported by all that follows;
knows no model.
"""
