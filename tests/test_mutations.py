"""Each text that the mutation check replaces exists in the code."""

from __future__ import annotations

import pytest
from mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_what_a_mutation_changes_is_there(mutation: Mutation) -> None:
    for file, old, _ in mutation.changes:
        assert old in (ROOT / file).read_text(), file
