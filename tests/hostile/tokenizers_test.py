"""Tokenizers, chat templates and GGUF metadata made to harm: used, or refused by file."""

import json
import struct

import hypothesis
import pytest
from hypothesis import strategies as st

from epa_jax.data.tokenise import tokenise
from epa_jax.evals.stopping import stop_ids
from epa_jax.formats import load
from epa_jax.formats.names import FormatError
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.models.hf_config import spec_from_hf
from epa_jax.schema import DataConfig
from epa_jax.types import Example, Role
from tests import small_run
from tests.formats import folders
from tests.hostile import wild
from tests.hostile.wild import read_or_refuse

SPEC = spec_from_hf(folders.CONFIG | {'num_hidden_layers': 1}, 'here')
PARAMS = folders.random_params(SPEC)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Holds a good tokenizer."""
    folder = tmp_path_factory.mktemp('models')
    small_run.tokenizer().save_pretrained(folder / 'single')
    return folder


TOKENS = ['<unk>', '<s>', '</s>', 'a', 'b', 'ab', '▁', '▁a']
METADATA = folders.gguf_metadata(SPEC) | {
    'tokenizer.ggml.model': 'llama',
    'tokenizer.ggml.tokens': TOKENS,
    'tokenizer.ggml.scores': [-float(i) for i in range(8)],
    'tokenizer.ggml.token_type': [2, 3, 3, 1, 1, 1, 1, 1],
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 2,
    'tokenizer.ggml.merges': ['a b'],
    'tokenizer.chat_template': '{{ messages[0].content }}',
}
gguf_values = st.one_of(
    st.sampled_from(['', 'gpt2', 'llama', 'llama-bpe', 'a' * 3000, '\0']),
    st.integers(0, 2**32 - 1),
    st.floats(width=32),
    st.booleans(),
    st.lists(st.integers(-4, 9), min_size=1, max_size=9),
    st.lists(st.floats(width=32), min_size=1, max_size=9),
    st.lists(st.sampled_from(TOKENS), min_size=1, max_size=9),
)


def read_gguf(path):
    load.load_model(path)
    tokenizer = load_tokenizer(path)
    tokenizer('ab a <s>')


def test_the_gguf_file_is_good_before_it_is_damaged(tmp_path):
    tensors = folders.gguf_tensors(PARAMS)
    read_gguf(folders.write_gguf(tmp_path / 'm.gguf', METADATA, tensors))


@wild.examples(60)
@hypothesis.given(
    st.dictionaries(st.sampled_from(sorted(METADATA)), gguf_values, min_size=1, max_size=2)
)
def test_damaged_gguf_metadata(folder, changes):
    tensors = folders.gguf_tensors(PARAMS)
    path = folders.write_gguf(folder / 'm.gguf', METADATA | changes, tensors)
    read_or_refuse(lambda: read_gguf(path), path)


def test_a_gguf_count_that_lies_takes_no_memory(tmp_path):
    path = tmp_path / 'm.gguf'
    key = struct.pack('<Q', 1) + b'k'
    for kind, count in ((0, 2**62), (12, 2**61), (8, 2**60), (9, 5)):
        array = struct.pack('<IIQ', 9, kind, count)
        path.write_bytes(b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + key + array + b'\0' * 64)
        with pytest.raises(FormatError, match=r'm\.gguf: '):
            load.load_spec(path)
    path.write_bytes(b'GGUF' + struct.pack('<IQQ', 3, 2**63, 2**63) + b'\0' * 64)
    with pytest.raises(FormatError, match=r'm\.gguf: '):
        load.load_spec(path)


def test_a_gguf_token_of_megabytes_takes_no_time(tmp_path):
    """All cuts of a token are looked up: of a long one they would take hours."""
    changes = {'tokenizer.ggml.tokens': [*TOKENS[:-1], 'a' * 2_000_000]}
    tensors = folders.gguf_tensors(PARAMS)
    path = folders.write_gguf(tmp_path / 'm.gguf', METADATA | changes, tensors)
    with pytest.raises(FormatError, match=r'tokens: one of 2000000 characters'):
        load_tokenizer(path)


EXAMPLE = Example('w1', ('w2', 'w3'), (Role.CHOSEN, Role.REJECTED), None, 'd.jsonl:1')


def tokenizer_files(folder):
    return sorted(p.name for p in (folder / 'single').glob('*token*.json'))


@wild.examples(100)
@hypothesis.given(st.data())
def test_damaged_tokenizers(folder, data):
    target = folder / 'tokenizer'
    target.mkdir(exist_ok=True)
    names = tokenizer_files(folder)
    assert 'tokenizer.json' in names
    damaged = data.draw(st.sampled_from(names))
    for name in names:
        document = json.loads((folder / 'single' / name).read_text())
        if name == damaged:
            document = data.draw(wild.damaged(document))
        (target / name).write_text(wild.dumps(document))

    def read():
        tokenizer = load_tokenizer(target)
        return tokenise([EXAMPLE], tokenizer, DataConfig())

    read_or_refuse(read, target, 'model.tokenizer', 'd.jsonl:1', 'chat_template')


@pytest.mark.parametrize(
    'template',
    [
        '{% for %}',
        '{{ messages[99].content.x.y }}',
        '{{ 1 / 0 }}',
        '{% for i in range(10**9) %}a{% endfor %}',
        '{{ messages + 5 }}',
        '{{ raise_exception("no") }}',
        '{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}',
        '{{ messages.__class__.__mro__ }}',
        '{{ cycler.__init__.__globals__.os.system("true") }}',
        '{% include "/etc/passwd" %}',
        '\ud800',
    ],
)
def test_templates_are_refused_with_their_example(tmp_path, template):
    path = tmp_path / 't.jinja'
    path.write_bytes(template.encode('utf-8', 'surrogatepass'))
    cfg = DataConfig(chat_template=str(path))
    read_or_refuse(
        lambda: tokenise([EXAMPLE], small_run.tokenizer(), cfg), 'd.jsonl:1', 't.jinja'
    )


@wild.examples(25)
@hypothesis.given(wild.values)
def test_wild_generation_configurations(folder, value):
    path = folder / 'single' / 'generation_config.json'
    path.write_text(wild.dumps({'eos_token_id': value}))
    ids = read_or_refuse(lambda: stop_ids(small_run.tokenizer(), path.parent, ()), path)
    assert ids is None or all(0 <= id_ < 2**31 for id_ in ids)
