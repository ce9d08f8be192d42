"""Where a context ends, in tokens."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from epa_jax.config import ConfigError
from epa_jax.evals.continuations import Continuation, encode_continuations, share_contexts
from tests import small_run


def characters(merges=(), bos=None, eos=None, close=False):
    """Byte-level: a token a character, and the merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [t for t in (bos, eos) if t]
    words = [*special, *alphabet, *(a + b for a, b in merges)]
    backend = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    backend.decoder = decoders.ByteLevel()
    if bos:
        template = [bos, '$A'] + ([eos] if close else [])
        ids = [(t, words.index(t)) for t in special]
        backend.post_processor = processors.TemplateProcessing(
            single=' '.join(template), special_tokens=ids
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)


def decoded(tokenizer, pairs, max_tokens=99):
    found, cuts = encode_continuations(tokenizer, pairs, max_tokens)
    parts = [
        tuple(tokenizer.convert_ids_to_tokens(list(x)) for x in pair) for pair in found
    ]
    return [tuple(''.join(x).replace('Ġ', '_') for x in part) for part in parts], cuts


def test_the_space_goes_with_the_continuation():
    assert decoded(characters(), [('ab', ' cd')]) == ([('ab', '_cd')], 0)


def test_a_token_across_the_border_is_scored():
    tokenizer = characters(merges=[('b', 'c')])
    assert decoded(tokenizer, [('ab', 'cd'), ('ab', ' d')])[0] == [
        ('a', 'bcd'),
        ('ab', '_d'),
    ]


def test_own_special_tokens_begin_the_context_and_do_not_end_the_text():
    tokenizer = characters(bos='<s>', eos='</s>', close=True)
    pairs = [('ab', ' c'), ('', 'c')]
    assert decoded(tokenizer, pairs)[0] == [('<s>ab', '_c'), ('<s>', 'c')]


def test_something_is_given_where_the_context_is_empty():
    assert decoded(characters(eos='</s>'), [('', 'c')])[0] == [('</s>', 'c')]
    with pytest.raises(ConfigError, match='the tokenizer has neither'):
        encode_continuations(characters(), [('', 'c')], 9)


def test_long_contexts_lose_their_beginning_but_not_bos():
    tokenizer = characters(bos='<s>')
    pairs = [('abcdef', ' x'), ('ab', ' x')]
    assert decoded(tokenizer, pairs, 5) == ([('<s>ef', '_x'), ('<s>ab', '_x')], 1)
    with pytest.raises(ConfigError, match='has 5 tokens, the model reads 5'):
        encode_continuations(tokenizer, [('a', 'bcdef')], 5)


def test_a_continuation_has_tokens():
    with pytest.raises(ConfigError, match=r"'  ' after 'w1' has no tokens"):
        encode_continuations(small_run.tokenizer(), [('w1', '  ')], 9)


def test_pairs_share_a_context_that_is_longer_than_what_follows():
    long, short = np.arange(9), np.arange(1)
    sizes = [(long, 4), (long, 4), (short, 2), (long, 4), (short, 2), (long, 12)]
    pairs = [Continuation(given, np.zeros(size)) for given, size in sizes]
    groups = share_contexts(pairs)
    assert sorted(i for group in groups for i in group) == list(range(6))
    assert groups == [[0, 1], [2], [3], [4], [5]]
