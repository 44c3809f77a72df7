"""What `zslx interventions new NAME` writes: a plugin that runs at once, and its test."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from pathlib import Path

from zslx.intervention.discovery import discover, plugin_folders
from zslx.intervention.registry import RESERVED

NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")

PLUGIN = '''\
"""@NAME@: weigh each token by a power of its loss.

    weight_i = ℓ_i^power,   ℓ_i the loss of token i in nats; the trainer makes their mean 1
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zslx import Intervention, RunView, State, StepView, setting


@dataclass(frozen=True)
class @CLASS@(Intervention):
    """Weighs tokens by a power of their loss.

    This text is the card (`zslx interventions show @NAME@`), its first line the entry in the list. Say what the
    method acts on, when it does anything, and where it departs from its paper.
    """

    name = "@NAME@"  # what INTERVENTION= asks for
    family = "token_weighting"
    source = "an idea of mine"  # paper and arXiv number, where there is one
    cost = "1.00"  # step time relative to the plain step: zslx interventions bench @NAME@
    placebo = "tokens"  # its control `placebo:@NAME@`: the same weights, on other tokens of the batch
    neutral = {"power": 0.0}  # the settings at which it is the baseline, bit for bit; its test holds it to that

    # Settings: SET="@NAME@.power=0.25". Default, meaning, and what is allowed (also the range of tuning).
    power: float = setting(0.5, "power of the loss; 0 is the baseline", low=-2.0, high=2.0)

    # zslx/intervention/base.py lists the other hooks (mixture, sequence, extra_loss, lr_factor, observe, ...).
    # What the method remembers goes into `state`, what it draws comes from state["generator"]: then it resumes.
    def token_weights(self, run: RunView, view: StepView, state: State) -> Tensor:
        """Weights (B, T), not negative, from the detached losses (B, T), targets, domains, ... of the step."""
        return view.losses.clamp(min=1e-6) ** self.power
'''

TEST = '''\
"""What zslx asks of every intervention, asked of @NAME@: pytest @TEST@"""

import os
from pathlib import Path

import pytest

from zslx.testing import CHECKS, Subject

os.environ.setdefault("ZSLX_PLUGINS", str(Path(__file__).parent))


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return Subject("@NAME@", tmp_path_factory.mktemp("@NAME@"))


@pytest.mark.parametrize("check", CHECKS)
def test_@NAME@(check, subject):
    check(subject)


# Add what your method claims: weights worked out by hand on a small example, a limit, a symmetry.
'''


def write(name: str, folder: Path | None = None) -> list[Path]:
    """Write the plugin NAME.py and its test; the paths. ValueError for a bad or taken name or an existing file."""
    if why := unfit(name):
        raise ValueError(
            f"{name!r} is no name for an intervention: {why}; allowed are lower-case letters, digits and _, "
            "a letter first, such as my_idea"
        )
    if places := discover().get(name):
        raise ValueError(f"intervention {name!r} exists: {places[0].where}; choose another name")
    folder = plugin_folders()[0] if folder is None else folder.resolve()
    texts = {folder / f"{name}.py": PLUGIN, folder / f"test_{name}.py": TEST}
    for path in texts:
        if path.exists():
            raise ValueError(f"{path} exists: choose another name, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    words = {"@NAME@": name, "@CLASS@": class_name(name), "@TEST@": f"{folder.name}/test_{name}.py"}
    for path, template in texts.items():
        for word, value in words.items():
            template = template.replace(word, value)
        with path.open("x", encoding="utf-8") as file:
            file.write(template)
    return list(texts)


def unfit(name: str) -> str:
    """Why a plugin of this name could not work; empty if it could."""
    if not NAME.fullmatch(name):
        return "it has other characters, or more than 60"
    if keyword.iskeyword(name):
        return "it is a Python keyword"
    if name.startswith("test_"):
        return "files test_... are tests"
    if name in RESERVED:
        return f"it is {RESERVED[name]}"
    if importable(name):  # pytest puts the folder of a plugin's test first on the path
        return f"{name}.py would hide the Python module {name}"
    return ""


def importable(name: str) -> bool:
    if name in sys.stdlib_module_names or name in sys.modules:
        return True
    spec = importlib.util.find_spec(name)
    return bool(spec and spec.origin)  # any folder is a namespace package, and has none


def class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_") if part)
