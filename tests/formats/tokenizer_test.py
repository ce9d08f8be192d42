"""Tokenizers of folders and of GGUF files."""

import dataclasses
import json
import shutil

import hypothesis
import pytest
import regex
import tokenizers
import transformers
from hypothesis import strategies as st

from epa_jax.formats import gguf_tokenizer
from epa_jax.formats.names import FormatError
from epa_jax.formats.tokenizer import check_vocabulary, load_tokenizer, save_tokenizer
from tests.formats import folders
from tests.tiny import SPEC

TEMPLATE = '{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}'
CHAT = [{'role': 'user', 'content': 'Hi'}]
TEXTS = st.text(
    st.one_of(
        st.sampled_from(" \n\t\r0123456789'.,<>/"),
        st.characters(min_codepoint=65, max_codepoint=122),
        st.characters(exclude_categories=['Cs', 'Cn']),
    ),
    max_size=40,
)
# src/llama-vocab.cpp of llama.cpp: patterns applied one after another to every piece
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
LLAMA3_PATTERN = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|"
    r'\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
LLAMA_CPP = {
    'gpt-2': [GPT2_PATTERN],
    'smollm': [r'\p{N}', GPT2_PATTERN],
    'llama-bpe': [LLAMA3_PATTERN],
}


def corpus():
    words = [
        'Once upon a time',
        "it's 1234 o'clock",
        'naïve café',
        '  two  spaces\n\n',
        'x=1;',
    ]
    return [' '.join(words[i:] + words[:i]) for i in range(5)]


@pytest.fixture(scope='module')
def pieces():
    """Vocabulary and merges of a small byte-level tokenizer."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(corpus() * 3, vocab_size=330, min_frequency=1)
    model = json.loads(trained.to_str())['model']
    tokens = sorted(model['vocab'], key=model['vocab'].get)
    return tokens, [' '.join(m) if isinstance(m, list) else m for m in model['merges']]


def write(path, pieces, **changes):
    tokens, merges = pieces
    tokens = [*tokens, '<s>', '</s>', '<pad>', '<think>']
    types = [1] * (len(tokens) - 4) + [3, 3, 3, 4]
    metadata = {
        'tokenizer.ggml.model': 'gpt2',
        'tokenizer.ggml.pre': 'gpt-2',
        'tokenizer.ggml.tokens': tokens,
        'tokenizer.ggml.token_type': types,
        'tokenizer.ggml.merges': merges,
        'tokenizer.ggml.bos_token_id': len(tokens) - 4,
        'tokenizer.ggml.eos_token_id': len(tokens) - 3,
        'tokenizer.ggml.padding_token_id': len(tokens) - 2,
        'tokenizer.chat_template': TEMPLATE,
    }
    metadata |= {f'tokenizer.{key.replace("__", ".")}': v for key, v in changes.items()}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    return folders.write_gguf(path, metadata, {})


def test_gguf_byte_level(tmp_path, pieces):
    tokenizer = load_tokenizer(write(tmp_path / 'm.gguf', pieces))
    n = len(pieces[0])
    assert tokenizer.bos_token_id == n
    assert tokenizer.eos_token_id == n + 1
    assert tokenizer.pad_token_id == n + 2
    assert len(tokenizer) == n + 4
    text = "  it's 12  café 🙂\n\n"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer('<s>a<think>b</s>').input_ids == [
        n,
        *tokenizer('a').input_ids,
        n + 3,
        *tokenizer('b').input_ids,
        n + 1,
    ]
    assert tokenizer.decode([n, n + 3, n + 1], skip_special_tokens=True) == '<think>'
    chat = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert chat == '<user>Hi</s>'


@pytest.mark.parametrize(
    ('pre', 'changes', 'begins', 'ends'),
    [
        ('gpt-2', {}, False, False),
        ('smollm', {}, False, False),
        ('llama-bpe', {}, True, False),
        ('tekken', {}, True, False),
        ('llama-bpe', {'ggml__add_bos_token': False}, False, False),
        ('gpt-2', {'ggml__add_bos_token': True}, True, False),
        ('gpt-2', {'ggml__add_eos_token': True}, False, True),
        ('llama-bpe', {'ggml__add_eos_token': True}, True, True),
    ],
)
def test_gguf_bos_and_eos(tmp_path, pieces, pre, changes, begins, ends):
    path = write(tmp_path / 'm.gguf', pieces, ggml__pre=pre, **changes)
    tokenizer = load_tokenizer(path)
    ids = tokenizer('time').input_ids
    assert (ids[0] == tokenizer.bos_token_id) == begins
    assert (ids[-1] == tokenizer.eos_token_id) == ends
    assert tokenizer.bos_token_id not in tokenizer('time', add_special_tokens=False)


@pytest.mark.parametrize('pre', LLAMA_CPP)
@hypothesis.given(text=TEXTS)
def test_words_are_those_of_llama_cpp(pre, text):
    """Splits by another engine (the regex package) with llama.cpp's own patterns."""
    words = [text]
    for pattern in LLAMA_CPP[pre]:
        words = [part for word in words for part in isolate(pattern, word)]
    splitter = gguf_tokenizer._WORDS[pre].pre_tokenizer()
    found = [text[a:b] for _, (a, b) in splitter.pre_tokenize_str(text)]
    assert found == words


def isolate(pattern, text):
    """Matches and what lies between them, in order."""
    parts, end = [], 0
    for match in regex.finditer(pattern, text):
        parts += [text[end : match.start()], match.group()]
        end = match.end()
    return [part for part in [*parts, text[end:]] if part]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'ggml__model': None}, 'tokenizer.ggml.model=None'),
        ({'ggml__model': 'bert'}, "tokenizer.ggml.model='bert'"),
        ({'ggml__pre': None}, 'tokenizer.ggml.pre=None'),
        ({'ggml__pre': 'default'}, "tokenizer.ggml.pre='default': expected one of gpt-2"),
        ({'ggml__tokens': None}, 'tokenizer.ggml.tokens is missing'),
        ({'ggml__tokens': [1, 2]}, 'tokenizer.ggml.tokens is missing or not str'),
        ({'ggml__merges': None}, 'tokenizer.ggml.merges is missing'),
        ({'ggml__merges': ['a b c']}, "merges: 'a b c' is not two tokens"),
        ({'ggml__merges': ['a no-such']}, "merges: 'a no-such' is not two tokens"),
        ({'ggml__token_type': [1]}, 'tokenizer.ggml.token_type has 1 entries'),
        ({'ggml__eos_token_id': 5000}, 'tokenizer.ggml.eos_token_id=5000: no such token'),
        ({'ggml__bos_token_id': None, 'ggml__add_bos_token': True}, 'want a bos_token'),
    ],
)
def test_gguf_tokenizers_that_are_not_known(tmp_path, pieces, changes, message):
    path = write(tmp_path / 'm.gguf', pieces, **changes)
    with pytest.raises(FormatError) as error:
        load_tokenizer(path)
    assert message in str(error.value)
    assert 'set model.tokenizer to a folder' in str(error.value)


def test_gguf_token_twice(tmp_path, pieces):
    tokens, merges = pieces
    path = write(tmp_path / 'm.gguf', ([*tokens, tokens[5]], merges))
    with pytest.raises(FormatError, match='has a token twice'):
        load_tokenizer(path)


@pytest.fixture(scope='module')
def stories(shared_data, tmp_path_factory):
    """The tokenizer of stories260k, and the same as SentencePiece in a GGUF file."""
    folder = shared_data / 'stories260k'
    vocabulary = json.loads((folder / 'tokenizer.json').read_text())['model']['vocab']
    tokens = sorted(vocabulary, key=vocabulary.get)
    metadata = {
        'tokenizer.ggml.model': 'llama',
        'tokenizer.ggml.tokens': tokens,
        'tokenizer.ggml.scores': [-float(max(i - 259, 0)) for i in range(len(tokens))],
        'tokenizer.ggml.token_type': [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
        'tokenizer.ggml.bos_token_id': 1,
        'tokenizer.ggml.eos_token_id': 2,
        'tokenizer.ggml.unknown_token_id': 0,
    }
    path = folders.write_gguf(tmp_path_factory.mktemp('m') / 'm.gguf', metadata, {})
    return load_tokenizer(folder), load_tokenizer(path)


@hypothesis.given(text=TEXTS)
def test_gguf_sentencepiece(stories, text):
    folder, file = stories
    assert file(text).input_ids == folder(text).input_ids
    ids = folder(text).input_ids[1:]
    assert file.decode(ids) == folder.decode(ids)


# Token ids of llama.cpp for this file.
SMOLLM2_IDS = {
    'Hello, we can use': [19556, 28, 392, 416, 722],
    'Hello world! 123': [19556, 905, 17, 216, 33, 34, 35],
    'Café déjà vu.': [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    '  multiple   spaces': [216, 2701, 256, 5600],
}


def test_smollm2(smollm2):
    tokenizer = load_tokenizer(smollm2)
    for text, ids in SMOLLM2_IDS.items():
        assert tokenizer(text).input_ids == ids
        assert tokenizer.decode(ids) == text
    chat = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert chat == (
        '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by '
        'Hugging Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
    )
    assert (tokenizer.bos_token, tokenizer.eos_token) == ('<|im_start|>', '<|im_end|>')


@pytest.mark.parametrize('class_name', ['LlamaTokenizerFast', 'TokenizersBackend', None])
def test_folder_is_read_as_it_is(tmp_path, shared_data, class_name):
    """Whatever class the config names: LlamaTokenizer would change the pieces."""
    folder = tmp_path / 'm'
    shutil.copytree(shared_data / 'stories260k', folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    config = json.loads((folder / 'tokenizer_config.json').read_text())
    config['tokenizer_class'] = class_name
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    (folder / 'chat_template.jinja').write_text(TEMPLATE)
    raw = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    tokenizer = load_tokenizer(folder)
    text = 'Once upon  a time,\n12 naïve 🙂'
    assert tokenizer(text).input_ids == raw.encode(text).ids
    assert tokenizer(text).input_ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == '<user>Hi</s>'


def test_saved_files_open_with_transformers(tmp_path, pieces):
    tokenizer = load_tokenizer(write(tmp_path / 'm.gguf', pieces))
    save_tokenizer(tokenizer, tmp_path)
    config = json.loads((tmp_path / 'tokenizer_config.json').read_text())
    assert config['tokenizer_class'] == 'PreTrainedTokenizerFast'
    assert config['chat_template'] == TEMPLATE
    assert not {'backend', 'is_local', 'local_files_only'} & set(config)
    for again in (
        transformers.AutoTokenizer.from_pretrained(tmp_path),
        load_tokenizer(tmp_path),
    ):
        for text in [*corpus(), '<s>a<think>b</s>']:
            assert again(text).input_ids == tokenizer(text).input_ids
        assert again.special_tokens_map == tokenizer.special_tokens_map
        assert again.chat_template == TEMPLATE


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        ({}, 'tokenizer.json is missing; copy the tokenizer files beside the weights'),
        ({'tokenizer.model': ''}, 'tokenizer.json is missing; convert the older'),
        ({'tokenizer.json': '{'}, 'not JSON'),
        ({'tokenizer.json': '{"model": {"type": "x"}}'}, 'cannot be read'),
    ],
)
def test_folder_without_a_tokenizer(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(FormatError) as error:
        load_tokenizer(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_neither_folder_nor_gguf(tmp_path):
    with pytest.raises(FormatError, match='expected a folder with'):
        load_tokenizer(tmp_path / 'no')


def test_tokenizer_of_a_larger_model(tmp_path, pieces):
    tokenizer = load_tokenizer(write(tmp_path / 'm.gguf', pieces))
    size = len(pieces[0]) + 4
    check_vocabulary(tokenizer, dataclasses.replace(SPEC, vocab_size=size))
    with pytest.raises(FormatError, match=f'has {size} tokens, the model {size - 1}'):
        check_vocabulary(tokenizer, dataclasses.replace(SPEC, vocab_size=size - 1))
