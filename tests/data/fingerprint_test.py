import dataclasses

import numpy as np
import pytest

from epa_jax.config import ConfigError
from epa_jax.data.fingerprint import DATA, check_data, data_fingerprint
from tests.data.token_examples import example

EXAMPLES = [example([1, 2], [[3], [4, 5]]), example([6], [[7], [8]])]


def changed(**fields):
    return [dataclasses.replace(EXAMPLES[0], **fields), EXAMPLES[1]]


@pytest.mark.parametrize(
    'other',
    [
        [EXAMPLES[::-1]],
        [EXAMPLES[:1]],
        [EXAMPLES[:1], EXAMPLES[1:]],
        [changed(prompt_ids=np.array([1, 9], np.int32))],
        [changed(response_ids=(np.array([3, 4]), np.array([5])))],
        [changed(roles=EXAMPLES[0].roles[::-1])],
        [changed(ratings=np.ones(2, np.float32))],
    ],
)
def test_other_data_is_told_apart_and_refused(other):
    saved = data_fingerprint([EXAMPLES])
    assert data_fingerprint([list(EXAMPLES)]) == saved
    check_data({'seed': 0} | saved, saved, 'runs/x')
    now = data_fingerprint(other)
    assert now != saved
    with pytest.raises(ConfigError, match='runs/x: the run began with other data'):
        check_data(saved, now, 'runs/x')


def test_where_an_example_is_from_does_not_matter():
    moved = changed(origin='elsewhere.jsonl:7')
    assert data_fingerprint([moved]) == data_fingerprint([EXAMPLES])


def test_checkpoints_of_earlier_versions_say_nothing():
    check_data({'seed': 0}, {DATA: 'a'}, 'runs/x')
