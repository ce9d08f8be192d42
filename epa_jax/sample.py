"""Responds to prompts: python -m epa_jax.sample MODEL --prompt 'Why is the sky blue?'"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from epa_jax.commands import add_model_arguments, policy_of, show_errors
from epa_jax.config import ConfigError
from epa_jax.data.prompts import Prompt, encode_prompts, read_prompts
from epa_jax.evals.generation import ROWS, draws_of, sample
from epa_jax.evals.sampling import Sampling
from epa_jax.evals.stopping import before, stop_at, stop_ids
from epa_jax.policy import Policy
from epa_jax.schema import DataConfig


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m epa_jax.sample', description='Responses of a policy to prompts.'
    )
    add_model_arguments(parser)
    add = parser.add_argument
    add('--prompt', action='append', default=[], help='a prompt; may be repeated')
    add('--prompts', help='a file, data set or hub name; see epa_jax.data.prompts')
    add('--limit', type=int, default=0, help='prompts to read at most; 0: all')
    add('--n', type=int, default=1, help='responses to each prompt')
    add('--max_new_tokens', type=int, default=256, help='of a response')
    add('--temperature', type=float, default=1.0, help='0: greedy')
    add('--top_k', type=int, default=0, help='likeliest tokens kept; 0: all')
    add('--top_p', type=float, default=1.0, help='probability kept')
    add('--min_p', type=float, default=0.0, help="least share of the likeliest token's")
    add('--stop', action='append', default=[], help='text that ends a response, left out')
    add('--seed', type=int, default=0, help='of the responses')
    add('--chat_template', default='auto', help="'auto', 'none' or a Jinja file")
    add('--system_prompt', default='', help='before conversations without one')
    add('--rows', type=int, default=ROWS, help='responses a device computes together')
    add('--out', type=Path, help='JSONL file; else responses are printed')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints or writes responses, and says how fast they came."""
    args = arguments(argv)
    prompts = [Prompt(text, '--prompt', {}) for text in args.prompt]
    if args.prompts:
        prompts += read_prompts(args.prompts, args.limit)
    if not prompts or args.n < 1:
        raise ConfigError('nothing to respond to: give --prompt or --prompts, and --n 1')
    if '' in args.stop:
        raise ConfigError('--stop: expected a text that is not empty')
    policy = policy_of(args)
    cfg = DataConfig(chat_template=args.chat_template, system_prompt=args.system_prompt)
    ids = encode_prompts(prompts, policy.tokenizer, cfg)
    _check_lengths(prompts, ids, policy, args.max_new_tokens)
    began = time.perf_counter()
    flat = respond(policy, [x for x in ids for _ in range(args.n)], args)
    seconds = time.perf_counter() - began
    if jax.process_index() == 0:
        responses = [flat[i : i + args.n] for i in range(0, len(flat), args.n)]
        rows = list(records(policy, prompts, ids, responses, args))
        show(rows, args.out)
        tokens = sum(len(response) for response in flat)
        print(
            f'{len(flat)} responses, {tokens} tokens, {tokens / seconds:.0f} tokens/s '
            f'({seconds:.1f} s, compiling included)',
            file=sys.stderr,
        )


def respond(
    policy: Policy, ids: Sequence[np.ndarray], args: argparse.Namespace
) -> list[np.ndarray]:
    """A response to each of these prompts."""
    sampling = Sampling(
        max_new_tokens=args.max_new_tokens,
        stop_ids=stop_ids(policy.tokenizer, args.model, args.stop),
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
    )
    return sample(
        policy.params,
        policy.spec,
        policy.compute,
        ids,
        sampling,
        key=jax.random.key(args.seed),
        draws=draws_of(ids),
        stop=stop_at(policy.tokenizer, args.stop),
        mesh=policy.mesh,
        rows=args.rows,
    )


def _check_lengths(
    prompts: Sequence[Prompt], ids: Sequence[np.ndarray], policy: Policy, new: int
) -> None:
    most = policy.spec.max_positions
    for prompt, tokens in zip(prompts, ids, strict=True):
        if len(tokens) + new > most:
            raise ConfigError(
                f'{prompt.origin}: {len(tokens)} tokens, and with --max_new_tokens {new} '
                f'more than the {most} the model reads'
            )


def records(
    policy: Policy,
    prompts: Sequence[Prompt],
    ids: Sequence[np.ndarray],
    responses: Sequence[Sequence[np.ndarray]],
    args: argparse.Namespace,
) -> Iterable[dict[str, Any]]:
    """What is written of each prompt; `finished` is whether a response ended by itself."""
    ends = stop_ids(policy.tokenizer, args.model, args.stop)
    for prompt, tokens, answers in zip(prompts, ids, responses, strict=True):
        whole = [str(policy.tokenizer.decode(a, skip_special_tokens=True)) for a in answers]
        texts = [before(text, args.stop) for text in whole]
        yield {
            'prompt': prompt.prompt
            if isinstance(prompt.prompt, str)
            else [message._asdict() for message in prompt.prompt],
            'responses': texts,
            'tokens': [len(answer) for answer in answers],
            'prompt_tokens': len(tokens),
            'finished': [
                bool(len(answer) and answer[-1] in ends) or text != cut
                for answer, text, cut in zip(answers, texts, whole, strict=True)
            ],
        }


def show(rows: Sequence[dict[str, Any]], out: Path | None) -> None:
    """Writes JSONL, or prints."""
    if out is None:
        for row in rows:
            last = row['prompt'] if isinstance(row['prompt'], str) else row['prompt'][-1]
            print(f'>>> {last}')
            for text in row['responses']:
                print(text.strip(), end='\n\n')
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open('w', encoding='utf-8') as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + '\n')


def run_main() -> None:
    """Shows bad input as one message."""
    show_errors(main)


if __name__ == '__main__':
    run_main()
