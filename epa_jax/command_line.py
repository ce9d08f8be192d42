"""The flags of a command that takes a configuration, refused in one message each."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from epa_jax.config import ConfigError, check_key, nearest, parse
from epa_jax.strict_json import brief


def check_flags(argv: Sequence[str]) -> None:
    """Checks `--config` and `--config.key=value` before absl reads them.

    Raises:
      ConfigError: a file or key that does not exist, or a value of the wrong type.
    """
    for arg, following in itertools.zip_longest(argv, argv[1:], fillvalue=''):
        if arg in ('--config', '-config'):
            _check_file(following)
        elif arg.startswith(('--config=', '-config=')):
            _check_file(arg.split('=', 1)[1])
        if not arg.startswith(('--config.', '-config.', '--noconfig.')):
            continue
        key, equals, value = arg.split('config.', 1)[1].partition('=')
        check_key(key, '--config.')
        if equals:
            parse(key, value, '--config.')


def _check_file(value: str) -> None:
    path = value.partition(':')[0]  # what follows goes to get_config()
    if os.path.isfile(path):  # which no text, however odd or long, makes raise
        return
    folder = os.path.dirname(path) or '.'
    beside = sorted(map(str, Path(folder).glob('*.py'))) if os.path.isdir(folder) else []
    hint = nearest(path, beside) if beside else f' (in {Path.cwd()})'
    raise ConfigError(f'--config={brief(value)}: no such file{hint}')


def parse_flags(argv: list[str]) -> list[str]:
    """Reads the command line for absl.

    Raises:
      ConfigError: no --config, or what get_config() refused; ml_collections wraps that in
        a traceback.
    """
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        first: BaseException = error
        while first.__context__ is not None:
            first = first.__context__
        if isinstance(first, ConfigError):
            raise first from None
        return app.parse_flags_with_usage(argv)
    if flags.FLAGS['config'].value is None:
        raise ConfigError(
            '--config: missing; name a file with a get_config(), such as '
            '--config=experiments/starter.py'
        )
    return rest
