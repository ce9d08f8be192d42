"""Our files in the alpaca_eval package: loaded, judged and scored as a user would.

Its own annotator asks a judge on this machine, whose preferences follow a formula, so that
win rates are known beforehand. What the package fetches from the hub for length-controlled
win rates (df_gamed.csv, which it does not ship) is replaced by responses of the same judge.
"""

import json
import re
import warnings

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # of its own imports
    alpaca_eval = pytest.importorskip('alpaca_eval')
    import alpaca_eval.metrics.glm_winrate as glm
    import pandas as pd
    import yaml

from epa_jax import benchmark, judge
from tests import small_run
from tests.chat_server import completion, serve

pytestmark = [
    pytest.mark.alpaca_eval,
    pytest.mark.filterwarnings('ignore'),  # of pandas and scikit-learn, about its code
]
SIZES = {'ours': '14', 'theirs': '8'}
QUALITY = 0.4  # log-odds of ours at equal length
LENGTH = -1.5  # log-odds for each unit of tanh of (theirs - ours) / deviation


def logistic(x):
    return 1 / (1 + np.exp(-x))


class Files:
    """Outputs of two policies and what a judge that likes length thinks of them."""

    def __init__(self, folder):
        self.folder = folder
        for seed, name in enumerate(SIZES):
            small_run.write(folder / name, seed=seed)
        self.respond([f'w{i % 44} w{i // 44} w{i % 7}' for i in range(60)])
        # where both say the same, alpaca_eval asks no judge; a response follows from its
        # own prompt, so the others come out as before
        self.respond([p for p in self.ours if self.ours[p] != self.theirs[p]])
        gaps = [len(self.theirs[p]) - len(self.ours[p]) for p in self.ours]
        odds = QUALITY + LENGTH * np.tanh(np.array(gaps) / np.std(gaps, ddof=1))
        self.wins = dict(zip(self.ours, logistic(odds), strict=True))

    def respond(self, prompts):
        with (self.folder / 'prompts.jsonl').open('w') as file:
            for prompt in prompts:
                file.write(json.dumps({'prompt': prompt, 'dataset': 'made'}) + '\n')
        for name, size in SIZES.items():
            where = ['--prompts', str(self.folder / 'prompts.jsonl'), '--name', name]
            model, out = self.folder / name / 'model', self.folder / f'{name}.json'
            options = ['--max_new_tokens', size, '--out', str(out), *where]
            benchmark.main(['alpaca_eval', str(model), *options])
        self.ours, self.theirs = (self.read(name) for name in SIZES)

    def read(self, name):
        rows = json.loads((self.folder / f'{name}.json').read_text())
        return {row['instruction']: row['output'] for row in rows}

    def prefers_first(self, prompt, first, second):
        """Probability; the responses tell which is ours."""
        assert {first, second} == {self.ours[prompt], self.theirs[prompt]}
        win = self.wins[prompt]
        return win if first == self.ours[prompt] else 1 - win


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    found = Files(tmp_path_factory.mktemp('alpaca_eval'))
    assert len(found.wins) > 40
    assert all(found.ours[p] != found.theirs[p] for p in found.ours)
    return found


def by_token(files):
    """The judge behind alpaca_eval's template: log-probs of the tokens m and M."""

    def reply(body, _):
        text = body['messages'][-1]['content']
        (prompt,) = re.findall(r'"instruction": """(.*?)"""', text, re.S)
        first, second = re.findall(r'"output": """(.*?)"""', text, re.S)
        p = files.prefers_first(prompt, first, second)
        tokens = [
            {'token': token, 'bytes': None, 'logprob': float(np.log(x))}
            for token, x in (('m', p), ('M', 1 - p))
        ]
        answer = completion('m')
        logprobs = {'content': [{**tokens[0], 'top_logprobs': tokens}], 'refusal': None}
        answer['choices'][0]['logprobs'] = logprobs
        return 200, answer, {}

    return reply


def by_mark(files):
    """The same judge behind our template, sure of what it thinks likelier."""

    def reply(body, _):
        text = body['messages'][0]['content']
        found = re.search(
            r'<<< user >>>\n(.*)\n<<< response A >>>\n(.*)\n'
            r'<<< response B >>>\n(.*)\n<<< end',
            text,
            re.S,
        )
        p = files.prefers_first(*found.groups())
        return f'[[{"A" if p > 0.5 else "B"}]]'

    return reply


@pytest.fixture
def gamed(tmp_path, monkeypatch):
    """In place of the file on the hub: two policies that play with length alone."""
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=2 * 805)
    rows = {
        'model': ['concise'] * 805 + ['verbose'] * 805,
        'index': [*range(805), *range(805)],
        'preference': logistic(LENGTH * np.tanh(gaps)),
        'std_delta_len': gaps,
        'instruction_difficulty': 0.0,
        'not_gamed_baseline': False,
    }
    pd.DataFrame(rows).to_csv(tmp_path / 'df_gamed.csv', index=False)

    def fetched(repo_id, filename, **_):
        assert (repo_id, filename) == ('tatsu-lab/alpaca_eval', 'df_gamed.csv')
        return str(tmp_path / filename)

    monkeypatch.setattr(glm, 'hf_hub_download', fetched)


def evaluate(files, server_url, metric):
    """alpaca_eval with its default annotator, asked at another address."""
    clients = files.folder / 'clients.yaml'
    client = {'api_key': 'none', 'base_url': server_url}
    clients.write_text(yaml.safe_dump({'default': [client]}))
    name = 'weighted_alpaca_eval_gpt4_turbo'
    base = alpaca_eval.constants.EVALUATORS_CONFIG_DIR
    config = yaml.safe_load((base / name / 'configs.yaml').read_text())
    config[name]['prompt_template'] = str(base / config[name]['prompt_template'])
    config[name]['completions_kwargs']['client_config_path'] = str(clients)
    (files.folder / 'config').mkdir(exist_ok=True)
    (files.folder / 'config/configs.yaml').write_text(yaml.safe_dump(config))
    board, _ = alpaca_eval.evaluate(
        model_outputs=str(files.folder / 'ours.json'),
        reference_outputs=str(files.folder / 'theirs.json'),
        annotators_config=str(files.folder / 'config'),
        caching_path=str(files.folder / 'annotations_cache.json'),
        output_path=None,
        precomputed_leaderboard=None,
        is_return_instead_of_print=True,
        metric_kwargs={'glm_name': metric, 'save_weights_dir': None},
    )
    (row,) = board.to_dict('records')
    assert list(board.index) == ['ours']
    return row


@pytest.mark.parametrize('metric', ['length_controlled_v1', 'length_controlled_minimal'])
def test_win_rates_are_those_of_the_judge(files, gamed, metric):
    with serve(by_token(files)) as server:
        found = evaluate(files, server.url, metric)
    wins = np.array(list(files.wins.values()))
    assert found['win_rate'] == pytest.approx(100 * wins.mean(), abs=1e-6)
    assert found['standard_error'] == pytest.approx(
        100 * wins.std(ddof=1) / np.sqrt(len(wins)), abs=1e-6
    )
    assert found['n_total'] == len(wins)
    assert found['avg_length'] == int(np.mean([len(text) for text in files.ours.values()]))
    # at equal length only the quality is left; its regression shrinks a little
    assert found['length_controlled_winrate'] == pytest.approx(
        100 * logistic(QUALITY), abs=1.0
    )
    assert found['win_rate'] > found['length_controlled_winrate'] + 10


def test_annotations_that_are_known_need_no_judge(files, gamed):
    with serve(by_token(files)) as server:
        first = evaluate(files, server.url, 'length_controlled_minimal')
        asked = len(server.bodies)
        again = evaluate(files, server.url, 'length_controlled_minimal')
        assert len(server.bodies) == asked
    assert again == first


def test_our_judge_agrees_with_its_win_rate(files, gamed, monkeypatch):
    monkeypatch.delenv(judge.KEY, raising=False)
    with serve(by_token(files)) as server:
        theirs = evaluate(files, server.url, 'length_controlled_minimal')
    out = files.folder / 'summary.json'
    names = [str(files.folder / f'{name}.json') for name in ('ours', 'theirs')]
    with serve(by_mark(files)) as server:
        where = ['--base_url', server.url, '--out', str(files.folder / 'judged.jsonl')]
        judge.main([*names, '--model', 'x', *where, '--summary', str(out)])
    ours = json.loads(out.read_text())
    assert 100 * ours['rate']['value'] == pytest.approx(theirs['discrete_win_rate'])
    assert ours['flips'] == 0
    assert int(ours['ours_characters']) == theirs['avg_length']


def test_our_file_is_read_as_it_was_written(files):
    path = files.folder / 'ours.json'
    frame = alpaca_eval.utils.load_or_convert_to_dataframe(path)
    assert frame.to_dict('records') == json.loads(path.read_text())
    assert list(frame.columns) == ['dataset', 'instruction', 'output', 'generator']
    assert alpaca_eval.utils.get_generator_name(None, frame) == 'ours'
