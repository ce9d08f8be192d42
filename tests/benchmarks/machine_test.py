"""What a figure was measured on."""

import platform

import jax
import numpy as np
import pytest

from benchmarks import machine


def test_the_machine_has_no_name():
    found = machine.machine()
    assert platform.node() not in str(found)
    assert found['packages']['jax'] == jax.__version__
    assert found['cores'] >= 1
    assert found['python'] == platform.python_version()


def test_it_says_what_the_allocator_was_told(monkeypatch):
    monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')
    assert machine.machine()['allocator'] == 'glibc.malloc.hugetlb=1'
    monkeypatch.delenv('GLIBC_TUNABLES')
    assert machine.machine()['allocator'] == ''


def test_the_median_call_is_timed_after_one_to_warm_up():
    calls = []
    seconds = machine.median_seconds(lambda: calls.append(len(calls)), total=0.0)
    assert len(calls) == 4
    assert seconds >= 0


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_matrix_rate_is_a_number(dtype):
    rate = machine.matmul_rate(dtype, size=32, seconds=0.0)
    assert np.isfinite(rate)
    assert rate > 0
