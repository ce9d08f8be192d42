"""The command that exports: what is read back is what was trained."""

import jax
import numpy as np
import pytest

from epa_jax import export
from epa_jax.formats.load import load_model
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.train import train
from tests import small_run


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run without an export of its own, with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp('export')
    small_run.write(folder)
    changes = {'steps': 4, 'checkpoint__every': 2, 'checkpoint__keep_last': 2}
    return train(small_run.config(folder, export=False, **changes))


def params_of(folder):
    return jax.tree.map(np.asarray, load_model(folder)[1])


def test_the_end_of_a_run(run, tmp_path, capsys):
    out = tmp_path / 'out'
    export.main([str(run.folder), str(out), '--weights', 'float32'])
    assert f'exported {out}' in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, params_of(out), run.params)
    assert len(load_tokenizer(out)) == 48
    card = (out / 'README.md').read_text()
    assert '| rewards/accuracies |' in card
    assert '4 steps of 4 prompts' in card


def test_a_checkpoint_says_that_it_is_one(run, tmp_path):
    out = tmp_path / 'out'
    export.main([str(run.folder), str(out), '--step', '2', '--mesh_tensor', '2'])
    found = params_of(out)['embed']
    assert not np.array_equal(found, np.asarray(run.params['embed'].astype('bfloat16')))
    card = (out / 'README.md').read_text()
    assert '2 steps of 4 prompts' in card
    assert 'A checkpoint of a run' in card
    export.main([str(run.folder), str(tmp_path / 'end'), '--step', '4'])
    assert '| rewards/accuracies |' in (tmp_path / 'end/README.md').read_text()


def test_a_run_that_has_not_finished_gives_its_newest_checkpoint(run, tmp_path):
    summary = run.folder / 'summary.json'
    summary.rename(run.folder / 'gone')
    try:
        export.main([str(run.folder), str(tmp_path / 'out')])
    finally:
        (run.folder / 'gone').rename(summary)
    assert '4 steps of 4 prompts' in (tmp_path / 'out/README.md').read_text()


def test_any_model_is_written_anew(run, tmp_path):
    model = run.folder.parent / 'model'
    export.main([str(model), str(tmp_path / 'out'), '--weights', 'float32'])
    jax.tree.map(
        np.testing.assert_array_equal, params_of(tmp_path / 'out'), params_of(model)
    )
    assert not (tmp_path / 'out/README.md').exists()


def test_a_folder_is_not_replaced_unless_asked(run, tmp_path, monkeypatch):
    (tmp_path / 'out').mkdir()
    words = [str(run.folder), str(tmp_path / 'out')]
    monkeypatch.setattr('sys.argv', ['export', *words])
    with pytest.raises(SystemExit) as stop:
        export.run_main()
    assert 'exists; remove it or choose another folder' in str(stop.value)
    export.main([*words, '--overwrite'])
    assert (tmp_path / 'out/model.safetensors').is_file()
