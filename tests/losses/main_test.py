import subprocess
import sys
from pathlib import Path

from epa_jax.losses import LOSSES
from epa_jax.losses.__main__ import main, markdown, needs_of
from epa_jax.losses.make import MODIFIERS

README = Path(__file__).resolve().parents[2] / 'README.md'


def test_every_loss_and_modifier_is_printed(capsys):
    main([])
    printed = capsys.readouterr().out
    for name, loss in LOSSES.items():
        assert f'\n{name.ljust(14)}{loss.summary[:20]}' in f'\n{printed}'
        assert all(f'{key} ' in printed for key in loss.allowed)
    assert all(f'\n{name}' in printed for name in MODIFIERS)
    assert max(map(len, printed.splitlines())) <= 88


def test_the_figure_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('epa_jax.losses.__main__.draw', lambda path: path.touch())
    main(['--figure', str(tmp_path / 'x.png')])
    assert (tmp_path / 'x.png').exists()
    assert 'x.png' in capsys.readouterr().out


def test_the_readme_shows_the_table(capsys):
    main(['--markdown'])
    assert capsys.readouterr().out.strip() in README.read_text()


def test_a_reader_that_leaves_early_is_no_error(repo_root):
    command = [sys.executable, '-m', 'epa_jax.losses']
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=repo_root, stdout=pipe, stderr=pipe) as process:
        process.stdout.close()
        assert process.stderr.read() == b''


def test_needs_in_words():
    assert needs_of(LOSSES['kto']) == 'reference, weak, batch'
    assert needs_of(LOSSES['sft']) == 'nothing'
    assert needs_of(LOSSES['infonca']) == 'reference, ratings, strong'
    assert len(list(markdown())) == len(LOSSES) + 2
