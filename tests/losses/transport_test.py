import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.losses.pairwise import dpo
from epa_jax.losses.transport import aot, aot_unpaired, same_quantile
from epa_jax.types import Role
from tests.losses.brute_force import log_sigmoid, random_table

SEEDS = st.integers(0, 10_000)
BOTH = pytest.mark.parametrize('loss', [aot, aot_unpaired])


def sides(table):
    """Log-probs of chosen and rejected, policy and reference, in float64: four [N]."""
    chosen, rejected = table.roles == Role.CHOSEN, table.roles == Role.REJECTED
    wide = (table.logps.astype(np.float64), table.ref_logps.astype(np.float64))
    return [array[role] for array in wide for role in (chosen, rejected)]


def linked(difference, smoothing):
    return np.array(
        [
            -(1 - smoothing) * log_sigmoid(z) - smoothing * log_sigmoid(-z)
            for z in 0.1 * difference
        ]
    )


@given(SEEDS, st.floats(0, 0.4))
def test_of_pairs_it_is_the_difference_of_sorted_lists(seed, smoothing):
    """The mean over the batch, with whole lists sorted as in the peers' formula."""
    table = random_table(seed, prompts=16, responses=2)
    pc, pr, rc, rr = sides(table)
    paired = linked(np.sort(pc - pr) - np.sort(rc - rr), smoothing)
    found = aot(table, label_smoothing=smoothing)
    np.testing.assert_allclose(np.sort(found), np.sort(paired), rtol=1e-4)
    unpaired = linked(np.sort(pc - rc) - np.sort(pr - rr), smoothing)
    found = aot_unpaired(table, label_smoothing=smoothing)
    np.testing.assert_allclose(np.sort(found), np.sort(unpaired), rtol=1e-4)


@BOTH
def test_of_one_pair_it_is_dpo(loss):
    table = random_table(0, prompts=1, responses=2)
    np.testing.assert_allclose(loss(table), dpo(table), rtol=1e-5)


@given(SEEDS)
def test_which_prompt_a_quantile_came_from_does_not_matter(seed):
    table = random_table(seed, prompts=8, responses=2)
    order = np.random.default_rng(seed).permutation(8)
    chosen = table.roles == Role.CHOSEN
    # aot: the reference's gaps dealt to other prompts
    _, _, rc, rr = sides(table)
    dealt = np.where(chosen, (rc - rr)[order][:, None], 0.0).astype(np.float32)
    gathered = np.where(chosen, (rc - rr)[:, None], 0.0).astype(np.float32)
    np.testing.assert_allclose(
        aot(table.replace(ref_logps=dealt)),
        aot(table.replace(ref_logps=gathered)),
        rtol=1e-5,
    )
    # aot_unpaired: whole rejected responses dealt to other prompts
    moved = {}
    for key in ('logps', 'ref_logps'):
        array = getattr(table, key).copy()
        array[~chosen] = array[~chosen][order]
        moved[key] = array
    np.testing.assert_allclose(
        aot_unpaired(table.replace(**moved)), aot_unpaired(table), rtol=1e-5
    )


def test_a_prompt_alone_and_in_a_batch_differ():
    table = random_table(1, prompts=8, responses=2)
    alone = [aot(jax.tree.map(lambda a, n=n: a[n : n + 1], table))[0] for n in range(8)]
    assert np.max(np.abs(aot(table) - np.array(alone))) > 0.1


def test_gradient_of_unpaired_reaches_the_response_of_the_same_rank():
    table = random_table(2, prompts=3, responses=2)
    gradient = jax.grad(lambda x: aot_unpaired(table.replace(logps=x))[0])(
        jnp.asarray(table.logps)
    )
    pc, pr, rc, rr = sides(table)
    rank = int(np.argsort(np.argsort(pc - rc))[0])
    partner = int(np.argsort(pr - rr)[rank])
    by_prompt = np.asarray(gradient)[table.roles == Role.REJECTED]
    assert list(np.flatnonzero(by_prompt)) == [partner]
    np.testing.assert_allclose(np.sum(gradient), 0, atol=1e-7)


def test_same_quantile_by_hand():
    x = jnp.array([[3.0, 9.0, 1.0], [2.0, jnp.nan, 0.0]])
    y = jnp.array([[10.0, jnp.nan, 30.0], [20.0, 99.0, 40.0]])
    mask = jnp.array([[True, False, True], [True, False, True]])
    # x ranks 3, 1, 2, 0 among 3, 1, 2, 0; y sorted is 10, 20, 30, 40
    np.testing.assert_array_equal(same_quantile(x, y, mask), [[40, 0, 20], [30, 0, 10]])


@given(SEEDS)
def test_same_quantile_deals_out_every_value_once(seed):
    rng = np.random.default_rng(seed)
    x, y, mask = rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), rng.random((4, 3)) < 0.6
    found = np.asarray(same_quantile(jnp.asarray(x), jnp.asarray(y), jnp.asarray(mask)))
    np.testing.assert_allclose(np.sort(found[mask]), np.sort(y[mask]), rtol=1e-6)
    order = np.argsort(x[mask])
    assert np.all(np.diff(found[mask][order]) >= 0)
    np.testing.assert_array_equal(found[~mask], 0)
