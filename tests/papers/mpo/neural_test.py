"""Retention in LLaMAs whose responses can be counted, in a few updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax.theory.topical import topical_tree
from epa_jax.theory.worlds import kl
from experiments.papers.mpo import neural

SIZE = neural.Size(rows=32, steps=60, batch=16, d_model=16, fit_steps=300)


@pytest.fixture(scope='module')
def tree():
    return topical_tree(SIZE.d_model)


@pytest.fixture(scope='module')
def case(tree):
    return neural.make_case(tree, 0, SIZE)


def test_pairs_are_of_the_first_prompts_and_the_better_is_chosen(case):
    assert case.pairs.responses.shape == (neural.SHOWN, 32, 2)
    reward = np.asarray(case.world.reward)
    for prompt, rows in enumerate(case.pairs.responses):
        assert (reward[prompt, rows[:, 0]] >= reward[prompt, rows[:, 1]]).all()


def test_questions_are_of_the_other_prompts_with_the_right_option_first(case):
    asked, options = case.questions
    assert set(asked) == set(range(neural.SHOWN, 9))
    assert (options[:, 1:] != options[:, :1]).all()
    found = neural.measures(case, case.world.log_ref)['questions']
    logps = np.asarray(case.world.log_ref)
    right = [np.argmax(logps[x, row]) == 0 for x, row in zip(asked, options, strict=True)]
    assert found == pytest.approx(np.mean(right))
    assert found > 0.5  # the reference has the skill that is to be kept


def test_the_start_is_the_reference(case):
    found = neural.measures(case, case.world.log_ref)
    for key in ('kl_shown', 'forward_kl_shown', 'kl_other', 'forward_kl_other'):
        assert found[key] == pytest.approx(0, abs=1e-5)
    assert found['accuracy'] == pytest.approx(0.5)


def test_samples_estimate_the_forward_kl(case):
    """What a stream's held-out NLL rises by is KL(reference || policy), within errors."""
    noise = 0.5 * np.random.default_rng(0).normal(size=case.world.log_ref.shape)
    logps = np.asarray(jax.nn.log_softmax(case.world.log_ref + noise, axis=1))
    log_ref = np.asarray(case.world.log_ref)
    prompts = np.arange(9)[:, None]
    change = (log_ref - logps)[prompts, case.samples]  # of NLL, for each sample
    exact = float(kl(jnp.asarray(log_ref), jnp.asarray(logps)).mean())
    error = change.std(ddof=1) / change.size**0.5
    assert abs(change.mean() - exact) < 3 * error
    assert error < exact / 2  # else this test shows little


def test_text_keeps_what_pairs_do_not_touch(tree, case):
    def end(loss, *weights):
        train = jax.jit(neural.train, static_argnums=(0, 2, 5))
        logps = train(tree, case, loss, jnp.array(weights), 3e-3, SIZE)
        return neural.measures(case, logps)

    bare, held = end('mpo', 0.0, 0.0), end('mpo', 0.1, 0.1)
    assert bare['reward'] > neural.measures(case, case.world.log_ref)['reward'] + 0.1
    assert held['accuracy'] > 0.6
    assert held['forward_kl_other'] < bare['forward_kl_other'] / 2
    assert held['forward_kl_shown'] < bare['forward_kl_shown']


def test_rows_and_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(neural, 'METHODS', {'DPO': neural.METHODS['DPO']})
    size = neural.Size(rows=4, steps=2, batch=4, d_model=16, fit_steps=20)
    rows = neural.run(2, size, (1e-4, 1e-3))
    assert [(r['method'], r['lr'], r['seed']) for r in rows] == [
        ('start', 0.0, 0),
        ('start', 0.0, 1),
        *(('DPO', lr, seed) for lr in (1e-4, 1e-3) for seed in (0, 1)),
    ]
    neural.draw_figure(rows, tmp_path / 'x.png')
    assert (tmp_path / 'x.png').stat().st_size > 10_000
