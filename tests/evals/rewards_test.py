"""Rewards of packed conversations against one sequence at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from epa_jax import sharding
from epa_jax.config import ConfigError
from epa_jax.evals.rewards import open_reward_model
from epa_jax.formats.export import export_model
from epa_jax.formats.files import read_json
from epa_jax.formats.load import load_model
from epa_jax.models import transformer
from epa_jax.run_folder import write_json
from epa_jax.schema import MeshConfig
from epa_jax.types import Message
from tests import small_run, tiny

TEMPLATE = '{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}w9'
SCORE = np.random.default_rng(0).normal(size=(1, 16)).astype(np.float32)


def write(folder, template=TEMPLATE):
    """A small decoder as a reward model."""
    tokenizer = small_run.tokenizer()
    tokenizer.chat_template = template
    export_model(folder, tiny.SPEC, tiny.params(), tokenizer, dtype='float32')
    config = read_json(folder / 'config.json')
    write_json(
        folder / 'config.json',
        config | {'architectures': ['LlamaForSequenceClassification']},
    )
    tensors = load_file(folder / 'model.safetensors')
    tensors['score.weight'] = SCORE
    save_file(tensors, folder / 'model.safetensors', {'format': 'pt'})
    return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp('rewards') / 'model')


def by_hand(ids):
    ids = jnp.asarray(ids, jnp.int32)[None]
    ones = jnp.ones_like(ids)
    hidden = transformer.hidden_states(
        tiny.params(),
        ids,
        jnp.arange(ids.shape[1])[None],
        ones,
        0 * ones,
        spec=tiny.SPEC,
        compute=transformer.Compute(),
    )
    return float(hidden[0, -1] @ SCORE[0])


@pytest.mark.parametrize('shape', [(1, 1, 1), (1, 4, 2)])
def test_the_score_of_the_last_token(folder, shape):
    devices = jax.devices()[: int(np.prod(shape))]
    mesh = sharding.make_mesh(MeshConfig(*shape), devices)
    model = open_reward_model(folder, mesh, rows=2)
    rng = np.random.default_rng(1)
    sequences = [rng.integers(1, 48, n).astype(np.int32) for n in (3, 60, 2, 17, 90, 5)]
    found = model.of_tokens(sequences)
    np.testing.assert_allclose(found, [by_hand(ids) for ids in sequences], rtol=2e-4)


def test_conversations_are_read_through_the_chat_template(folder):
    model = open_reward_model(folder, sharding.make_mesh(MeshConfig()))
    talk = [Message('user', 'w1 w2'), Message('assistant', 'w3')]
    found = model([talk, talk[:1]])
    text = 'user w1 w2 </s> assistant w3 </s> w9'
    ids = small_run.tokenizer()(text, add_special_tokens=False)['input_ids']
    assert found[0] == pytest.approx(by_hand(ids), rel=1e-4)
    assert found[1] != found[0]
    assert model([]).shape == (0,)


def test_what_it_cannot_read_is_refused(folder, tmp_path):
    mesh = sharding.make_mesh(MeshConfig())
    with pytest.raises(ConfigError, match='129 tokens is longer than the 128'):
        open_reward_model(folder, mesh).of_tokens([np.ones(129, np.int32)])
    with pytest.raises(ConfigError, match='no chat template'):
        open_reward_model(write(tmp_path / 'plain', template=None), mesh)


def test_the_decoder_alone_is_no_policy(folder):
    with pytest.raises(ValueError, match='architectures'):
        load_model(folder)
