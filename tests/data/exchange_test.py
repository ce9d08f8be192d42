import dataclasses

import jax
import numpy as np
import pytest

from epa_jax.config import ConfigError
from epa_jax.data import exchange as exchange_lib
from epa_jax.data.documents import Document, sequences
from epa_jax.data.exchange import Share, exchange, exchange_words, from_bytes, to_bytes
from epa_jax.data.sources import DataError
from epa_jax.data.tokenise import tokenise
from epa_jax.distributed import own_part
from epa_jax.schema import DataConfig
from epa_jax.types import Example, Role
from tests import small_run
from tests.data.pod import Pod
from tests.data.token_examples import random_examples

LIMITS = DataConfig(max_prompt_tokens=4, max_response_tokens=4, overlong_response='drop')


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.origin, a.prompt_key) == (b.origin, b.prompt_key)
        arrays = [(x.prompt_ids, *x.response_ids, x.roles, x.ratings) for x in (a, b)]
        for x, y in zip(*arrays, strict=True):
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype


@pytest.mark.parametrize('count', [0, 1, 30])
def test_a_share_survives_being_bytes(count):
    examples = [
        dataclasses.replace(e, origin=f'ü:{i}')
        for i, e in enumerate(random_examples(count))
    ]
    found = from_bytes(to_bytes(Share(examples, {'kept': count})))
    assert_same(found.examples, examples)
    assert (found.report, found.error) == ({'kept': count}, None)


@pytest.mark.parametrize('kind', [ConfigError, DataError])
def test_so_does_an_error(kind):
    error = from_bytes(to_bytes(Share([], {}, kind('x.jsonl:3: bad')))).error
    assert (type(error), str(error)) == (kind, 'x.jsonl:3: bad')


def examples(count=30):
    def words(i, n):
        return ' '.join(small_run.WORDS[(i + k) % 44] for k in range(n))

    return [
        Example(
            prompt=words(i, 1 + i % 7),
            responses=(words(i, 1 + i % 5), words(i + 9, 1 + i % 3)),
            roles=(Role.CHOSEN, Role.REJECTED),
            ratings=None,
            origin=f'x:{i}',
        )
        for i in range(count)
    ]


@pytest.mark.parametrize('processes', [2, 3, 40])
def test_tokens_and_counts_do_not_depend_on_the_processes(monkeypatch, processes):
    def work():
        part = examples()[own_part(30)]
        return tokenise(part, small_run.tokenizer(), LIMITS)

    alone, report = work()
    assert report.dropped
    assert report.truncated_prompts
    found, together = Pod(monkeypatch, processes).agreed(work)
    assert_same(found, alone)
    assert together == report


def test_documents_do_not_depend_on_the_processes(monkeypatch):
    documents = [Document(' '.join(small_run.WORDS[i : i + 9]), f'x:{i}') for i in range(9)]

    def work():
        return sequences(documents[own_part(9)], small_run.tokenizer(), 4)

    alone = work()
    assert_same(Pod(monkeypatch, 2).agreed(work), alone)


def test_an_error_of_one_process_is_that_of_all(monkeypatch):
    strict = dataclasses.replace(LIMITS, overlong_prompt='error')

    def work():
        return tokenise(examples(10)[own_part(10)], small_run.tokenizer(), strict)

    for error in Pod(monkeypatch, 2).run(work):
        assert isinstance(error, DataError)
        assert 'x:4: the prompt has 5 tokens' in str(error)


def test_words_and_errors_of_all_processes(monkeypatch):
    pod = Pod(monkeypatch, 3)
    found = pod.run(lambda: exchange_words({'mine': jax.process_index()}))
    assert found == [[{'mine': 0}, {'mine': 1}, {'mine': 2}]] * 3

    def fails():
        error = ConfigError(f'in {jax.process_index()}') if jax.process_index() else None
        return exchange_words({}, error)

    assert {(type(e), str(e)) for e in pod.run(fails)} == {(ConfigError, 'in 1')}


@pytest.mark.parametrize('rounds', [8, 10**6])
def test_bytes_are_sent_in_rounds(monkeypatch, rounds):
    """Two processes, of which the other sends as much of its own, in reverse."""
    share = Share(random_examples(3), {'kept': 3})
    other = to_bytes(Share(random_examples(5, seed=1), {'kept': 5}))
    size = np.array(divmod(len(other), 2**20), np.int32)
    starts = range(0, 10**4, rounds // 2)
    parts = [np.frombuffer(other[i : i + rounds // 2], np.uint8) for i in starts]
    sent = iter([size, *parts])

    def allgather(mine):
        theirs = next(sent)
        padded = np.zeros_like(mine)
        padded[: len(theirs)] = theirs
        return np.stack([mine, padded])

    monkeypatch.setattr(exchange_lib, 'ROUND_BYTES', rounds)
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(exchange_lib.multihost_utils, 'process_allgather', allgather)
    found = exchange(share)
    assert_same(found[0].examples, share.examples)
    assert_same(found[1].examples, random_examples(5, seed=1))
    assert [s.report for s in found] == [{'kept': 3}, {'kept': 5}]
