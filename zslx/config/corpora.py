"""Named corpora of the hub: `data=c4` is short for the settings below. Nothing here reads them."""

from __future__ import annotations

# Each is taken in the order of its documents, as much as data.max_tokens says.
CORPORA: dict[str, dict[str, str]] = {
    "c4": {"path": "hf:allenai/c4:en"},
    # A sample of all crawls: the whole set is 15 trillion tokens, crawl after crawl.
    "fineweb": {"path": "hf:HuggingFaceFW/fineweb:sample-10BT"},
    # allenai/dolma itself is a script, which no current version of `datasets` runs. This is a sample of Dolma 1.7
    # (30 billion tokens, ODC-BY) as Parquet files.
    "dolma": {"path": "hf:emozilla/dolma-v1_7-30B"},
}


def corpus_settings(name: str) -> dict[str, str]:
    """The settings of `data` that a name stands for."""
    if name not in CORPORA:
        raise ValueError(
            f"data={name!r}: allowed are {', '.join(CORPORA)}; any other text is given as data.path, "
            "a folder or glob of text files, or hf:PLACE for a data set"
        )
    return CORPORA[name]
