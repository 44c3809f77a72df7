"""Who may import whom, read from the sources; and what must load without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from zslx.places import ROOT

PACKAGES = ("zslx", "interventions", "sweeps", "analysis")
# What each may import of ours, beside itself.
ALLOWED = {"zslx": set(), "interventions": {"zslx"}, "sweeps": {"zslx", "analysis"}, "analysis": {"zslx"}}
# Heavy packages, and where they may be imported at the top of a file.
HEAVY = (
    *("ray", "wandb", "datasets", "transformers", "matplotlib", "torchjd", "rich", "jinja2"),
    *("optuna", "tensorboardX", "pandas"),
)
TORCH_FREE = (
    "commands.cli",
    "config.presets",
    "config.run_config",
    "deceleration.binning",
    "deceleration.fit",
    "deceleration.residual_noise",
    "deceleration.slopes",
    "progress",
    "runs.records",
)


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path, top_level: bool = False) -> set[str]:
    """Full names of the modules that a file imports, anywhere or when it is itself imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"{path}:{child.lineno}: a relative import hides who imports whom"
                found.update({child.module or ""} | {f"{child.module}.{alias.name}" for alias in child.names})
            later = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and top_level
            never = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if not later and not never:
                visit(child)

    visit(tree)
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_who_imports_whom(package: str):
    for path in sources(package):
        ours = {name.partition(".")[0] for name in imports(path)} & set(PACKAGES) - {package}
        assert ours <= ALLOWED[package], f"{path} imports {ours}"


@pytest.fixture(scope="module")
def architecture(docs_script: Callable[[str], ModuleType]) -> ModuleType:
    return docs_script("architecture")


def test_a_package_imports_only_those_below_it(architecture: ModuleType):
    order = architecture.LAYERS
    wrong = {
        f"{a} imports {b}"
        for a, others in architecture.edges().items()
        for b in others
        if order.index(b) > order.index(a)
    }
    assert not wrong


def test_every_package_has_its_place_and_says_what_it_is_for(architecture: ModuleType):
    for path in architecture.sources():
        if path.name == "__init__.py":
            assert len((ast.get_docstring(ast.parse(path.read_text())) or "").split()) >= 5, path
            module = architecture.module_of(path)
            assert architecture.package(module) or module == "analysis", f"{module} is not in docs/architecture.py"


def test_no_module_imports_itself_by_a_way_round(architecture: ModuleType):
    """Circles between modules, imports for type checking included; packages by name at run time are none."""
    graph = {
        architecture.module_of(path): {
            name for name in architecture.imported(path) if name.partition(".")[0] in PACKAGES and name != "zslx"
        }
        for path in architecture.sources()
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_picture_is_up_to_date(architecture: ModuleType):
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn = text.split(architecture.START)[1].split(architecture.END)[0].strip()
    assert drawn == architecture.picture(), "run: python docs/architecture.py"


def test_only_sweeps_imports_ray():
    for package in PACKAGES:
        for path in sources(package):
            if any(name.partition(".")[0] == "ray" for name in imports(path)):
                assert package == "sweeps", path


def test_heavy_packages_are_imported_where_used():
    for package in PACKAGES:
        for path in sources(package):
            heavy = {name.partition(".")[0] for name in imports(path, top_level=True)} & set(HEAVY)
            if heavy:
                assert package in ("sweeps", "analysis"), f"{path} imports {heavy} at its top"


def test_the_other_packages_are_named_in_the_command_line_alone():
    """No file of zslx but cli.py (commands), registry.py (interventions) and the list of public names does."""
    for path in sources("zslx"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        named = {t for t in texts if t.startswith(("sweeps.", "analysis.", "interventions.")) and " " not in t}
        assert not named or path.name in ("cli.py", "registry.py") or path == ROOT / "zslx" / "__init__.py", path


def test_analysis_reaches_no_torch():
    """Neither directly nor through the modules of zslx that it imports."""
    waiting = [(p, str(p.relative_to(ROOT))) for p in sources("analysis")]
    seen = set()
    while waiting:
        path, chain = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        found = imports(path, top_level=True)
        assert not any(name.partition(".")[0] == "torch" for name in found), chain
        for name in found:
            module = ROOT.joinpath(*name.split("."))
            for file in (module.with_suffix(".py"), module / "__init__.py"):
                if name.partition(".")[0] in PACKAGES and file.is_file():
                    waiting.append((file, f"{chain} -> {name}"))


def test_torch_free_modules_load_without_torch():
    names = "; ".join(f"import zslx.{name}" for name in TORCH_FREE)
    code = f"import sys; import zslx; {names}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["analysis", "sweeps", "interventions"])
def test_a_folder_that_hides_ours_is_refused_with_both_paths(package: str, tmp_path: Path):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("")
    commands = {"analysis": "compare results", "sweeps": "sweep none", "interventions": "interventions list"}
    arguments = [sys.executable, "-m", "zslx", *commands[package].split()]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert str(tmp_path / package) in done.stderr and str(ROOT / package) in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1
