"""Tokenizers of the kinds that models come with, trained on a few lines."""

import functools

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = [
    'The quick brown fox jumps over the lazy dog. Hello there, how are you today?',
    'hello hello hello; once upon a time there was a little girl named Lily.',
    'Human: what is it?\n\nAssistant: it is a test, and a test it is.\n\n\n',
    '12 and 123 and 1,234.56! Ünïcode — naïve café 日本語 ...',
] * 4
CHATML = (
    '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n'
    '{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
# LLaMA 2's: the beginning and end of sequence are in the text
INSTRUCTION = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} "
    "[/INST]{% elif m.role == 'assistant' %} {{ m.content | trim }} {{ eos_token }}"
    "{% else %}{{ raise_exception('no ' + m.role + ' here') }}{% endif %}{% endfor %}"
)


def chatml(add_prefix_space=False, template=CHATML, bos=None):
    """Byte-level BPE; the padding token is the end of sequence.

    Args:
      add_prefix_space: the tokenizer puts a space before any text.
      template: chat template.
      bos: put before any text as LLaMA 3 does, or None.
    """
    special = ['<|im_start|>', '<|im_end|>'] + ([bos] if bos else [])
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f'{bos} $A', special_tokens=[(bos, special.index(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=bos,
        eos_token='<|im_end|>',
        pad_token='<|im_end|>',
    )
    tokenizer.chat_template = template
    return tokenizer


def sentencepiece_like(prefix='metaspace', template=None, closes_text=False):
    """BPE on '▁' with byte fall-back and BOS, as LLaMA and Mistral have.

    Args:
      prefix: how a space comes before any text: 'metaspace' or the older 'normalizer'.
      template: chat template.
      closes_text: the tokenizer itself puts the end of sequence after any text.
    """
    special = ['<unk>', '<s>', '</s>']
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token='<unk>', fuse_unk=True))
    if prefix == 'metaspace':
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
    else:
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
        )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace('▁', ' '),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=' ', left=1),
        ]
    )
    fallback = [f'<0x{byte:02X}>' for byte in range(256)]
    core.train_from_iterator(
        [word for line in CORPUS[:3] for word in line.replace('\n', ' ').split()],
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=special + fallback, show_progress=False
        ),
    )
    core.post_processor = processors.TemplateProcessing(
        single='<s> $A </s>' if closes_text else '<s> $A',
        special_tokens=[('<s>', 1), ('</s>', 2)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token='<s>', eos_token='</s>', unk_token='<unk>'
    )
    tokenizer.chat_template = template
    return tokenizer


MAKERS = {
    'chatml': chatml,
    'chatml, space before text': functools.partial(chatml, add_prefix_space=True),
    'llama 3': functools.partial(chatml, template='{{ bos_token }}' + CHATML, bos='<s>'),
    'no bos in the template': functools.partial(chatml, bos='<s>'),
    'metaspace': sentencepiece_like,
    'normalizer': functools.partial(sentencepiece_like, 'normalizer'),
    'instruction': functools.partial(sentencepiece_like, 'normalizer', INSTRUCTION),
    'closes text': functools.partial(sentencepiece_like, closes_text=True),
}
WITH_BOS = ['llama 3', 'metaspace', 'normalizer', 'instruction', 'closes text']
TEXTS = [
    'hello',
    ' hello',
    '  two spaces',
    '\n\nnew lines',
    '. dot',
    '1 and 2',
    'a',
    '',
    ' ',
    'naïve 日本語',
    'ends in a space ',
    'ends in lines\n\n',
]


@functools.cache
def made(name):
    """One of `MAKERS`, made once; not to be changed."""
    return MAKERS[name]()


def text_of(tokenizer, ids):
    """What ids say; byte-level and '▁' tokens put back together without any cleaning."""
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)
