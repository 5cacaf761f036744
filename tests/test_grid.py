"""Every 25th picture of the grid of modes; `python tests/mode_grid.py` reads them all."""

from __future__ import annotations

import itertools

import mode_grid
import pytest

SHARES = {
    mode_grid.plain_tiffs: 25,
    mode_grid.packed_tiffs: 53,
    mode_grid.odd_tiffs: 2,
    mode_grid.pngs: 1,
    mode_grid.others: 1,
    mode_grid.legacy: 1,
}


@pytest.mark.parametrize("make", SHARES, ids=lambda make: make.__name__)
def test_each_way_to_store_pixels_is_read_rightly_or_refused(make):
    faults = {
        case.name: wrong
        for case in itertools.islice(make(), 0, None, SHARES[make])
        if (wrong := mode_grid.judge(case) or mode_grid.compare_independently(case))
    }
    assert not faults
