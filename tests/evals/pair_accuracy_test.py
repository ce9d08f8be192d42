"""RewardBench's sections against its published numbers of prompts and hand counts."""

import math

import numpy as np
import pytest

from epa_jax.evals.pair_accuracy import SECTIONS, Accuracy, by_section, by_subset, score

# prompts of each subset in the published data set, and those with a right answer here
COUNTS = {
    'alpacaeval-easy': (100, 90),
    'alpacaeval-length': (95, 60),
    'alpacaeval-hard': (95, 80),
    'mt-bench-easy': (28, 28),
    'mt-bench-med': (40, 25),
    'mt-bench-hard': (37, 20),
    'llmbar-natural': (100, 70),
    'llmbar-adver-neighbor': (134, 40),
    'llmbar-adver-GPTInst': (92, 30),
    'llmbar-adver-GPTOut': (47, 25),
    'llmbar-adver-manual': (46, 10),
    'refusals-dangerous': (100, 95),
    'refusals-offensive': (100, 99),
    'xstest-should-refuse': (154, 140),
    'xstest-should-respond': (250, 200),
    'donotanswer': (136, 60),
    'math-prm': (447, 300),
    **{
        f'hep-{name}': (164, 130 + i)
        for i, name in enumerate(('cpp', 'go', 'java', 'js', 'python', 'rust'))
    },
}


def pairs(counts):
    """Margins of +-1, and their subsets, in no order."""
    margins = [1.0 if i < right else -1.0 for n, right in counts for i in range(n)]
    return np.array(margins)


def measured(counts):
    names = [name for name, (size, _) in counts.items() for _ in range(size)]
    order = np.random.default_rng(0).permutation(len(names))
    return by_subset(pairs(counts.values())[order], [names[i] for i in order])


def test_sections_weigh_subsets_by_prompts_and_mathematics_as_code():
    subsets = measured(COUNTS)
    assert {name: found.pairs for name, found in subsets.items()} == {
        name: size for name, (size, _) in COUNTS.items()
    }
    found = by_section(subsets)
    assert list(found) == list(SECTIONS)
    assert found['Chat'].value == pytest.approx((90 + 60 + 80 + 28 + 25) / 358)
    assert found['Chat Hard'].value == pytest.approx((20 + 70 + 40 + 30 + 25 + 10) / 456)
    assert found['Safety'].value == pytest.approx((95 + 99 + 140 + 200 + 60) / 740)
    code = sum(130 + i for i in range(6)) / 984
    assert found['Reasoning'].value == pytest.approx((300 / 447 + code) / 2)
    assert found['Reasoning'].pairs == 447 + 984
    mean = np.mean([section.value for section in found.values()])
    assert score(found).value == pytest.approx(mean)


def test_errors_are_those_of_independent_subsets():
    """The spread of the score over data drawn anew is what is said of one of them."""
    rng = np.random.default_rng(1)
    rates = {name: right / size for name, (size, right) in COUNTS.items()}
    values, errors = [], []
    for _ in range(400):
        drawn = {
            name: (size, int(rng.binomial(size, rates[name])))
            for name, (size, _) in COUNTS.items()
        }
        found = score(by_section(measured(drawn)))
        values.append(found.value)
        errors.append(found.error)
    assert np.std(values) == pytest.approx(np.mean(errors), rel=0.1)


def test_a_tie_is_wrong_and_counted():
    found = by_subset(np.array([1.0, 0.0, -1.0, 2.0]), ['a', 'a', 'a', 'b'])
    right = np.array([1.0, 0.0, 0.0])
    assert found['a'] == Accuracy(1 / 3, right.std(ddof=1) / math.sqrt(3), 3, 1)
    assert found['b'].value == 1
    assert math.isnan(found['b'].error)
    assert '1 tie' in str(found['a'])
    assert '±' not in str(found['b'])


def test_other_subsets_are_sections_of_their_own_and_not_in_the_score():
    names = ['mine', 'math-prm', 'math-prm', 'hep-mine']
    found = by_section(by_subset(np.array([1.0, 1.0, -1.0, 1.0]), names))
    assert {name: section.value for name, section in found.items()} == {
        'Reasoning': 0.5,
        'mine': 1,
        'hep-mine': 1,
    }
    assert score(found).value == 0.5
    assert score({'mine': found['mine']}) is None


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match='no numbers'):
        by_subset(np.array([np.nan]), ['a'])
