"""What the commands share: arguments, messages, where measurements go."""

import argparse
from pathlib import Path

import pytest

from epa_jax import commands
from epa_jax.config import ConfigError


def parsed(*words):
    parser = argparse.ArgumentParser()
    commands.add_model_arguments(parser)
    parser.add_argument('--out', type=Path)
    return parser.parse_args(words)


def test_what_a_user_can_mend_is_one_message_and_other_errors_are_not():
    def bad_input():
        raise ConfigError('loss.beta=-1: expected more')

    def bug():
        raise KeyError('x')

    with pytest.raises(SystemExit) as stop:
        commands.show_errors(bad_input)
    assert stop.value.code == 'ConfigError: loss.beta=-1: expected more'
    with pytest.raises(KeyError):
        commands.show_errors(bug)
    commands.show_errors(lambda: None)


def test_measurements_of_a_run_go_to_its_folder(tmp_path):
    args = parsed(str(tmp_path))
    assert commands.evals_file(args, 'tasks') is None
    (tmp_path / 'checkpoints').mkdir()
    assert commands.evals_file(args, 'tasks') == tmp_path / 'evals/tasks.json'
    args = parsed(str(tmp_path), '--step', '8')
    assert commands.evals_file(args, 'tasks') == tmp_path / 'evals/tasks_step_8.json'
    args = parsed(str(tmp_path), '--out', 'x.json')
    assert commands.evals_file(args, 'tasks') == Path('x.json')


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match='mesh: data=3'):
        commands.policy_of(parsed('model', '--mesh_data', '3', '--mesh_fsdp', '1'))
