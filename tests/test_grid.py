"""A sample of the grid of modes, and docs/picture-modes.md agrees with it."""

from __future__ import annotations

import mode_grid
import pytest
from mode_grid import judge, legacy, odd_tiffs, others, packed_tiffs, plain_tiffs, pngs

# Of these, one file of so many is read; `python tests/mode_grid.py` reads them all.
SHARES = {plain_tiffs: 23, packed_tiffs: 53}


@pytest.mark.parametrize("make", mode_grid.MAKERS, ids=lambda make: make.__name__)
def test_each_way_to_store_pixels_is_read_rightly_or_refused_as_the_page_says(make) -> None:
    rows, refusals = mode_grid.read_tables()
    cases = make(SHARES[make]) if make in SHARES else make()
    outcomes = {case.name: (judge(case), rows[case.group]) for case in cases}
    assert not {name: outcome.wrong for name, (outcome, _) in outcomes.items() if outcome.wrong}
    for name, (outcome, row) in outcomes.items():
        if outcome.refusal:
            assert row.refused, name
            assert outcome.refusal in refusals, name
        else:
            assert row.read, name
            assert outcome.off <= row.off + 0.05, name


def test_the_page_counts_what_is_read_as_the_grid_does() -> None:
    rows, refusals = mode_grid.read_tables()
    cases = [case for make in (odd_tiffs, pngs, others, legacy) for case in make()]
    counted = {
        group: (sum(case.rgb is not None for case in members), sum(case.rgb is None for case in members))
        for group, members in ((name, [case for case in cases if case.group == name]) for name in rows)
        if members
    }
    assert {group: (rows[group].read, rows[group].refused) for group in counted} == counted
    assert len(refusals) <= sum(row.refused for row in rows.values())
