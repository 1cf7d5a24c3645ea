from hypothesis import given
from hypothesis import strategies as st

from lib.translator import preview_due


@given(st.integers(1, 500), st.integers(0, 20))
def test_as_many_previews_as_asked_for_where_there_are_so_many_steps(steps, previews):
    due = [step for step in range(steps) if preview_due(step, steps, previews)]
    assert len(due) == min(previews, steps)
    assert not due or due[-1] == steps - 1
