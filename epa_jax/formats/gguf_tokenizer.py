"""The tokenizer inside a GGUF file."""

import dataclasses
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from epa_jax.formats.gguf_file import GgufFile
from epa_jax.formats.names import FormatError
from epa_jax.strict_json import shown

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # of tokenizer.ggml.token_type
_SPACE = '▁'
MAX_TOKEN = 4096  # characters

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_TEKKEN_WORDS = (
    r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|'
    r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|'
    r'\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


@dataclasses.dataclass(frozen=True)
class _Words:
    """How a byte-level tokenizer splits text into words, as llama.cpp's name says.

    Attributes:
      pattern: matches words; '' is GPT-2's own pattern.
      single_digits: every digit is a word, before all else.
      whole_words: a word that is a token is not taken apart by merges.
      add_bos: whether texts begin with BOS where the file does not say.
    """

    pattern: str = ''
    single_digits: bool = False
    whole_words: bool = False
    add_bos: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        byte_level = pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=not self.pattern
        )
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.single_digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.pattern:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), 'isolated'))
        return pre_tokenizers.Sequence([*steps, byte_level])


# values of tokenizer.ggml.pre; llama.cpp's src/llama-vocab.cpp has the same patterns
_LLAMA3 = _Words(_LLAMA3_WORDS, whole_words=True, add_bos=True)
_WORDS = {
    'gpt-2': _Words(),
    'smollm': _Words(single_digits=True),
    'llama-bpe': _LLAMA3,
    'llama3': _LLAMA3,
    'llama-v3': _LLAMA3,
    'tekken': _Words(_TEKKEN_WORDS, whole_words=True, add_bos=True),
}


def build_tokenizer(file: GgufFile) -> PreTrainedTokenizerFast:
    """The file's tokenizer, with its chat template and special tokens.

    Raises:
      FormatError: no tokenizer, or one of a kind that is not known here.
    """
    kind = file.metadata.get('tokenizer.ggml.model')
    if kind == 'gpt2':
        tokenizer = _byte_level(file)
    elif kind == 'llama':
        tokenizer = _sentencepiece(file)
    else:
        message = f"tokenizer.ggml.model={shown(kind)}: expected 'gpt2' or 'llama'"
        raise _error(file, message)
    tokens = _list(file, 'tokens', str)
    _add_special(tokenizer, tokens, _list(file, 'token_type', int, len(tokens)))
    if tokenizer.get_vocab_size() != len(tokens):
        raise _error(file, 'tokenizer.ggml.tokens has a token twice')
    special = _special_tokens(file, tokens)
    _add_bos_eos(file, tokenizer, special)
    template = file.metadata.get('tokenizer.chat_template')
    if template is not None and not isinstance(template, str):
        raise _error(file, f'tokenizer.chat_template={shown(template)}: expected text')
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        **special,
    )


def _error(file: GgufFile, message: str) -> FormatError:
    return FormatError(
        f'{file.path}: {message}; set model.tokenizer to a folder with tokenizer.json'
    )


def _list(file: GgufFile, key: str, kind: type, length: int | None = None) -> list[Any]:
    values = file.metadata.get(f'tokenizer.ggml.{key}')
    if not isinstance(values, list) or not all(type(v) is kind for v in values):
        raise _error(file, f'tokenizer.ggml.{key} is missing or not {kind.__name__}s')
    if length is not None and len(values) != length:
        raise _error(
            file, f'tokenizer.ggml.{key} has {len(values)} entries; expected {length}'
        )
    return values


def _byte_level(file: GgufFile) -> Tokenizer:
    """GPT-2's byte-pair encoding."""
    words = _words(file)
    tokens = _list(file, 'tokens', str)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = []
    for merge in _list(file, 'merges', str):
        left, _, right = merge.partition(' ')
        if not {left, right, left + right} <= vocabulary.keys():
            raise _error(
                file,
                f'tokenizer.ggml.merges: {merge!r} is not two tokens that make a third',
            )
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=words.whole_words))
    tokenizer.pre_tokenizer = words.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _words(file: GgufFile) -> _Words:
    name = file.metadata.get('tokenizer.ggml.pre')
    if not isinstance(name, str) or name not in _WORDS:
        raise _error(
            file, f'tokenizer.ggml.pre={shown(name)}: expected one of {", ".join(_WORDS)}'
        )
    return _WORDS[name]


def _sentencepiece(file: GgufFile) -> Tokenizer:
    """SentencePiece's byte-pair encoding: the pair with the best score merges first."""
    tokens = _list(file, 'tokens', str)
    longest = max(map(len, tokens), default=0)
    if longest > MAX_TOKEN:  # all cuts of a token are looked up
        raise _error(file, f'tokenizer.ggml.tokens: one of {longest} characters')
    scores = _list(file, 'scores', float, len(tokens))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    types = _list(file, 'token_type', int, len(tokens))
    normal = {t: s for t, s, kind in zip(tokens, scores, types, strict=True) if kind == 1}
    merges = []
    for token, score in normal.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in normal and right in normal:
                merges.append((-score, vocabulary[left], vocabulary[right], left, right))
    merges.sort()
    unknown = [token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN]
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            [(left, right) for *_, left, right in merges],
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = file.metadata.get('tokenizer.ggml.add_space_prefix', True)
    steps = [normalizers.Prepend(_SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(' ', _SPACE)])
    strip = [decoders.Strip(' ', 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, ' '), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _add_special(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Tokens that are found in text whole, before it is split."""
    marked = [(t, k) for t, k in zip(tokens, types, strict=True) if t]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in marked
            if kind in (_CONTROL, _UNKNOWN)
        ]
    )
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False) for t, kind in marked if kind == _USER_DEFINED]
    )


def _special_tokens(file: GgufFile, tokens: list[str]) -> dict[str, str]:
    """The tokens that have a role, by transformers' name of the role."""
    roles = {'bos': 'bos', 'eos': 'eos', 'unknown': 'unk', 'padding': 'pad'}
    special = {}
    for role, name in roles.items():
        i = file.metadata.get(f'tokenizer.ggml.{role}_token_id')
        if i is None:
            continue
        if type(i) is not int or not 0 <= i < len(tokens):
            raise _error(file, f'tokenizer.ggml.{role}_token_id={i!r}: no such token')
        special[f'{name}_token'] = tokens[i]
    return special


def _add_bos_eos(file: GgufFile, tokenizer: Tokenizer, special: dict[str, str]) -> None:
    """Puts BOS and EOS around texts where the file says so."""
    model = file.metadata['tokenizer.ggml.model']
    default = True if model == 'llama' else _words(file).add_bos
    begin = file.metadata.get('tokenizer.ggml.add_bos_token', default)
    end = file.metadata.get('tokenizer.ggml.add_eos_token', False)
    template = ['$A']
    used = []
    if begin:
        used.append(_role(file, special, 'bos_token'))
        template = [used[-1], *template]
    if end:
        used.append(_role(file, special, 'eos_token'))
        template = [*template, used[-1]]
    if used:
        ids = [(token, tokenizer.token_to_id(token)) for token in used]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=ids
        )


def _role(file: GgufFile, special: dict[str, str], role: str) -> str:
    if role not in special:
        raise _error(file, f'texts want a {role}, but its id is missing')
    return special[role]
