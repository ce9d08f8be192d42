"""A fast version with a reward that needs no lexicon: the share of the letter e."""

import jax
import numpy as np
import pytest

from epa_jax.formats.load import load_model
from epa_jax.formats.tokenizer import load_tokenizer
from experiments.papers.epa import stories

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
    spec, params = load_model(str(folder), 'float32')
    return stories.Storyteller(spec, params, load_tokenizer(str(folder)), share_of_e)


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
    monkeypatch.setattr(stories, 'ROUNDS', 1)
    with pytest.raises(ValueError, match=r'60 samples have .* different openings'):
        teller.openings(60, jax.random.key(0))


def test_labels_prefer_the_larger_reward(teller):
    openings = teller.openings(12, jax.random.key(2))
    examples = stories.labelled(teller, openings, jax.random.key(3), seed=0)
    better = [e.ratings[0] > e.ratings[1] for e in examples]
    assert np.mean(better) > 0.5


def test_every_method_is_measured_at_every_mark(teller, tmp_path, monkeypatch):
    monkeypatch.setattr(
        stories, 'METHODS', {k: stories.METHODS[k] for k in ('DPO', 'EPA 1:1:2')}
    )
    monkeypatch.setattr(
        stories, 'DRAWN', {k: stories.DRAWN[k] for k in ('DPO', 'EPA 1:1:2')}
    )
    rows = stories.one_seed(teller, SIZES, 0)
    assert [(r['method'], r['step']) for r in rows] == [
        ('reference', 0), ('DPO', 1), ('DPO', 3), ('EPA 1:1:2', 1), ('EPA 1:1:2', 3),
    ]  # fmt: skip
    assert all(np.isfinite(r['kl']) for r in rows)
    dpo, epa = rows[2], rows[4]
    assert epa['tokens'] > 1.5 * dpo['tokens']
    stories.draw(rows + [{**r, 'seed': 1} for r in rows], tmp_path / 'x.png')
    assert (tmp_path / 'x.png').stat().st_size > 10_000
