"""Samples against exact probabilities, one token and one sequence at a time."""

import jax
import numpy as np
import pytest

from epa_jax import sharding
from epa_jax.config import ConfigError
from epa_jax.evals import generation
from epa_jax.evals.generation import sample
from epa_jax.evals.sampling import Sampling
from epa_jax.models import transformer
from epa_jax.schema import MeshConfig
from tests import tiny

COMPUTE = transformer.Compute()
EOS = 2
OUTSIDE = {'draws', 'rows', 'stop', 'mesh'}  # of the sampling
PROMPTS = [
    np.array(p, np.int32) for p in ([1, 5, 9], [1, 7], [1, 5, 9, 11, 30, 4, 8, 6, 3])
]


@pytest.fixture(scope='module')
def params():
    tree = tiny.params()
    return tree | {'embed': 20 * tree['embed']}  # far from uniform


def draw(params, prompts, seed=0, **kwargs):
    more = {name: kwargs.pop(name) for name in OUTSIDE & set(kwargs)}
    sampling = Sampling(**({'max_new_tokens': 12, 'stop_ids': (EOS,)} | kwargs))
    key = jax.random.key(seed)
    return sample(params, tiny.SPEC, COMPUTE, prompts, sampling, key=key, **more)


def all_logits(params, tokens):
    """Logits [T, V] at every place of one unpadded sequence."""
    return np.asarray(tiny.sequence_logits(params, tiny.SPEC, tokens), np.float64)


def test_greedy_takes_the_likeliest_token_at_every_step(params):
    found = draw(params, PROMPTS, temperature=0)
    for prompt, response in zip(PROMPTS, found, strict=True):
        logits = all_logits(params, [*prompt, *response])
        likeliest = logits.argmax(axis=1)[len(prompt) - 1 : -1]
        assert response.tolist() == likeliest.tolist()
        assert len(response) == 12 or response[-1] == EOS


def test_a_response_ends_with_its_first_eos(params):
    likeliest = draw(params, PROMPTS[:1], temperature=0)[0].tolist()
    eos = likeliest[4]
    found = draw(params, PROMPTS[:1], temperature=0, stop_ids=(eos,))[0].tolist()
    assert found == likeliest[: likeliest.index(eos) + 1]


def test_a_response_is_cut_off_at_the_limit(params):
    lengths = {len(r) for r in draw(params, PROMPTS * 5, max_new_tokens=3)}
    assert max(lengths) == 3


@pytest.mark.parametrize('temperature', [1.0, 2.5])
def test_the_first_two_tokens_have_their_exact_probabilities(params, temperature):
    count, prompt = 4000, PROMPTS[0]
    found = draw(
        params, [prompt] * count, max_new_tokens=2, temperature=temperature, rows=count
    )
    first = np.bincount([r[0] for r in found], minlength=48)
    expected = softmax(all_logits(params, prompt)[-1] / temperature)
    assert_counts(first, expected)
    top = int(np.argmax(np.where(np.arange(48) == EOS, 0, first)))
    second = np.bincount([r[1] for r in found if r[0] == top], minlength=48)
    assert_counts(second, softmax(all_logits(params, [*prompt, top])[-1] / temperature))


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def assert_counts(counts, probabilities):
    """Pearson's chi-square within five standard deviations; rare tokens put together."""
    expected = counts.sum() * probabilities
    common = expected >= 5
    pooled = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    statistic = np.sum((pooled - wanted) ** 2 / np.maximum(wanted, 1e-9))
    freedom = len(pooled) - 1
    assert freedom >= 3
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_equal_prompts_get_different_responses(params):
    found = {tuple(r.tolist()) for r in draw(params, PROMPTS[:1] * 15)}
    assert len(found) > 10


def test_neither_order_nor_company_nor_padding_changes_a_response(params):
    prompts = PROMPTS * 5
    found = draw(params, prompts)
    order = np.random.default_rng(0).permutation(len(prompts))
    shuffled = draw(params, [prompts[i] for i in order], draws=order.tolist(), rows=4)
    for place, i in enumerate(order):
        assert shuffled[place].tolist() == found[i].tolist()


def test_another_key_gives_other_responses(params):
    one, other = (draw(params, PROMPTS * 5, seed=s) for s in (0, 1))
    assert sum(a.tolist() != b.tolist() for a, b in zip(one, other, strict=True)) > 10


def test_any_of_several_tokens_ends_a_response(params):
    likeliest = draw(params, PROMPTS[:1], temperature=0)[0].tolist()
    stops = (likeliest[6], likeliest[3])
    end = min(likeliest.index(stop) for stop in stops)
    found = draw(params, PROMPTS[:1], temperature=0, stop_ids=stops)[0].tolist()
    assert found == likeliest[: end + 1]


def test_what_looks_at_responses_may_end_them(params, monkeypatch):
    monkeypatch.setattr(generation, 'CHECK', 4)
    whole = draw(params, PROMPTS * 4, max_new_tokens=14)
    seen = []

    def third_even(response):
        seen.append(len(response))
        even = np.flatnonzero(response % 2 == 0)
        return int(even[2]) + 1 if len(even) > 2 else None

    found = draw(params, PROMPTS * 4, max_new_tokens=14, stop=third_even)
    for response, full in zip(found, whole, strict=True):
        size = third_even(full)
        assert response.tolist() == full[:size].tolist()
    assert set(seen) > {4, 8}  # it was asked on the way


@pytest.mark.parametrize('shape', [(1, 8, 1), (2, 2, 2)])
def test_any_mesh_gives_the_same_responses(params, shape):
    mesh = sharding.make_mesh(MeshConfig(*shape))
    where = sharding.param_shardings(
        mesh,
        transformer.abstract_params(tiny.SPEC, 'float32'),
        transformer.logical_axes(tiny.SPEC),
    )
    compute = transformer.Compute(mesh=mesh)
    found = sample(
        jax.device_put(params, where),
        tiny.SPEC,
        compute,
        PROMPTS * 5,
        Sampling(12, (EOS,), top_p=0.9),
        key=jax.random.key(0),
        mesh=mesh,
    )
    plain = draw(params, PROMPTS * 5, top_p=0.9)
    assert [r.tolist() for r in found] == [r.tolist() for r in plain]


def test_lengths_in_one_bucket_compile_once(params):
    draw(params, PROMPTS)
    sizes = (generation._begin._cache_size(), generation._grow._cache_size())
    longer = [np.arange(1, 31, dtype=np.int32)] * 3
    draw(params, longer, max_new_tokens=30, temperature=0.3, stop_ids=(5,))
    assert sizes == (generation._begin._cache_size(), generation._grow._cache_size())


def test_more_than_the_model_reads_is_refused(params):
    with pytest.raises(ConfigError, match=r'prompt 1 has 3 tokens.*126.*128 the model'):
        draw(params, [PROMPTS[1], PROMPTS[0]], max_new_tokens=126)


def test_no_prompts_no_responses(params):
    assert draw(params, []) == []
