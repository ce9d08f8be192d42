"""Responds to prompts: python -m epa_jax.sample MODEL --prompt 'Why is the sky blue?'"""

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from epa_jax.commands import (
    add_model_arguments,
    add_sampling_arguments,
    print_speed,
    responder_of,
    show_errors,
    template_of,
)
from epa_jax.config import ConfigError
from epa_jax.data.prompts import Prompt, encode_prompts, read_prompts
from epa_jax.evals.responding import Response
from epa_jax.storage import argument as local_path


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
    add('--temperature', type=float, default=1.0, help='0: greedy')
    add_sampling_arguments(parser, max_new_tokens=256)
    add('--out', type=local_path, help='JSONL file; else responses are printed')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints or writes responses, and says how fast they came."""
    args = arguments(argv)
    prompts = [Prompt(text, '--prompt', {}) for text in args.prompt]
    if args.prompts:
        prompts += read_prompts(args.prompts, args.limit)
    if not prompts or args.n < 1:
        raise ConfigError('nothing to respond to: give --prompt or --prompts, and --n 1')
    responder = responder_of(args, args.temperature)
    ids = encode_prompts(prompts, responder.policy.tokenizer, template_of(args))
    responder.check_lengths(prompts, ids)
    began = time.perf_counter()
    flat = responder([x for x in ids for _ in range(args.n)])
    seconds = time.perf_counter() - began
    if jax.process_index() == 0:
        responses = [flat[i : i + args.n] for i in range(0, len(flat), args.n)]
        show(list(records(prompts, ids, responses)), args.out)
        print_speed(flat, seconds)


def records(
    prompts: Sequence[Prompt],
    ids: Sequence[np.ndarray],
    responses: Sequence[Sequence[Response]],
) -> Iterable[dict[str, Any]]:
    """What is written of each prompt; `finished` is whether a response ended by itself."""
    for prompt, tokens, answers in zip(prompts, ids, responses, strict=True):
        yield {
            'prompt': prompt.prompt
            if isinstance(prompt.prompt, str)
            else [message._asdict() for message in prompt.prompt],
            'responses': [answer.text for answer in answers],
            'tokens': [answer.tokens for answer in answers],
            'prompt_tokens': len(tokens),
            'finished': [answer.finished for answer in answers],
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
