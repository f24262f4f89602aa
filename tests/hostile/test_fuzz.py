"""The fuzzing targets on their seeds and on Hypothesis' mutations; atheris goes further."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.targets import NASTY, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_valid_seeds_are_accepted(name, tmp_path):
    """A target whose reader refuses a valid seed at its first field fuzzes nothing behind it."""
    target = TARGETS[name](tmp_path)
    assert target.valid
    for seed in target.valid:
        assert target.read(seed) is not None, seed[:200]


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name, tmp_path):
    target = TARGETS[name](tmp_path)
    for seed in target.seeds:
        target.check(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name, tmp_path):
    target = TARGETS[name](tmp_path)
    edit = st.tuples(
        st.floats(0, 1),
        st.integers(0, 9),
        st.one_of(st.sampled_from(NASTY), st.binary(max_size=8)),
    )

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(seed=st.sampled_from(target.seeds), edits=st.lists(edit, min_size=1, max_size=4))
    def run(seed: bytes, edits: list[tuple[float, int, bytes]]) -> None:
        content = seed
        for position, removed, added in edits:
            at = round(position * len(content))
            content = content[:at] + added + content[at + removed :]
        target.check(content)

    run()
