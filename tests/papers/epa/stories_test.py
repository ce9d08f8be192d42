"""A fast version with a reward that needs no lexicon: the share of the letter e."""

import jax
import numpy as np
import pytest

from experiments.papers.common import write_csv
from experiments.papers.epa import stories, storyteller

SIZES = stories.Sizes(
    openings=12, held_out=4, own=3, fresh=2, batch=4, marks=(1, 3), lr=1e-3
)


def share_of_e(text):
    return 40 * text.count('e') / max(len(text), 1)


@pytest.fixture(scope='module')
def teller(shared_data):
    folder = shared_data / 'stories260k'
    if not folder.is_dir():
        pytest.skip('needs ../shared/data/stories260k')
    return storyteller.load_teller(str(folder), share_of_e)


def test_openings_differ_and_continuations_are_stories(teller):
    openings = teller.openings(6, jax.random.key(0))
    assert len({o.tobytes() for o in openings}) == 6
    assert all(len(o) == 1 + stories.OPENING for o in openings)
    assert 'Once upon a time' in ' '.join(teller.tokenizer.decode(o) for o in openings)
    answers = teller.continuations(teller.params, openings, 2, jax.random.key(1))
    assert np.shape(teller.rewards(answers)) == (6, 2)
    np.testing.assert_allclose(
        teller.log_ratios(teller.params, openings, answers), 0, atol=1e-3
    )


def test_openings_are_sought_for_several_rounds(teller, monkeypatch):
    assert len(teller.openings(60, jax.random.key(0))) == 60  # one round has repetitions
    monkeypatch.setattr(storyteller, 'ROUNDS', 1)
    with pytest.raises(ValueError, match=r'60 samples have .* different openings'):
        teller.openings(60, jax.random.key(0))


def test_labels_prefer_the_larger_reward(teller):
    openings = teller.openings(12, jax.random.key(2))
    examples = stories.labelled(teller, openings, jax.random.key(3), seed=0)
    better = [e.ratings[0] > e.ratings[1] for e in examples]
    assert np.mean(better) > 0.5


def test_every_method_is_measured_at_every_mark(teller, tmp_path):
    rows = stories.one_seed(teller, SIZES, 0, ['DPO', 'EPA 1:1:2'])
    assert [(r['method'], r['step']) for r in rows] == [
        ('reference', 0), ('DPO', 1), ('DPO', 3), ('EPA 1:1:2', 1), ('EPA 1:1:2', 3),
    ]  # fmt: skip
    assert all(np.isfinite(r['kl']) for r in rows)
    dpo, epa = rows[2], rows[4]
    assert epa['tokens'] > 1.5 * dpo['tokens']
    stories.draw(rows + [{**r, 'seed': 1} for r in rows], tmp_path / 'x.png')
    assert (tmp_path / 'x.png').stat().st_size > 10_000


def made_up(seed, method, *points):
    keys = ('step', 'tokens', 'kl', 'reward', 'pearson', 'slope1_error')
    return [
        {'method': method, 'seed': seed, **dict(zip(keys, point, strict=True))}
        for point in points
    ]


@pytest.fixture
def rows():
    """Two seeds; EPA takes twice the tokens and earns twice the reward per nat."""
    points = {
        'reference': [(0, 0, 0.0, 0.0, np.nan, 2.0)],
        'DPO': [(1, 10, 1.0, 1.0, 0.2, 1.0), (2, 20, 2.0, 2.0, 0.4, 0.5)],
        'EPA 1:1:2': [(1, 20, 2.0, 4.0, 0.3, 1.0), (2, 40, 4.0, 8.0, 0.6, 0.2)],
    }
    rows = [row for seed in (0, 1) for m in points for row in made_up(seed, m, *points[m])]
    return [row | {'reward': row['reward'] + row['seed']} for row in rows]


def test_methods_are_compared_at_equal_steps_tokens_and_kl(rows):
    found = {
        (r['equal'], r['metric'], r['method']): (r['at'], r['mean'], r['minus_dpo'])
        for r in stories.matched(rows)
    }
    epa = 'EPA 1:1:2'
    assert found['step', 'pearson', epa] == pytest.approx((2, 0.6, 0.2))
    assert found['tokens', 'pearson', epa] == pytest.approx((20, 0.3, -0.1))
    assert found['tokens', 'pearson', 'DPO'] == pytest.approx((20, 0.4, 0))
    assert found['kl', 'reward', epa] == pytest.approx((1, 2.5, 1))
    assert found['kl', 'reward', 'DPO'] == pytest.approx((1, 1.5, 0))
    short = [
        r | {'kl': r['kl'] / 4} if r['method'] == epa else r for r in rows if r['step'] < 2
    ]
    assert [
        r['method'] for r in stories.matched(short) if r['at'] == 1.0 and r['equal'] == 'kl'
    ] == ['DPO']


def test_rows_are_read_as_they_were_written(rows, tmp_path):
    file = tmp_path / 'stories.csv'
    assert stories.load(file) == []
    write_csv(file, rows)
    for found, expected in zip(stories.load(file), rows, strict=True):
        assert found == pytest.approx(expected, nan_ok=True)
