"""What other trainers are given: their configuration and their rectangles of tokens."""

import numpy as np
import pytest
from transformers import LlamaConfig

from benchmarks import lengths, synthetic, task, trl_dpo, tunix_dpo
from epa_jax.models.hf_config import spec_from_hf

STEP = [task.Group([1, 2, 3], [[4], [5, 6]]), task.Group([7], [[8, 9, 10], [11]])]


@pytest.mark.parametrize('shape', ['tiny', '135M', '1B', '7B'])
def test_trl_s_random_model_has_our_shape(shape):
    found = spec_from_hf(LlamaConfig(**trl_dpo.hf_config(shape)).to_dict(), shape)
    ours = synthetic.spec_of(shape)
    for name in task.SHAPES[shape]:
        assert getattr(found, name) == getattr(ours, name), name
    assert found.head_dim == ours.head_dim


def test_trl_gets_its_examples_in_order():
    rows = trl_dpo.rows([STEP, STEP[:1]], 2)
    assert [row['prompt_ids'] for row in rows] == [[1, 2, 3], [7], [1, 2, 3]]
    with pytest.raises(task.TaskError, match='--steps=3'):
        trl_dpo.rows([STEP], 3)


def test_trl_pads_to_the_longest_of_the_batch():
    assert trl_dpo.padded_tokens([STEP]) == 4 * 5
    assert trl_dpo.padded_tokens([STEP], multiple=8) == 4 * 8


def test_a_step_is_cut_into_micro_batches():
    halves = trl_dpo.micro_batches([[1, 2, 3, 4], [5, 6, 7, 8]], 2)
    assert halves == [[1, 2], [3, 4], [5, 6], [7, 8]]
    with pytest.raises(task.TaskError, match='--accumulate=3: expected a divisor of 4'):
        trl_dpo.micro_batches([[1, 2, 3, 4]], 3)


def test_trl_s_command_line(capsys, tmp_path):
    args = trl_dpo.arguments(['--steps-file=s', '--model=m', '--precompute'])
    assert trl_dpo.variant(args) == 'precompute'
    with pytest.raises(SystemExit):
        trl_dpo.arguments(['--steps-file=s'])
    assert '--shape' in capsys.readouterr().err


def test_tunix_pads_prompts_left_and_responses_right():
    found = tunix_dpo.batch(STEP, max_prompt=4, max_response=3)
    np.testing.assert_array_equal(found['prompt_ids'], [[0, 1, 2, 3], [0, 0, 0, 7]])
    np.testing.assert_array_equal(found['prompt_mask'], [[0, 1, 1, 1], [0, 0, 0, 1]])
    np.testing.assert_array_equal(found['chosen_ids'], [[4, 0, 0], [8, 9, 10]])
    np.testing.assert_array_equal(found['rejected_mask'], [[1, 1, 0], [1, 0, 0]])
    with pytest.raises(task.TaskError, match='--max-prompt'):
        tunix_dpo.batch(STEP, max_prompt=2, max_response=3)


def test_lengths_are_counted():
    rows = lengths.rows([STEP])
    assert rows == [
        {'prompt': 3, 'chosen': 1, 'rejected': 2},
        {'prompt': 1, 'chosen': 3, 'rejected': 1},
    ]
