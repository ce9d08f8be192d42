"""Responds to prompts: python -m epa_jax.sample MODEL --prompt 'Why is the sky blue?'"""

import argparse
import bisect
import collections
import hashlib
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
from epa_jax.evals.generation import ROWS, Stop, sample
from epa_jax.evals.sampling import Sampling
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
    texts = [text for text in args.stop if _token(policy, text) is None]
    sampling = Sampling(
        max_new_tokens=args.max_new_tokens,
        stop_ids=stop_ids(policy, args.model, args.stop),
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
        stop=stop_at(policy, texts) if texts else None,
        mesh=policy.mesh,
        rows=args.rows,
    )


def draws_of(ids: Sequence[np.ndarray]) -> list[int]:
    """A number for each response, from its prompt and how often that came before.

    So a response depends on neither the order nor the company of the prompts.
    """
    seen: collections.Counter[bytes] = collections.Counter()
    out = []
    for tokens in ids:
        text = tokens.astype(np.int32).tobytes()
        digest = hashlib.sha256(text + seen[text].to_bytes(8, 'little')).digest()
        out.append(int.from_bytes(digest[:4], 'little'))
        seen[text] += 1
    return out


def stop_ids(policy: Policy, model: Path, texts: Sequence[str]) -> tuple[int, ...]:
    """Tokens that end a response: the tokenizer's, the model's, and named ones."""
    eos = policy.tokenizer.eos_token_id
    found = [] if eos is None else [int(eos)]
    for folder in (model, model / 'export'):
        path = folder / 'generation_config.json'
        if path.is_file():
            known = json.loads(path.read_text('utf-8')).get('eos_token_id') or []
            found += known if isinstance(known, list) else [known]
    named = [_token(policy, text) for text in texts]
    return tuple(dict.fromkeys([*found, *(id_ for id_ in named if id_ is not None)]))


def _token(policy: Policy, text: str) -> int | None:
    """The special token that a text is, which decoding would hide."""
    special = text in policy.tokenizer.all_special_tokens
    special |= text in policy.tokenizer.get_added_vocab()
    return int(policy.tokenizer.get_vocab()[text]) if special else None


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


def stop_at(policy: Policy, texts: Sequence[str]) -> Stop:
    """Ends a response with the token that completes one of `texts`."""

    def text_of(tokens: np.ndarray) -> str:
        return str(policy.tokenizer.decode(tokens, skip_special_tokens=True))

    def stop(response: np.ndarray) -> int | None:
        def holds(size: int) -> bool:
            return any(text in text_of(response[:size]) for text in texts)

        if not holds(len(response)):
            return None
        return bisect.bisect_left(range(1, len(response) + 1), True, key=holds) + 1

    return stop


def records(
    policy: Policy,
    prompts: Sequence[Prompt],
    ids: Sequence[np.ndarray],
    responses: Sequence[Sequence[np.ndarray]],
    args: argparse.Namespace,
) -> Iterable[dict[str, Any]]:
    """What is written of each prompt; `finished` is whether a response ended by itself."""
    ends = stop_ids(policy, args.model, args.stop)
    for prompt, tokens, answers in zip(prompts, ids, responses, strict=True):
        whole = [str(policy.tokenizer.decode(a, skip_special_tokens=True)) for a in answers]
        texts = [_before(text, args.stop) for text in whole]
        yield {
            'prompt': prompt.prompt
            if isinstance(prompt.prompt, str)
            else [message._asdict() for message in prompt.prompt],
            'responses': texts,
            'tokens': [len(answer) for answer in answers],
            'prompt_tokens': len(tokens),
            'finished': [
                bool(len(answer) and answer[-1] in ends) or text != before
                for answer, text, before in zip(answers, texts, whole, strict=True)
            ],
        }


def _before(text: str, stops: Sequence[str]) -> str:
    """The text before the first of `stops`."""
    found = [text.index(stop) for stop in stops if stop in text]
    return text[: min(found)] if found else text


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
