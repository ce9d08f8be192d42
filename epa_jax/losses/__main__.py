"""The losses and what each takes; --figure draws them, --markdown prints a table."""

import argparse
import signal
import textwrap
from collections.abc import Iterator, Sequence

from epa_jax.losses.curves import draw
from epa_jax.losses.definition import LossDef
from epa_jax.losses.make import MODIFIERS
from epa_jax.losses.registry import LOSSES
from epa_jax.storage import argument as local_path

WIDTH = 88
INDENT = 14
NOTES = """\
Needs: reference, its log-probs; ratings, of every response; ranks, ratings if a prompt
has several strong negatives; strong, weak, such negatives; batch, the whole step, as
prompts depend on one another (one more forward pass).

Modifiers of any loss that allows them:
{modifiers}

loss.name may also be a weighted sum, such as '0.8*dpo + 0.2*bco'."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog='python -m epa_jax.losses', description=__doc__)
    parser.add_argument(
        '--figure', type=local_path, help='a PNG of losses and their gradients'
    )
    parser.add_argument('--markdown', action='store_true', help='as a Markdown table')
    args = parser.parse_args(argv)
    print('\n'.join(markdown() if args.markdown else plain()))
    if args.figure:
        draw(args.figure)
        print(f'\nfigure {args.figure}')


def plain() -> Iterator[str]:
    """Every loss in a few lines: what it is, its hyperparameters, its needs."""
    for name, loss in LOSSES.items():
        values = ', '.join(f'{key} {value}' for key, value in loss.defaults().items())
        yield from _hang(name, f'{loss.summary} ({loss.source})')
        if values:
            yield from _hang('', f'takes {values}')
        yield from _hang('', f'needs {needs_of(loss)}')
        yield ''
    modifiers = (_hang(key, str(allowed), 18) for key, allowed in MODIFIERS.items())
    lines = '\n'.join(line for lines in modifiers for line in lines)
    yield NOTES.format(modifiers=lines)


def _hang(head: str, text: str, indent: int = INDENT) -> list[str]:
    """Text beside a head, wrapped."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=head.ljust(indent),
        subsequent_indent=' ' * indent,
        break_on_hyphens=False,
    )


def needs_of(loss: LossDef) -> str:
    """Its requirements in a few words."""
    words = {
        'reference': loss.needs_reference,
        'ratings': loss.ratings == 'always',
        'ranks': loss.ratings == 'ranks',
        'strong': loss.min_strong > 0,
        'weak': loss.min_weak > 0,
        'batch': loss.couples_prompts,
    }
    return ', '.join(word for word, needed in words.items() if needed) or 'nothing'


def markdown() -> Iterator[str]:
    """The table of losses as in the README, a line each."""
    yield '| `loss.name` | what it is | needs | takes |'
    yield '| --- | --- | --- | --- |'
    for name, loss in LOSSES.items():
        values = ', '.join(f'`{key}`' for key in loss.allowed) or 'nothing'
        yield f'| `{name}` | {loss.summary} | {needs_of(loss)} | {values} |'


if __name__ == '__main__':
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as head may leave early
    main()
