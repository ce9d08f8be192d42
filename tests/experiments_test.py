"""The first real run, cut short: a pretrained LLaMA on human preferences."""

import json
import math

import pytest

from epa_jax import config
from epa_jax.train import train
from experiments import stories260k_epa


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
