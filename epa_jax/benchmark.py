r"""Answers of a policy as judged benchmarks read them.

python -m epa_jax.benchmark alpaca_eval MODEL --prompts FILE --out model_outputs.json
python -m epa_jax.benchmark mt_bench MODEL --prompts question.jsonl --out NAME.jsonl
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

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
from epa_jax.data.sources import DataError
from epa_jax.evals.mt_bench import answers, converse, read_questions
from epa_jax.evals.responding import Response
from epa_jax.storage import argument as local_path


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m epa_jax.benchmark',
        description='Answers of a policy as judged benchmarks read them.',
    )
    kinds = parser.add_subparsers(dest='benchmark', required=True)
    alpaca = kinds.add_parser(
        'alpaca_eval', help='model outputs for the alpaca_eval package'
    )
    bench = kinds.add_parser('mt_bench', help="answers for FastChat's llm_judge")
    for kind in (alpaca, bench):
        add_model_arguments(kind)
        add = kind.add_argument
        add('--prompts', required=True, help='a file, data set or hub name')
        add('--limit', type=int, default=0, help='prompts to read at most; 0: all')
        add('--out', type=local_path, required=True, help='file to write')
    alpaca.add_argument('--name', help="of the generator; the model's folder unless given")
    alpaca.add_argument('--temperature', type=float, default=0.7, help='0: greedy')
    bench.add_argument('--choices', type=int, default=1, help='answers to each question')
    add_sampling_arguments(alpaca, max_new_tokens=2048)
    add_sampling_arguments(bench, max_new_tokens=1024)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Writes the answers and says how fast they came."""
    args = arguments(argv)
    found = alpaca_eval(args) if args.benchmark == 'alpaca_eval' else mt_bench(args)
    if jax.process_index() == 0:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(found.text, 'utf-8')
        print_speed(found.responses, found.seconds)
        cut = sum(not response.finished for response in found.responses)
        print(f'{cut} responses cut off by their length', file=sys.stderr)


class Answered(NamedTuple):
    """What to write, the responses in it, and how long they took."""

    text: str
    responses: list[Response]
    seconds: float


def alpaca_eval(args: argparse.Namespace) -> Answered:
    """A JSON list of outputs.

    Raises:
      ConfigError, DataError: a command line or prompts that cannot be used.
    """
    prompts = read_prompts(args.prompts, args.limit)
    instructions = [instruction(prompt) for prompt in prompts]
    name = args.name or name_of(args.model, args.step)
    responder = responder_of(args, args.temperature)
    ids = encode_prompts(prompts, responder.policy.tokenizer, template_of(args))
    responder.check_lengths(prompts, ids)
    began = time.perf_counter()
    responses = responder(ids)
    seconds = time.perf_counter() - began
    rows = [
        output(prompt, asked, response, name)
        for prompt, asked, response in zip(prompts, instructions, responses, strict=True)
    ]
    text = json.dumps(rows, ensure_ascii=False, indent=2) + '\n'
    return Answered(text, responses, seconds)


def name_of(model: Path, step: int | None) -> str:
    """A name for a policy, by its folder or file."""
    path = model.resolve()
    name = path.stem if path.is_file() else path.name
    return name if step is None else f'{name}_step_{step}'


def instruction(prompt: Prompt) -> str:
    """The text of a prompt of one turn.

    Raises:
      DataError: a conversation, which AlpacaEval has no place for.
    """
    if isinstance(prompt.prompt, str):
        return prompt.prompt
    if len(prompt.prompt) != 1 or prompt.prompt[0].role != 'user':
        raise DataError(
            f'{prompt.origin}: expected text or one message of the user; AlpacaEval has no '
            'place for a conversation'
        )
    return prompt.prompt[0].content


def output(prompt: Prompt, text: str, response: Response, name: str) -> dict[str, Any]:
    """A record of the model outputs; stripped, as alpaca_eval strips its own models'."""
    known = {'dataset': prompt.record['dataset']} if 'dataset' in prompt.record else {}
    answer = response.text.strip()
    return {**known, 'instruction': text, 'output': answer, 'generator': name}


def mt_bench(args: argparse.Namespace) -> Answered:
    """JSON lines of answers; the model is named by the file, as FastChat does.

    Raises:
      ConfigError, DataError: a command line or questions that cannot be used.
    """
    if args.choices < 1:
        raise ConfigError(f'--choices {args.choices}: expected 1 or more')
    if args.out.suffix != '.jsonl':
        raise ConfigError(f'--out {args.out}: expected NAME.jsonl, NAME being the model')
    questions = read_questions(args.prompts, args.limit)
    responder = responder_of(args, 1.0)  # each category has its own temperature
    began = time.perf_counter()
    talks = converse(questions, responder, template_of(args), args.choices)
    seconds = time.perf_counter() - began
    short, empty = sum(talk.short for talk in talks), sum(talk.empty for talk in talks)
    if short and jax.process_index() == 0:
        print(
            f'{short} later turns had room for less than --max_new_tokens '
            f'{args.max_new_tokens}; {empty} of them had none and are empty',
            file=sys.stderr,
        )
    rows = list(answers(talks, args.out.stem, time.time()))
    responses = [response for talk in talks for response in talk.responses]
    return Answered(_lines(rows), responses, seconds)


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)


def run_main() -> None:
    """Shows bad input as one message."""
    show_errors(main)


if __name__ == '__main__':
    run_main()
