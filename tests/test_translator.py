import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.cohort import Cohort
from lib.phantom import Phantom
from lib.translator import preview_due, translated


@given(st.integers(1, 500), st.integers(0, 20))
def test_as_many_previews_as_asked_for_where_there_are_so_many_steps(steps, previews):
    due = [step for step in range(steps) if preview_due(step, steps, previews)]
    assert len(due) == min(previews, steps)
    assert not due or due[-1] == steps - 1


@pytest.mark.parametrize("generator", ["1234567890123456", "12e4567890123456", "00ab567890123456"])
def test_the_hash_of_the_generators_patients_stays_a_string(tmp_path, generator):
    sources = Phantom(patients=6, size=16, aff_share=0.4).cohort().select(label="NFF")
    made = translated(sources, "AFF", "negative", lambda x: -x, batch=4, generator=generator)
    made.save(tmp_path)
    assert set(Cohort.load(tmp_path).table.generator) == {generator}
    untrained = translated(made, "NFF", "negative", lambda x: -x, batch=4)
    assert "generator" not in untrained.table and "generator" not in sources.table
