"""`zslx data`: prepare a text before a study needs it, and show what is prepared."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zslx.text.corpus import Corpus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    prepare = actions.add_parser(
        "prepare",
        help="tokenise a text into the cache, or go on with it; print its domains",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Tokenise a text into the cache, so that runs only open it. What is prepared is opened; what was\n"
        "interrupted goes on.\n\n"
        "examples:\n"
        "  zslx data prepare c4 data.max_tokens=1e9\n"
        "  zslx data prepare hf:owner/name:config:split data.domain_column=source data.tokenizer=gpt2\n"
        "  zslx data prepare 'hf:shards/*.parquet' data.text_column=body\n"
        "  zslx data prepare notes data.vocab_size=4096",
    )
    prepare.add_argument("text", help="a named corpus (c4, fineweb, dolma), hf:PLACE, or text files: a folder or glob")
    prepare.add_argument("settings", nargs="*", metavar="data.key=value", help="zslx train --keys lists them")
    actions.add_parser("show", help="what the cache holds: each text's folder, domains, tokens and vocabulary")


def run(args: argparse.Namespace) -> int:
    return run_prepare(args) if args.action == "prepare" else run_show()


def run_prepare(args: argparse.Namespace) -> int:
    from zslx.config.corpora import CORPORA
    from zslx.config.run_config import Config, parse_overrides
    from zslx.text.token_cache import corpus_of

    if strange := [item for item in args.settings if not item.startswith("data.")]:
        raise ValueError(f"{strange[0]!r}: allowed are settings of the text, such as data.max_tokens=1e9")
    key = "data" if args.text in CORPORA else "data.path"
    config = parse_overrides(Config(), [f"{key}={args.text}", *args.settings])
    print("\n".join(described(corpus_of(config.data))))
    return 0


def run_show() -> int:
    from zslx.text.corpus import DamagedCache, load
    from zslx.text.token_cache import cache_folder

    root = cache_folder()
    folders = [f for f in sorted(root.glob("text-*")) if f.is_dir()]
    for folder in folders:
        try:
            print("\n".join(described(load(folder))))
        except FileNotFoundError:
            print(f"{folder}: begun and not finished; the command that began it goes on")
        except DamagedCache as damage:
            print(f"{damage}; it will be prepared again")
        print()
    if not folders:
        print(f"{root} holds no text")
    return 0


def described(corpus: Corpus) -> list[str]:
    """Lines that say what a prepared text is."""
    streams = (*corpus.train, *corpus.heldout)
    of = {key: value for key, value in corpus.data_set.items() if key != "files"}
    lines = [str(corpus.folder)]
    if of:
        lines.append("  data set    " + ", ".join(f"{key} {value}" for key, value in of.items()))
    lines += [
        f"  vocabulary  {corpus.vocab_size:,} entries, {streams[0].dtype}; token {corpus.end_of_text} ends a document",
        f"  tokens      {sum(map(len, streams)):,}, {sum(s.nbytes for s in streams) / 1e6:,.1f} MB",
        f"  hash        {corpus.hash[:16]}",
        f"  {'domain':24} {'documents':>12} {'training tokens':>18} {'held-out tokens':>16} {'MB of text':>12}",
    ]
    for domain in corpus.about:
        train, heldout = domain["train"], domain["heldout"]
        lines.append(
            f"  {domain['name']:24} {train['documents'] + heldout['documents']:>12,} {train['tokens']:>18,} "
            f"{heldout['tokens']:>16,} {(train['bytes'] + heldout['bytes']) / 1e6:>12,.1f}"
        )
    return lines
