r"""Win rates by a judge: python -m epa_jax.judge OURS THEIRS --base_url URL --model NAME.

The judge is any model behind an OpenAI-compatible endpoint; each pair is judged in both
orders. The API key is read from the environment and written nowhere.
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from epa_jax.commands import show_errors
from epa_jax.config import ConfigError
from epa_jax.evals.chat import ChatError, Endpoint, key_from
from epa_jax.evals.judging import (
    REFUSED,
    TEMPLATE,
    Judge,
    Judgments,
    WinRate,
    ask,
    key_of,
    read_template,
    verdict,
    win_rate,
)
from epa_jax.evals.matching import Matched, match
from epa_jax.storage import argument as local_path

KEY = 'OPENAI_API_KEY'
EVERY = 100  # judgments between two lines of progress


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m epa_jax.judge',
        description='Which of two policies responds better, by a model as a judge.',
    )
    add = parser.add_argument
    add('ours', help="what epa_jax.sample wrote, or AlpacaEval's model outputs")
    add('theirs', help='likewise, of the same prompts')
    add('--base_url', required=True, help='such as http://localhost:8000/v1')
    add('--model', required=True, help='name of the judge at the endpoint')
    add(
        '--out',
        type=local_path,
        required=True,
        help='JSONL of judgments; known ones are kept',
    )
    add('--summary', type=local_path, help='JSON file of the result')
    add('--template', type=local_path, help="the judge's prompt; see epa_jax.evals.judging")
    add('--max_tokens', type=int, default=1024, help="of an answer; 0: the endpoint's")
    add('--seed', type=int, default=0, help='of the judge and of the bootstrap')
    add('--concurrent', type=int, default=4, help='requests at the same time')
    add('--timeout', type=float, default=120.0, help='seconds without an answer')
    add(
        '--retries', type=int, default=5, help='of a request, after longer and longer waits'
    )
    add('--api_key_env', help=f'environment variable of the key; {KEY} if that is set')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints the win rate; writes every judgment and the summary."""
    args = arguments(argv)
    for name, least in (('concurrent', 1), ('retries', 0), ('max_tokens', 0)):
        if getattr(args, name) < least:
            raise ConfigError(f'--{name} {getattr(args, name)}: expected {least} or more')
    if not args.timeout > 0:
        raise ConfigError(f'--timeout {args.timeout}: expected more than 0')
    template = read_template(args.template) if args.template else TEMPLATE
    judge = Judge(args.model, template, args.seed, args.max_tokens)
    matched = match(args.ours, args.theirs)
    requests = [judge.requests(pair) for pair in matched.pairs]
    judgments = Judgments(args.out)
    known = len(judgments.answers)
    _ask([request for both in requests for request in both], judgments, args)
    keys = [(key_of(one), key_of(other)) for one, other in requests]
    verdicts = [(_said(one, judgments), _said(other, judgments)) for one, other in keys]
    result = win_rate(matched.pairs, verdicts, args.seed)
    print(describe(matched, result))
    print(f'{len(judgments.answers) - known} judgments asked for, written to {args.out}')
    refused = [key for both in keys for key in both if key in judgments.errors]
    if refused:
        print(
            f'refused, such as with {judgments.errors[refused[0]]}; all are in {args.out}, '
            'and the same command asks them again'
        )
    if args.summary:
        args.summary.parent.mkdir(parents=True, exist_ok=True)
        args.summary.write_text(summary(args, judge, matched, result), 'utf-8')


def _said(key: str, judgments: Judgments) -> str | None:
    answer = judgments.answers.get(key)
    return REFUSED if answer is None else verdict(answer)


def _ask(
    requests: Sequence[dict[str, Any]], judgments: Judgments, args: argparse.Namespace
) -> None:
    key = key_from(args.api_key_env or KEY, required=bool(args.api_key_env))
    with Endpoint(
        args.base_url,
        key,
        timeout=args.timeout,
        retries=args.retries,
        connections=args.concurrent,
    ) as endpoint:
        try:
            for done in ask(requests, endpoint.complete, judgments, args.concurrent):
                if done % EVERY == 0:
                    print(f'{done} judgments', file=sys.stderr, flush=True)
        except ChatError as error:
            sent = 'a key was sent' if key else f'no key was sent; {KEY} is not set'
            raise ChatError(
                f'{error} ({sent}). {len(judgments.answers)} judgments are in {args.out}; '
                'the same command goes on from there'
            ) from None


def describe(matched: Matched, result: WinRate) -> str:
    """The result in a few lines; nothing that was left out is left unsaid."""
    answers = 2 * result.pairs - result.refused
    left = f'{result.pairs - result.counted} pairs left out'
    return '\n'.join(
        [
            f'prompts   {result.prompts} with {result.counted} pairs; '
            f'{matched.only_ours} only in ours and {matched.only_theirs} only in theirs '
            'left out',
            f'win rate  {result.rate}, ties one half',
            f'verdicts  {result.wins} ours, {result.losses} theirs, {result.ties} ties; '
            f'{result.unparsable} of {answers} answers unparsable, {result.refused} '
            f'requests refused, {left}',
            f'position  {result.flips:.3f} of pairs change their winner with the order; '
            f'{result.first:.3f} of winners were shown first',
            f'length    {result.ours_characters:.0f} characters against '
            f'{result.theirs_characters:.0f}',
        ]
    )


def summary(
    args: argparse.Namespace, judge: Judge, matched: Matched, result: WinRate
) -> str:
    """The result as JSON; what is unknown is null."""
    out = {
        'ours': args.ours,
        'theirs': args.theirs,
        'model': judge.model,
        'template': str(args.template) if args.template else 'built in',
        'template_sha256': hashlib.sha256(judge.template.encode()).hexdigest(),
        'seed': judge.seed,
        'only_ours': matched.only_ours,
        'only_theirs': matched.only_theirs,
        **result._asdict(),
        'rate': {k: _known(v) for k, v in result.rate._asdict().items()},
    }
    return json.dumps({k: _known(v) for k, v in out.items()}, indent=2) + '\n'


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def run_main() -> None:
    """Shows bad input as one message."""
    show_errors(main)


if __name__ == '__main__':
    run_main()
