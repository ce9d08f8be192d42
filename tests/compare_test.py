"""The command that compares."""

import pytest

from epa_jax import compare, intrinsic
from epa_jax.train import train
from tests import small_run
from tests.comparison import folders


@pytest.mark.exhaustive
def test_runs_of_training_with_their_evaluations(tmp_path, capsys):
    small_run.write(tmp_path)
    changes = {'steps': 3, 'loss__beta': 0.1}
    one = train(small_run.config(tmp_path, 'one', **changes)).folder
    two = train(small_run.config(tmp_path, 'two', seed=1, **changes)).folder
    for run in (one, two):
        intrinsic.main([str(run), '--data', str(tmp_path / 'pairs.jsonl')])
        assert (run / 'evals/intrinsic.json').is_file()
    capsys.readouterr()
    compare.main([str(one), str(two), '--out', str(tmp_path / 'out')])
    printed = capsys.readouterr().out
    assert '(2 seeds)' in printed
    assert 'r_theta: pearson' in printed
    for name in ('table.csv', 'curves.png', 'report.html'):
        assert (tmp_path / 'out' / name).stat().st_size > 100


def test_bad_input_is_one_message(tmp_path, monkeypatch):
    run = str(folders.write(tmp_path / 'run'))
    monkeypatch.setattr('sys.argv', ['compare', run, str(tmp_path / 'none')])
    with pytest.raises(SystemExit) as stop:
        compare.run_main()
    assert str(stop.value).startswith('ConfigError: ')
