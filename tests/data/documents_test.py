"""Texts as sequences: every token is predicted once; bad records are named or counted."""

import json

import numpy as np
import pytest

from epa_jax.config import ConfigError
from epa_jax.data.documents import (
    Document,
    held_out_places,
    read_documents,
    sequences,
)
from epa_jax.data.sources import DataError
from tests.data.tokenizers_in_memory import CORPUS, chatml, sentencepiece_like

TEXTS = [*CORPUS[:4], 'a']
DOCUMENTS = [Document(text, f'x.jsonl:{i}') for i, text in enumerate(TEXTS, 1)]


@pytest.mark.parametrize('tokenizer', [chatml(), chatml(bos='<bos>'), sentencepiece_like()])
@pytest.mark.parametrize('most', [2, 7, 1000])
@pytest.mark.parametrize('append_eos', [True, False])
def test_every_token_of_a_text_is_predicted_once_and_has_all_of_its_sequence(
    tokenizer, most, append_eos
):
    found = sequences(DOCUMENTS, tokenizer, most, append_eos)
    assert max(1 + len(s.response_ids[0]) for s in found) <= most
    for document in DOCUMENTS:
        mine = [s for s in found if s.origin == document.origin]
        predicted = np.concatenate([s.response_ids[0] for s in mine]).tolist()
        text = tokenizer(document.text, add_special_tokens=False)['input_ids']
        assert predicted == text + [tokenizer.eos_token_id] * append_eos
        starts = [int(s.prompt_ids[0]) for s in mine]
        before = [int(s.response_ids[0][-1]) for s in mine[:-1]]
        lead = tokenizer.bos_token_id
        assert starts == [tokenizer.eos_token_id if lead is None else lead, *before]


def write(path, *lines):
    path.write_text('\n'.join(lines))
    return str(path)


def test_reads_texts_under_any_key(tmp_path):
    source = write(tmp_path / 'x.jsonl', *(json.dumps({'body': text}) for text in TEXTS))
    documents, report = read_documents(source, 'body')
    assert [d.text for d in documents] == TEXTS
    assert documents[1].origin == f'{source}:2'
    assert report.read == len(TEXTS)
    assert len(read_documents(source, 'body', limit=2)[0]) == 2


@pytest.mark.parametrize(
    ('line', 'reason'),
    [
        ('{"text": 3}', 'text: expected text, found int'),
        ('{"body": "x"}', r"text is missing; keys are \['body'\]"),
        ('{"text": " "}', 'text is empty'),
        ('["x"]', 'expected an object, found list'),
        ('{"text": ', 'not JSON'),
    ],
)
def test_a_bad_record_stops_or_is_counted(tmp_path, line, reason):
    source = write(tmp_path / 'x.jsonl', '{"text": "fine"}', line)
    with pytest.raises(DataError, match=rf'x.jsonl:2: {reason}.*pretrain\.text_key'):
        read_documents(source, 'text')
    documents, report = read_documents(source, 'text', bad_lines='skip')
    assert (len(documents), sum(report.skipped.values())) == (1, 1)
    with pytest.raises(DataError, match='no texts; 1 bad lines'):
        read_documents(write(tmp_path / 'y.jsonl', line), 'text', bad_lines='skip')


def test_held_out_texts_are_not_trained_on():
    out = held_out_places(5, 2, seed=3, key='k')
    assert len(out) == 2
    assert out < set(range(5))
    assert held_out_places(5, 2, 3, 'k') == out
    with pytest.raises(ConfigError, match=r'pretrain\.eval_examples=5: only 5 documents'):
        held_out_places(5, 5, 3, 'pretrain.eval_examples')
