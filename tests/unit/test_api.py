"""The public names: each loads, is described, and stands in docs/api.md; importing zslx loads none of them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

import zslx
from zslx.places import ROOT


@pytest.fixture(scope="module")
def api(docs_script: Callable[[str], ModuleType]) -> ModuleType:
    return docs_script("api")


def test_every_name_loads_and_says_what_it_is():
    assert sorted(zslx.__all__) == sorted(zslx.HOMES) and set(zslx.__all__) <= set(dir(zslx))
    for name in zslx.__all__:
        value = getattr(zslx, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert len((inspect.getdoc(value) or "").split()) > 5, name


def test_the_page_is_up_to_date(api: ModuleType):
    assert api.PAGE.read_text(encoding="utf-8") == api.page(), "run: python docs/api.py"


def test_help_teaches_with_an_example_and_loads_no_torch():
    code = "import sys, zslx; assert 'zslx.train(config' in zslx.__doc__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'zslx' has no attribute 'no_such'"):
        _ = zslx.no_such


def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it():
    code = "import sys, zslx; sys.modules['pandas'] = None; zslx.load_study"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    told = "ImportError: zslx.load_study needs the package 'pandas': pip install 'zslx[sweep]'"
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == told
