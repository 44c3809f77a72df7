"""What the source text of classes says, read without importing them. Torch-free."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from zslx.places import ROOT

UNREADABLE = (SyntaxError, ValueError, TypeError, RecursionError, OSError)  # what reading and parsing a file may raise


def class_nodes(path: Path) -> list[ast.ClassDef]:
    stat = path.stat()
    tree = _parsed(path, (stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return [node for node in tree.body if isinstance(node, ast.ClassDef)]


@cache
def _parsed(path: Path, stamp: tuple[int, int, int]) -> ast.Module:
    """The syntax tree of a file; `stamp` tells its versions apart."""
    return ast.parse(path.read_text(encoding="utf-8"), path.name)


def literal(node: ast.expr) -> Any:
    """The value of a literal that JSON can hold; ValueError or TypeError for any other expression."""
    value = ast.literal_eval(node)
    json.dumps(value)
    return value


@cache
def literals(node: ast.ClassDef) -> Mapping[str, Any]:
    """Class attributes set to literals."""
    values = {}
    for item in node.body:
        if isinstance(item, ast.Assign) and len(item.targets) == 1:
            target, value = item.targets[0], item.value
        elif isinstance(item, ast.AnnAssign) and item.value is not None:
            target, value = item.target, item.value
        else:
            continue
        if isinstance(target, ast.Name):
            with suppress(*UNREADABLE):
                values[target.id] = literal(value)
    return values


@cache
def shipped_placebos() -> Mapping[str, bool]:
    """Whether a placebo exists, of each intervention that comes with zslx, by name. A class that says nothing of it has
    what its bases say."""
    folders = (ROOT / "zslx" / "intervention").glob("*.py"), (ROOT / "interventions").glob("*/*.py")
    nodes = {node.name: node for paths in folders for path in sorted(paths) for node in class_nodes(path)}

    def placebo(node: ast.ClassDef) -> Any:
        if "placebo" in literals(node):
            return literals(node)["placebo"]
        bases = (nodes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in nodes)
        return next((found for found in map(placebo, bases) if found is not None), None)

    return {literals(n)["name"]: placebo(n) is not None for n in nodes.values() if literals(n).get("name")}
