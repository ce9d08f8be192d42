"""The first real run, cut short, and the commands that experiments name."""

import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from epa_jax import command_line, config
from epa_jax.train import train
from experiments import starter, stories260k_epa
from tests import small_run

EXPERIMENTS = sorted(Path(starter.__file__).parent.glob('*.py'))
NAMED = [path for path in EXPERIMENTS if '--config.' in path.read_text()]


def test_stories260k_trains_on_real_pairs(shared_data, tmp_path):
    folder = shared_data / 'stories260k'
    pairs = shared_data / 'hh_rlhf_harmless_test.jsonl.gz'
    if not (folder.is_dir() and pairs.is_file()):
        pytest.skip('needs stories260k and HH-RLHF in ../shared/data')
    cfg = stories260k_epa.get_config()
    cfg.workdir = str(tmp_path / 'run')
    cfg.model.path, cfg.data.train = str(folder), str(pairs)
    cfg.reference.cache_dir = str(tmp_path / 'cache')
    cfg.steps, cfg.data.max_examples, cfg.data.eval_examples = 2, 40, 8
    cfg.data.max_prompt_tokens, cfg.data.max_response_tokens = 64, 48
    cfg.optim.warmup_ratio = 0.0
    summary = train(config.resolve(cfg)).summary
    before, after = summary['eval_first'], summary['eval_last']
    assert before['eval/loss'] == pytest.approx(math.log(4), abs=1e-4)
    assert abs(after['eval/loss'] - before['eval/loss']) > 1e-4
    report = json.loads((tmp_path / 'run' / 'data_report.json').read_text())
    assert report['train']['examples'] == 40
    assert (tmp_path / 'run' / 'export' / 'model.safetensors').is_file()


def overrides(text):
    """Each run of `--config.key=value` flags in a text, as a list."""
    for flags in re.findall(r'(?:--config\.\S+\s*)+', text.replace('\\\n', ' ')):
        yield [flag.rstrip(';.,)') for flag in flags.split()]


@pytest.mark.parametrize('path', NAMED, ids=lambda p: p.stem)
def test_flags_that_a_docstring_names_resolve(path):
    experiment = runpy.run_path(str(path))
    for flags in overrides(experiment['__doc__']):
        command_line.check_flags(flags)
        pairs = [flag.removeprefix('--config.').partition('=') for flag in flags]
        values = {key: config.parse(key, text) for key, _, text in pairs}
        run = config.resolve(config.changed(experiment['get_config'](), values))
        assert config.flatten(run).items() >= values.items()


def test_the_starter_trains_on_a_model_and_pairs_of_one_s_own(tmp_path):
    small_run.write(tmp_path)
    cfg = starter.get_config()
    cfg.model.path, cfg.data.train = str(tmp_path / 'model'), str(tmp_path / 'pairs.jsonl')
    cfg.workdir, cfg.data.eval_examples, cfg.steps = str(tmp_path / 'run'), 4, 2
    cfg.reference.cache_dir = str(tmp_path / 'cache')
    cfg.data.max_prompt_tokens, cfg.data.max_response_tokens = 16, 16
    cfg.batch.prompts, cfg.log.every = 4, 1
    summary = train(config.resolve(cfg)).summary
    assert summary['eval_first']['eval/loss'] == pytest.approx(math.log(4), abs=1e-4)


def test_a_machine_without_a_recipe_is_one_message(repo_root):
    command = [sys.executable, '-m', 'epa_jax.train']
    command.append('--config=experiments/mistral_7b_epa.py:v5e-17')
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 1
    assert "machine 'v5e-17': expected one of v5e-16, v5e-64" in done.stderr
    assert 'Traceback' not in done.stderr
