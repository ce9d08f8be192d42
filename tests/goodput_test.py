"""Every second of a run is given to one phase."""

import contextlib
import threading
import time

import hypothesis
import jax
import jax.numpy as jnp
import pytest
from hypothesis import strategies as st

from epa_jax.goodput import PHASES, CompileTime, Ledger


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 100.0
        self.compiled = 0.0

    def __call__(self):
        return self.now

    def compiling(self):
        return self.compiled

    def run(self, seconds, compiling=0.0):
        self.now += seconds
        self.compiled += compiling


def ledger_of(clock):
    return Ledger(clock.compiling, clock)


def test_phases_within_phases_by_hand():
    clock = Clock()
    ledger = ledger_of(clock)
    clock.run(3)
    with ledger.during('step'):
        clock.run(7, compiling=4)
        with ledger.during('evaluation'):
            assert ledger.phase == 'evaluation'
            clock.run(2, compiling=1)
        clock.run(5)
        with contextlib.suppress(KeyError), ledger.during('save'):
            clock.run(1)
            raise KeyError  # an error ends a phase too
        with ledger.waiting(lambda: True):
            clock.run(0.5)
        with ledger.waiting(lambda: False):
            clock.run(0.25)
    clock.run(6)
    expected = {'other': 9, 'step': 8.5, 'compile': 5, 'evaluation': 1, 'save': 1}
    assert ledger.totals() == dict.fromkeys(PHASES, 0.0) | expected | {'input': 0.25}
    assert ledger.goodput() == pytest.approx(8.5 / 24.75)
    assert ledger.phase == 'other'


@hypothesis.given(
    st.lists(
        st.tuples(
            st.sampled_from(PHASES),
            st.floats(0, 1e5),
            st.floats(0, 2),
            st.lists(st.tuples(st.sampled_from(PHASES), st.floats(0, 1e5)), max_size=3),
        ),
        max_size=8,
    )
)
def test_the_seconds_add_up_to_the_wall_time(story):
    clock = Clock()
    ledger = ledger_of(clock)
    for phase, seconds, share, inner in story:
        with ledger.during(phase):
            clock.run(seconds, compiling=share * seconds)  # also more than passed
            for name, more in inner:
                with ledger.during(name):
                    clock.run(more)
    totals = ledger.totals()
    assert sum(totals.values()) == pytest.approx(clock.now - 100.0)
    assert all(value >= 0 for value in totals.values())
    assert 0 <= ledger.goodput() <= 1 + 1e-9


def test_compiling_is_heard_once_and_only_on_this_thread():
    compiling = CompileTime()
    try:
        began = time.monotonic()
        inner = jax.jit(lambda x: jnp.sin(x) * 1.25)
        jax.jit(lambda x: inner(x) + inner(x * 3.5))(jnp.ones(3)).block_until_ready()
        elapsed = time.monotonic() - began
        heard = compiling()
        assert 0.2 * elapsed < heard <= elapsed
        jax.jit(lambda x: x)  # nothing is compiled before the call
        assert compiling() == heard
        other = threading.Thread(target=lambda: jax.jit(lambda x: x - 2.75)(jnp.ones(5)))
        other.start()
        other.join()
        assert compiling() == heard
    finally:
        compiling.close()
    jax.jit(lambda x: x * 7.125)(jnp.ones(7)).block_until_ready()
    assert compiling() == heard


def test_nested_events_are_counted_once(monkeypatch):
    compiling = CompileTime()
    compiling.close()
    event = '/jax/core/compile/jaxpr_trace_duration'
    # [1, 3], then [2.5, 3.5] by a clock a bit off, [5, 6], and [4, 8] around it
    for now, duration in ((3, 2), (3.5, 1), (6, 1), (8, 4)):
        monkeypatch.setattr(time, 'monotonic', lambda now=now: now)
        compiling._hear(event, duration)
    compiling._hear('/jax/checkpoint/write', 100.0)
    assert compiling() == pytest.approx(2.5 + 4)
