"""The world as files: a Hugging Face folder to start from, and JSONL data."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from epa_jax.formats.export import export_model
from epa_jax.models.spec import ModelSpec, plain_llama
from epa_jax.models.transformer import init_params
from epa_jax.world import language
from epa_jax.world.language import Prompt

INIT_SCALE = 3.0
SPECIAL = ('<pad>', '<s>', '</s>', '<unk>')


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; <s> before a prompt, </s> after a response."""
    pad, bos, eos, unknown = SPECIAL
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *language.words()])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=f'{bos} $A', special_tokens=[(bos, vocabulary[bos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
    )


def model_spec(d_model: int, n_layers: int) -> ModelSpec:
    """A LLaMA of this width and depth for the language."""
    return plain_llama(
        vocab_size=len(SPECIAL) + len(language.words()),
        d_model=d_model,
        d_ff=8 * d_model // 3 // 8 * 8,
        n_layers=n_layers,
        n_heads=d_model // 32,
        n_kv_heads=d_model // 32,
        tie_embeddings=True,
        max_positions=64,
    )


def write_untrained_model(folder: Path, spec: ModelSpec, seed: int) -> None:
    """A model folder with random weights and the tokenizer."""
    params = init_params(spec, jax.random.key(seed))
    # the usual standard deviation of 0.02 suits widths of thousands
    params['layers'] = jax.tree.map(
        lambda p: INIT_SCALE * p if p.ndim > 2 else p, params['layers']
    )
    export_model(folder, spec, params, make_tokenizer(), dtype='float32')


def split_prompts(held_out: int, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """All prompts in random order: those to train on, and `held_out` others."""
    prompts = language.all_prompts()
    order = np.random.default_rng(seed).permutation(len(prompts))
    shuffled = [prompts[i] for i in order]
    return shuffled[held_out:], shuffled[:held_out]


def write_demonstrations(
    path: Path, prompts: Sequence[Prompt], count: int, seed: int
) -> None:
    """Prompts with a response of the language: 'prompt', 'completion', both as 'text'."""
    rng = np.random.default_rng(seed)
    records = []
    for prompt in (prompts[i % len(prompts)] for i in range(count)):
        said = language.draw_response(prompt, rng)
        text = f'{prompt.text} {said}'
        records.append({'prompt': prompt.text, 'completion': said, 'text': text})
    write_jsonl(path, records)


def label_pairs(
    prompts: Sequence[Prompt], pairs: Sequence[tuple[str, str]], seed: int
) -> list[dict[str, Any]]:
    """Which response of each pair is preferred, by Bradley-Terry with the true reward.

    P(first over second) = sigmoid(r(first) - r(second)). Pairs of equal responses, which
    say nothing, are left out.

    Args:
      prompts: of the pairs.
      pairs: two responses to each prompt.
      seed: of the labels.

    Returns:
      Records with prompt, chosen, rejected and the true rewards of both.
    """
    rng = np.random.default_rng(seed)
    records = []
    for prompt, texts in zip(prompts, pairs, strict=True):
        chance = rng.random()
        if texts[0] == texts[1]:
            continue
        rewards = [language.true_reward(prompt, text) for text in texts]
        first = chance < 1 / (1 + np.exp(rewards[1] - rewards[0]))
        w, l = (0, 1) if first else (1, 0)
        records.append(
            {
                'prompt': prompt.text,
                'chosen': texts[w],
                'rejected': texts[l],
                'reward_chosen': rewards[w],
                'reward_rejected': rewards[l],
            }
        )
    return records


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    text = ''.join(json.dumps(record) + '\n' for record in records)
    path.write_text(text, encoding='utf-8')
