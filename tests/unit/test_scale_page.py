"""docs/scale.md says what the code that counts says."""

from __future__ import annotations


def test_the_table_of_costs_is_up_to_date(docs_script) -> None:
    scale = docs_script("scale")
    assert scale.written() == scale.PAGE.read_text(encoding="utf-8"), "run python docs/scale.py"
    sizes = {name: model.parameters(50304).total for name, model in scale.models().items()}
    assert abs(sizes["144M"] / 143_785_984 - 1) < 1e-9
    # OLMo-1B and OLMo-7B as published: 1.18 and 6.89 billion.
    assert abs(sizes["1.2B"] / 1.18e9 - 1) < 0.01 and abs(sizes["6.9B"] / 6.89e9 - 1) < 0.01
