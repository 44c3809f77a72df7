"""Draws the packages and who imports whom into ARCHITECTURE.md, from the imports themselves.

    python docs/architecture.py

An arrow leads from a package to one that it imports; an arrow that a longer way already implies is left out.
tests/invariants/test_imports.py checks that the picture is up to date and that there are no circles.
"""

from __future__ import annotations

import ast
from pathlib import Path

import zslx

ROOT = Path(__file__).parent.parent
# Lowest first: a package imports only those before it.
LAYERS = (
    "zslx.config", "zslx.text", "zslx.model", "zslx.gradients", "zslx.intervention", "zslx.instruments", "zslx.runs",
    "zslx.training", "zslx.distributed", "zslx.deceleration", "zslx.probing", "zslx.tracking", "zslx.testing",
    "interventions", "analysis.study", "analysis.inference", "analysis.report", "analysis.archive",
    "analysis.leaderboard", "analysis.simulation", "analysis.commands", "sweeps", "zslx.commands",
)  # fmt: skip
BY_NAME = ("zslx.commands",)  # imports commands of other packages by name, when they are asked for
START, END = "<!-- packages: made by docs/architecture.py -->", "<!-- end of packages -->"


def package(module: str) -> str | None:
    """The package of LAYERS that a module belongs to; None for small modules that all share."""
    return next((p for p in LAYERS if module == p or module.startswith(p + ".")), None)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Full names that a file imports anywhere, for type checking too; a name of `zslx` itself is that module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            if node.module == "zslx":  # a public name stands for the module that defines it
                names = {zslx.HOMES.get(alias.name, f"zslx.{alias.name}") for alias in node.names}
            found |= {n if _is_module(n) else node.module for n in names}
    return found


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def sources() -> list[Path]:
    """Our modules but for the templates, which are other people's plugins."""
    files = [p for top in ("zslx", "interventions", "sweeps", "analysis") for p in sorted((ROOT / top).rglob("*.py"))]
    return [p for p in files if p.parent.name != "templates" and p != ROOT / "zslx" / "__init__.py"]


def edges() -> dict[str, set[str]]:
    """Package to the packages that it imports."""
    found: dict[str, set[str]] = {p: set() for p in LAYERS}
    for path in sources():
        own = package(module_of(path))
        others = {package(name) for name in imported(path)} - {own, None}
        if own:
            found[own] |= {p for p in others if p}
    return found


def picture() -> str:
    arrows = edges()

    def reaches(a: str, b: str) -> bool:
        return any(c == b or reaches(c, b) for c in arrows[a])

    lines = ["```mermaid", "flowchart TD"]
    lines += [f"    {p}" for p in reversed(LAYERS)]
    for a in reversed(LAYERS):
        for b in sorted(arrows[a], key=LAYERS.index, reverse=True):
            if not any(c != b and reaches(c, b) for c in arrows[a]):
                lines.append(f"    {a} --> {b}")
    return "\n".join([*lines, "```"])


def main() -> None:
    path = ROOT / "ARCHITECTURE.md"
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(START)
    tail = rest.split(END)[1]
    path.write_text(f"{head}{START}\n{picture()}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
