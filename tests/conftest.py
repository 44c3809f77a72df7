"""What the tests share: a text cache of their own, and the tiny runs of zslx.testing."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zslx.places import ROOT


def pytest_configure() -> None:
    """No test asks the hub. And a suite started in the background of a shell ignores Ctrl-C, as would each process that
    a test interrupts."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first: at the end, those with short ones keep both processes at work."""
    long = {item.path for item in items if item.get_closest_marker("medium")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def docs_script() -> Callable[[str], ModuleType]:
    """Loads a script of docs/ by its name; none of them is a module of a package."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Iterator[Path]:
    """The text cache (ZSLX_CACHE) for as long as the tests run; no plugin folder of the user's."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "text-cache"  # one for all workers
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("ZSLX_")]:
            patch.delenv(name)
        patch.setenv("ZSLX_CACHE", str(folder))
        yield folder


@pytest.fixture
def tiny(cache: Path) -> Callable[..., Any]:
    """The configuration of a tiny run, with some keys changed: tiny(**{"optim.lr": 1.0})."""
    from zslx.testing.subject import plain

    return lambda **values: plain(values)


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of plugins, searched as the user's own: `plugins` in the working directory."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    monkeypatch.delenv("ZSLX_PLUGINS", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder
