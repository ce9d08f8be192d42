"""Greedy responses, truncation and scores against transformers on PyTorch, in float32."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')

import jax  # noqa: E402
import transformers  # noqa: E402

from epa_jax import sharding  # noqa: E402
from epa_jax.evals.generation import sample  # noqa: E402
from epa_jax.evals.rewards import open_reward_model  # noqa: E402
from epa_jax.evals.sampling import Sampling, Values, kept  # noqa: E402
from epa_jax.evals.scoring import score  # noqa: E402
from epa_jax.formats.load import load_model  # noqa: E402
from epa_jax.models.transformer import Compute  # noqa: E402
from epa_jax.schema import MeshConfig  # noqa: E402
from tests import small_run  # noqa: E402
from tests.parity import reference  # noqa: E402

pytestmark = pytest.mark.parity
NEW = 24


@pytest.fixture(params=reference.CONFIGS)
def models(request, tmp_path):
    kind, changes = reference.CONFIGS[request.param]
    model = reference.random_model(kind, changes)
    model.save_pretrained(tmp_path)
    return model, *load_model(tmp_path)


def test_greedy_responses_of_mixed_lengths(models):
    model, spec, params = models
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, spec.vocab_size, n).astype(np.int32) for n in (1, 9, 40)]
    eos = 2
    found = sample(
        params,
        spec,
        Compute(),
        prompts,
        Sampling(NEW, (eos,), temperature=0.0),
        key=jax.random.key(0),
    )
    for prompt, response in zip(prompts, found, strict=True):
        theirs = model.generate(
            torch.as_tensor(prompt)[None].long(),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=eos,
        )[0, len(prompt) :]
        assert response.tolist() == theirs.tolist()


def test_scores_and_greedy_matches(models):
    model, spec, params = models
    ids = reference.tokens(spec.vocab_size, length=20)
    logits = reference.their_logits(model, ids)
    logps = torch.log_softmax(torch.as_tensor(logits), dim=-1).numpy()
    prompts = [row[:12].astype(np.int32) for row in ids]
    answers = [row[12:].astype(np.int32) for row in ids]
    likeliest = [logits[b, 11].argmax().astype(np.int32) for b in range(len(ids))]
    responses = [[a, np.array([top])] for a, top in zip(answers, likeliest, strict=True)]
    found = score(params, spec, Compute(), prompts, responses, greedy=True)
    for b, answer in enumerate(answers):
        expected = logps[b, np.arange(11, 19), answer].sum()
        assert found.logps[b, 0] == pytest.approx(expected, abs=1e-3)
    assert found.greedy[:, 1].all()
    assert not found.greedy[:, 0].any()  # random tokens


@pytest.mark.parametrize('seed', range(5))
def test_truncation_keeps_what_transformers_keeps(seed):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(4, 96)).astype(np.float32)
    top_k, top_p, min_p = int(rng.integers(1, 60)), rng.uniform(0.3, 0.99), 0.02
    scores = torch.as_tensor(logits)
    for warper in (
        transformers.TopKLogitsWarper(top_k),
        transformers.TopPLogitsWarper(float(top_p)),
        transformers.MinPLogitsWarper(min_p),
    ):
        scores = warper(None, scores)
    values = Values.of(Sampling(1, (), top_k=top_k, top_p=float(top_p), min_p=min_p))
    finite = torch.isfinite(scores).numpy()
    np.testing.assert_array_equal(np.asarray(kept(logits, values)), finite)


@pytest.mark.parametrize('kind', ['llama', 'mistral'])
def test_rewards(kind, tmp_path):
    classes = {
        'llama': (transformers.LlamaConfig, transformers.LlamaForSequenceClassification),
        'mistral': (
            transformers.MistralConfig,
            transformers.MistralForSequenceClassification,
        ),
    }
    config_class, model_class = classes[kind]
    torch.manual_seed(0)
    config = config_class(**reference.SIZES, num_labels=1, pad_token_id=0)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn_like(p)
            p.copy_(1 + 0.3 * noise if 'norm' in name else 0.2 * noise)
    model.save_pretrained(tmp_path)
    small_run.tokenizer().save_pretrained(tmp_path)
    (tmp_path / 'chat_template.jinja').write_text('{{ messages[0].content }}')
    ours = open_reward_model(tmp_path, sharding.make_mesh(MeshConfig()))
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 96, n).astype(np.int32) for n in (4, 31, 12)]
    found = ours.of_tokens(sequences)
    for reward, ids in zip(found, sequences, strict=True):
        with torch.no_grad():
            theirs = float(model(torch.as_tensor(ids)[None].long()).logits[0, 0])
        assert reward == pytest.approx(theirs, abs=1e-4)
