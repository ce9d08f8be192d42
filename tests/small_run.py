"""A complete small run on disk: random LLaMA, tokenizer, pairs."""

import dataclasses
import json
import random

import jax
import tokenizers
from transformers import PreTrainedTokenizerFast

from epa_jax.config import defaults, resolve
from epa_jax.formats.export import export_model
from epa_jax.models import transformer
from tests import tiny

WORDS = [f'w{i}' for i in range(44)]
MEASURED = ('second', 'goodput', 'memory')  # parts of the names of such metrics


def tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, 48 tokens, without a chat template."""
    vocab = {w: i for i, w in enumerate(['<pad>', '<s>', '</s>', '<unk>', *WORDS])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token='<unk>'))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token='<s>',
        eos_token='</s>',
        pad_token='<pad>',
        unk_token='<unk>',
    )


def write(folder, pairs=40, seed=0, spec=tiny.SPEC):
    """Writes folder/model and folder/pairs.jsonl."""
    params = transformer.init_params(spec, jax.random.key(seed))
    export_model(folder / 'model', spec, params, tokenizer(), dtype='float32')
    rng = random.Random(seed)

    def text(low, high):
        return ' '.join(rng.choices(WORDS, k=rng.randint(low, high)))

    with (folder / 'pairs.jsonl').open('w') as file:
        for _ in range(pairs):
            record = {
                'prompt': text(2, 8),
                # learnable: chosen responses hold only words of the first half
                'chosen': ' '.join(rng.choices(WORDS[:22], k=rng.randint(1, 6))),
                'rejected': ' '.join(rng.choices(WORDS[22:], k=rng.randint(1, 6))),
            }
            file.write(json.dumps(record) + '\n')


def config(folder, name='run', **changes):
    """A resolved configuration; `changes` are dotted keys with __ for the dots."""
    return with_keys(settings(folder, name), changes)


def settings(folder, name='run'):
    """The configuration before it is resolved."""
    out = defaults()
    out.workdir = str(folder / name)
    out.steps = 16
    out.model.path = str(folder / 'model')
    out.model.remat = 'none'
    out.model.logprob_chunk = 32
    out.data.train = str(folder / 'pairs.jsonl')
    out.data.eval_examples = 8
    out.data.max_prompt_tokens = 16
    out.data.max_response_tokens = 16
    out.data.n_weak = 2
    out.batch.prompts = 4
    out.optim.lr = 2e-2
    out.optim.schedule = 'constant'
    out.optim.warmup_ratio = 0.0
    out.mesh.fsdp = 2
    out.mesh.data = -1
    out.log.tensorboard = False
    out.reference.cache_dir = str(folder / 'cache')
    return out


def with_keys(out, changes):
    """Resolves a configuration with keys as keyword arguments spell them: `data__train`."""
    for key, value in changes.items():
        *groups, last = key.split('__')
        target = out
        for group in groups:
            target = target[group]
        target[last] = value
    return resolve(out)


def computed(text):
    """Lines of a metrics file without what depends on the clock or on the machine."""
    lines = [json.loads(line) for line in text.splitlines()]
    return [
        {k: v for k, v in x.items() if not any(part in k for part in MEASURED)}
        for x in lines
    ]


def changed(run, **changes):
    """A run configuration with top-level fields replaced."""
    return dataclasses.replace(run, **changes)
