"""What `zslx interventions new NAME --family FAMILY` writes: one small working method of each family.

scaffold.py puts the name in. docs/write-an-intervention.md shows them, and tests/unit/test_templates.py runs each.
"""
