"""Names of any origin as one part of a path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zslx.slug import slug


@given(st.text(), st.integers(7, 80))
def test_a_slug_is_one_safe_part_of_a_path(name: str, width: int):
    made = slug(name, width)
    assert made.isascii() and 0 < len(made) <= width and "/" not in made and not made.startswith((".", "-"))


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("<script>", "script"),
        ("pcgrad+cosine", "pcgrad-cosine"),
        ("v1.5_a", "v1.5_a"),
        ("😀", "unnamed"),
        ("", "unnamed"),
    ],
)
def test_slugs(name: str, made: str):
    assert slug(name) == made
