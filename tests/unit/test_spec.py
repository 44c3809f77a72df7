"""Specs are read in one place, and written in one spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zslx.config.spec import Part, Spec, one_spelling

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(lambda name: name != "none")
PARTS = st.builds(Part, NAMES, st.booleans())


@given(st.lists(PARTS, min_size=1, max_size=4))
def test_a_spec_is_what_it_spells(parts):
    spec = Spec(tuple(parts))
    assert Spec.parse(str(spec)) == spec
    spaced = " + ".join(f" placebo : {p.name} " if p.placebo else f" {p.name} " for p in parts)
    assert Spec.parse(spaced) == spec and one_spelling(spaced) == str(spec)
    assert spec.names == [p.name for p in parts] and not any(p.placebo for p in spec.plain.parts)


@pytest.mark.parametrize("text", ["", " ", "a+", "+a", "placebo:", "a++b", "none+a", "placebo:none+a", None, 3])
def test_what_is_no_spec_is_refused_by_name(text):
    with pytest.raises(ValueError, match="intervention"):
        Spec.parse(text)
