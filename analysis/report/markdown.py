"""Blocks as Markdown, which GitHub and wandb show: texts, answers and tables. Names are text, whatever they hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from analysis.report.blocks import Answer, Block, Heading, Table, Text
from zslx.printable import one_line

SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$!&])")


def render(blocks: Sequence[Block]) -> str:
    """The blocks one after the other; figures are left out."""
    return "\n\n".join(part for block in blocks for part in parts(block)) + "\n"


def parts(block: Block) -> Iterator[str]:
    if isinstance(block, Heading):
        yield f"## {escaped(block.text)}"
    elif isinstance(block, Answer):
        yield f"# {escaped(block.question)}"
        yield from answer(block)
    elif isinstance(block, Text):
        yield "\n".join(f"    {line}" for line in block.text.splitlines()) if block.mono else escaped(block.text)
    elif isinstance(block, Table):
        yield table(block)


def answer(block: Answer) -> list[str]:
    """The word, the sentence, and what it rests on."""
    word = f"**{escaped(block.word)}**" + (" (exploratory)" if block.exploratory else "")
    return [word, *map(escaped, (block.sentence, *block.notes))]


def table(block: Table) -> str:
    """A table with its caption."""
    lines = pipes(tuple(map(escaped, block.columns)), [tuple(map(escaped, row)) for _, row in block.grouped()])
    return f"{lines}\n\n{escaped(block.caption)}" if block.caption else lines


def pipes(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """A text on one line that Markdown shows as it is."""
    return SPECIAL.sub(r"\\\1", one_line(text))
