"""What the intervals of pooled fits cover: levels and paired differences, from 3 to 10 seeds, with planted effects.

`python -m benchmarks.fit pooled` prints the same counts; the table stands in benchmarks/README.md.
"""

import pytest

from zslx.deceleration.planted_curves import pooled_coverage

STUDIES = 200


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 6, 10])
def test_intervals_over_seeds_cover_90_to_99_percent(seeds):
    found = pooled_coverage(seeds, STUDIES)
    for what in (found.levels, found.differences):
        for measure, share in what.items():
            assert 0.90 <= share <= 0.995, (measure, found)
    assert found.identified >= 0.9
