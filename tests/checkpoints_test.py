import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from epa_jax.checkpoints import CheckpointError, Checkpoints
from epa_jax.schema import CheckpointConfig, MeshConfig
from epa_jax.sharding import make_mesh
from epa_jax.types import TrainState

METRIC = 'eval/rewards/accuracies'
DATA = {'epoch': 1, 'position': 17, 'order': [3, 1, 2], 'name': 'é'}


def make_state(seed=0):
    rng = np.random.default_rng(seed)
    params = {
        'embed': jnp.asarray(rng.normal(size=(8, 16)), jnp.bfloat16),
        'layers': {'q': jnp.asarray(rng.normal(size=(2, 16, 4)), jnp.float32)},
    }
    opt_state = optax.adam(0.1, mu_dtype=jnp.float32).init(params)
    counters = [jnp.asarray(n, jnp.int32) for n in (2**31 - 1, 3, 0)]
    return TrainState(counters[0], params, opt_state, counters[1], counters[2])


def abstract_like(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def on_mesh(tree, **axes):
    """Two-dimensional leaves and more split over fsdp and tensor, the others whole."""
    mesh = make_mesh(MeshConfig(**axes))

    def place(x):
        spec = PartitionSpec(*[None] * (x.ndim - 2), 'fsdp', 'tensor')
        return NamedSharding(mesh, spec if x.ndim > 1 else PartitionSpec())

    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), tree
    )


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def opened(tmp_path):
    """Opens folders and closes them after the test."""
    every = []

    def open_(folder=tmp_path / 'checkpoints', **keys):
        cfg = {f.name for f in dataclasses.fields(CheckpointConfig)} & keys.keys()
        config = CheckpointConfig(**{k: keys.pop(k) for k in cfg})
        every.append(Checkpoints(folder, config, **keys))
        return every[-1]

    yield open_
    for checkpoints in every:
        checkpoints.close()


def test_round_trip_is_bit_for_bit(opened):
    state = make_state()
    saved = opened(config={'loss.name': 'epa', 'loss.beta': None})
    saved.save(5, state, DATA)
    saved.wait()
    step, found, data, config = opened(read_only=True).restore(abstract_like(state))
    assert step == 5
    assert data == DATA
    assert config == {'loss.name': 'epa', 'loss.beta': None}
    assert_same_bits(found, state)


def test_a_save_survives_donation_of_its_buffers(opened):
    state = make_state()
    expected = jax.tree.map(np.array, state)
    checkpoints = opened()
    checkpoints.save(1, state, DATA)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    abstract = abstract_like(state)
    for _ in range(5):
        state = step(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    assert_same_bits(checkpoints.restore(abstract).state, expected)


@pytest.mark.parametrize(
    ('saved_on', 'restored_on'),
    [({'fsdp': 4, 'tensor': 2}, {'fsdp': 2, 'tensor': 4}), ({'fsdp': 8}, {'data': 8})],
)
def test_restores_onto_another_mesh(opened, saved_on, restored_on):
    state = make_state()
    whole = {'data': 1, 'fsdp': 1, 'tensor': 1}
    before = on_mesh(state, **(whole | saved_on))
    placed = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), state, before)
    checkpoints = opened()
    checkpoints.save(1, placed, DATA)
    after = on_mesh(state, **(whole | restored_on))
    checkpoints.wait()
    found = checkpoints.restore(after).state
    assert_same_bits(found, state)
    assert found.params['embed'].sharding == after.params['embed'].sharding
    assert found.params['embed'].sharding != before.params['embed'].sharding


@pytest.mark.parametrize(
    ('keep_last', 'keep_best', 'mode', 'expected'),
    [
        (2, 0, 'max', [6, 7]),
        (1, 1, 'max', [2, 7]),
        (1, 2, 'max', [2, 4, 7]),
        (1, 2, 'min', [3, 5, 7]),
    ],
)
def test_keeps_last_and_best(opened, keep_last, keep_best, mode, expected):
    nan = float('nan')
    values = {1: nan, 2: 0.9, 3: 0.1, 4: 0.8, 5: 0.3, 6: nan, 7: None}
    state = make_state()
    keys = {
        'keep_last': keep_last,
        'keep_best': keep_best,
        'best_metric': METRIC,
        'best_mode': mode,
    }
    checkpoints = opened(**keys)
    for step, value in values.items():
        if step == 5:  # what is best is also known after a restart
            checkpoints.wait()
            checkpoints = opened(**keys)
        metrics = {'eval/loss': 1.0} | ({} if value is None else {METRIC: value})
        checkpoints.save(step, state, DATA, metrics)
    checkpoints.wait()
    assert checkpoints.steps() == expected
    assert checkpoints.latest_step() == 7


def test_restores_the_step_asked_for(opened):
    checkpoints = opened(keep_last=2)
    states = {step: make_state(step) for step in (1, 2)}
    for step, state in states.items():
        checkpoints.save(step, state, {'position': step})
    checkpoints.wait()
    found = checkpoints.restore(abstract_like(states[1]), step=1)
    assert found.data_state == {'position': 1}
    assert_same_bits(found.state, states[1])


def test_saving_a_step_again_changes_nothing(opened):
    checkpoints = opened()
    checkpoints.save(1, make_state(1), DATA)
    checkpoints.save(1, make_state(2), DATA)
    checkpoints.wait()
    found = checkpoints.restore(abstract_like(make_state())).state
    assert_same_bits(found, make_state(1))


@pytest.mark.parametrize('killed_before', ['commit', 'rename'])
def test_leftovers_of_killed_saves_are_not_checkpoints(opened, tmp_path, killed_before):
    first = opened()
    first.save(1, make_state(1), DATA)
    first.wait()
    leftover = tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp'
    shutil.copytree(tmp_path / 'checkpoints' / '1', leftover)
    if killed_before == 'commit':
        (leftover / 'commit_success.txt').unlink()
    reader = opened(read_only=True)
    assert reader.steps() == [1]
    assert leftover.exists()
    writer = opened()
    assert writer.latest_step() == 1
    writer.save(2, make_state(2), DATA)
    writer.wait()
    assert not leftover.exists()
    found = writer.restore(abstract_like(make_state())).state
    assert_same_bits(found, make_state(2))


def test_nothing_saved_is_an_error_that_says_so(opened, tmp_path):
    abstract = abstract_like(make_state())
    checkpoints = opened()
    assert checkpoints.latest_step() is None
    with pytest.raises(CheckpointError, match='no checkpoint'):
        checkpoints.restore(abstract)
    checkpoints.save(3, make_state(), DATA)
    checkpoints.wait()
    with pytest.raises(CheckpointError, match=r'no step 4; steps found: \[3\]'):
        checkpoints.restore(abstract, step=4)
    with pytest.raises(CheckpointError, match='no such folder'):
        opened(tmp_path / 'elsewhere', read_only=True)
    assert not (tmp_path / 'elsewhere').exists()


def swap_embed(state, shape=(8, 16), dtype=jnp.bfloat16):
    embed = jax.ShapeDtypeStruct(shape, dtype, sharding=state.params['embed'].sharding)
    return state.replace(params={**state.params, 'embed': embed})


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda s: swap_embed(s, shape=(9, 16)),
            r'params\.embed: expected bfloat16 \(9, 16\), found bfloat16 \(8, 16\)',
        ),
        (
            lambda s: swap_embed(s, dtype=jnp.float32),
            r'params\.embed: expected float32 \(8, 16\), found bfloat16 \(8, 16\)',
        ),
        (
            lambda s: s.replace(params={'embed': s.params['embed']}),
            r'params\.layers\.q: expected none, found float32 \(2, 16, 4\)',
        ),
        (
            lambda s: s.replace(opt_state=()),
            r'opt_state\.0\.count: expected none, found int32 \(\)[^$]*',
        ),
    ],
)
def test_another_model_is_refused_by_leaf(opened, change, message):
    state = make_state()
    checkpoints = opened()
    checkpoints.save(1, state, DATA)
    checkpoints.wait()
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore(change(abstract_like(state)))


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize(
    'victim', ['state', 'state/_METADATA', 'state/manifest.ocdbt', 'data', 'config']
)
def test_a_damaged_checkpoint_is_an_error_that_names_it(opened, tmp_path, victim):
    state = make_state()
    first = opened()
    first.save(1, state, DATA)
    first.close()
    path = tmp_path / 'checkpoints' / '1' / victim
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.write_bytes(b'')
    with pytest.raises(CheckpointError, match=r'checkpoints/1: cannot be read .* delete'):
        opened(read_only=True).restore(abstract_like(state))


DIFFERS = r'checkpoints/1: cannot be read .*not what was saved.* delete'


def flip_a_bit_on_disk(folder, content):
    """Of an array that lies there as it is, since nothing could compress it."""
    (file,) = (p for p in folder.rglob('*') if p.is_file() and content in p.read_bytes())
    data = bytearray(file.read_bytes())
    data[data.index(content) + len(content) // 2] ^= 1
    file.write_bytes(data)


def test_one_flipped_bit_of_the_state_is_noticed(opened, tmp_path):
    """Orbax reads it without a word; only the digest tells."""
    noise = np.random.default_rng(0).integers(0, 2**32, (64, 64), np.uint32).view(np.int32)
    state = make_state()
    state = state.replace(params={**state.params, 'noise': jnp.asarray(noise)})
    first = opened()
    first.save(1, state, DATA)
    first.close()
    flip_a_bit_on_disk(tmp_path / 'checkpoints' / '1', noise.tobytes())
    with pytest.raises(CheckpointError, match=DIFFERS):
        opened(read_only=True).restore(abstract_like(state))


@pytest.mark.parametrize(
    ('item', 'old', 'new'),
    [
        ('data', '"position": 17', '"position": 16'),
        ('config', '"beta": 0.1', '"beta": 0.0'),
    ],
)
def test_a_flipped_bit_of_position_or_configuration_is_noticed(
    opened, tmp_path, item, old, new
):
    state = make_state()
    first = opened(config={'beta': 0.1})
    first.save(1, state, DATA)
    first.close()
    path = tmp_path / 'checkpoints' / '1' / item / 'metadata'
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(CheckpointError, match=DIFFERS):
        opened(read_only=True).restore(abstract_like(state))


def test_a_lost_process_is_no_fault_of_the_folder(opened, monkeypatch):
    """The command then ends with the code that asks to be run again."""
    state = make_state()
    checkpoints = opened()
    checkpoints.save(1, state, DATA)
    checkpoints.wait()
    gone = jax.errors.JaxRuntimeError('UNAVAILABLE: task 1 is gone')

    def fail(*arguments, **keys):
        raise gone

    for method in ('restore', 'item_metadata', 'wait_until_finished'):
        act = checkpoints.wait
        if method != 'wait_until_finished':
            act = functools.partial(checkpoints.restore, abstract_like(state))
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, method, fail)
            with pytest.raises(CheckpointError):
                act()
            patch.setattr(jax, 'process_count', lambda: 2)
            with pytest.raises(jax.errors.JaxRuntimeError) as caught:
                act()
            assert caught.value is gone
