"""Chat templates and plain turns: what is prompt, what is response."""

import dataclasses
import gzip
import json

import pytest

from epa_jax.config import ConfigError
from epa_jax.data.examples import read_examples
from epa_jax.data.rendering import Renderer, Unusable
from epa_jax.data.sources import DataError
from epa_jax.schema import DataConfig
from epa_jax.types import Example, Message, Role
from tests.data import tokenizers_in_memory

TALK = (Message('user', 'Hi'), Message('assistant', 'Yes?'), Message('user', 'Why'))


@pytest.fixture(scope='module')
def chatml():
    return tokenizers_in_memory.chatml()


@pytest.fixture(scope='module')
def llama():
    return tokenizers_in_memory.sentencepiece_like()


def with_template(tokenizer, template):
    """A renderer with this template; the tokenizer's own is put back."""
    kept, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        return Renderer(tokenizer, DataConfig())
    finally:
        tokenizer.chat_template = kept


def example(prompt, *responses):
    roles = (Role.CHOSEN, *[Role.REJECTED] * (len(responses) - 1))
    return Example(prompt, responses, roles, None, 'data.jsonl:7')


def test_conversations_follow_the_template(chatml):
    before, texts = Renderer(chatml, DataConfig()).render(example(TALK, 'Because', 'No'))
    assert before == (
        '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n'
        '<|im_start|>user\nWhy<|im_end|>\n<|im_start|>assistant\n'
    )
    assert texts == ['Because', 'No']


def test_plain_text_meets_the_template_as_a_message_of_the_user(chatml):
    renderer = Renderer(chatml, DataConfig())
    as_text = renderer.render(example('Hi', 'Yes'))
    assert as_text == renderer.render(example((Message('user', 'Hi'),), 'Yes'))
    assert '<|im_start|>user\nHi<|im_end|>' in as_text[0]


def test_a_template_that_trims_and_spaces_the_response(llama):
    renderer = with_template(llama, tokenizers_in_memory.INSTRUCTION)
    before, texts = renderer.render(example(TALK, 'Because  ', ' No'))
    assert before == '<s>[INST] Hi [/INST] Yes? </s><s>[INST] Why [/INST]'
    assert texts == [' Because ', ' No ']


def test_without_a_template_text_is_joined_as_it_is(llama):
    renderer = Renderer(llama, DataConfig())
    assert renderer.render(example('2 + 2 =', ' 4', '5')) == ('2 + 2 =', [' 4', '5'])


def test_without_a_template_conversations_are_plain_turns(llama):
    before, (text,) = Renderer(llama, DataConfig()).render(example(TALK, 'Because'))
    assert before == '\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why\n\nAssistant:'
    # an answer looks like the answers of earlier turns
    assert (before + text).endswith('\n\nAssistant: Because')


def test_the_last_turn_has_the_shape_of_those_before(llama, chatml):
    """What is trained on must look as it will when it has become an earlier turn."""
    for tokenizer in (llama, chatml):
        renderer = Renderer(tokenizer, DataConfig(chat_template='none'))
        before, (text,) = renderer.render(example(TALK, 'Because'))
        later = (*TALK, Message('assistant', 'Because'), Message('user', 'So'))
        longer, _ = renderer.render(example(later, 'Yes'))
        assert longer.startswith(f'{before}{text}\n\n')


def test_plain_turns_are_the_transcripts_of_hh_rlhf(llama, shared_data):
    """Prompt and response put together are the published text, blanks at ends aside."""
    path = shared_data / 'hh_rlhf_harmless_test.jsonl.gz'
    examples, _ = read_examples(str(path), bad_lines='skip')
    with gzip.open(path, 'rt', encoding='utf-8') as file:
        published = [json.loads(line) for line in file]
    renderer, exact = Renderer(llama, DataConfig()), 0
    for item in examples:
        record = published[int(item.origin.rpartition(':')[2]) - 1]
        before, texts = renderer.render(item)
        for text, name in zip(texts, ('chosen', 'rejected'), strict=True):
            said, words = before + text, record[name]
            exact += said == words
            assert said.split() == words.split()
            assert before.endswith('\n\nAssistant:')
            assert text[0] == ' '
    assert exact > 0.9 * 2 * len(examples)


def test_none_ignores_the_tokenizers_template(chatml):
    renderer = Renderer(chatml, DataConfig(chat_template='none'))
    assert renderer.render(example('Hi', 'Yes')) == ('Hi', ['Yes'])


@pytest.mark.parametrize('response', ['a<|im_end|>b', '<|im_end|> b', ''])
def test_an_end_of_sequence_in_a_response_is_not_the_templates(chatml, response):
    """Only what the template writes behind the response ends it."""
    _, (text,) = Renderer(chatml, DataConfig()).render(example('Hi', response))
    assert text == response


@pytest.mark.parametrize('end', ['</s>', '</s></s>', '</s> </s>\n'])
def test_a_response_that_comes_with_its_end(llama, end):
    """Data sets that were made for one model may hold its end of sequence."""
    plain = Renderer(llama, DataConfig())
    assert plain.render(example('Hi', f'Yes{end}')) == ('Hi', ['Yes'])
    templated = with_template(llama, tokenizers_in_memory.INSTRUCTION)
    assert templated.render(example('Hi', f'Yes{end}'))[1] == [' Yes ']


def test_a_template_without_an_end_keeps_all_it_writes(chatml):
    renderer = with_template(
        chatml, '{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}'
    )
    assert renderer.render(example('Hi', 'Yes')) == ('[user]Hi\n', ['[assistant]Yes\n'])


def test_a_template_that_changes_the_response(chatml):
    shout = tokenizers_in_memory.CHATML.replace('m.content }}', 'm.content | upper }}')
    _, (text,) = with_template(chatml, shout).render(example('Hi', 'Yes'))
    assert text == 'YES'


def test_a_system_prompt_comes_first_unless_there_is_one(chatml):
    renderer = Renderer(chatml, DataConfig(system_prompt='Be brief.'))
    system = '<|im_start|>system\nBe brief.<|im_end|>\n'
    assert renderer.render(example('Hi', 'Yes'))[0].startswith(system)
    own = (Message('system', 'Be long.'), Message('user', 'Hi'))
    assert 'brief' not in renderer.render(example(own, 'Yes'))[0]


def test_a_system_prompt_with_nowhere_to_go_is_refused(llama):
    renderer = Renderer(llama, DataConfig(system_prompt='Be brief.'))
    with pytest.raises(ConfigError, match=r'data\.system_prompt.*data\.jsonl:7'):
        renderer.render(example('Hi', 'Yes'))


def test_a_template_that_puts_the_response_elsewhere_is_refused(chatml):
    backwards = (
        '{% for m in messages | reverse %}{{ m.content }}{% endfor %}'
        '{% if add_generation_prompt %}>{% endif %}'
    )
    renderer = with_template(chatml, backwards)
    with pytest.raises(DataError, match=r'data\.jsonl:7: the chat template does not put'):
        renderer.render(example('Hi', 'Yes'))


def test_messages_that_the_template_refuses(llama):
    system = example((Message('system', 'Be brief.'), Message('user', 'Hi')), 'Yes')
    renderer = with_template(llama, tokenizers_in_memory.INSTRUCTION)
    with pytest.raises(DataError, match=r'data\.jsonl:7: .*refuses.*no system here'):
        renderer.render(system)
    cfg = dataclasses.replace(DataConfig(), bad_lines='skip')
    skipping = Renderer(llama, cfg)
    skipping.template = tokenizers_in_memory.INSTRUCTION
    with pytest.raises(Unusable, match='no system here'):
        skipping.render(system)


def test_a_template_from_a_file(tmp_path, llama):
    path = tmp_path / 'chat.jinja'
    path.write_text('{% for m in messages %}<{{ m.content }}>{% endfor %}')
    renderer = Renderer(llama, DataConfig(chat_template=str(path)))
    assert renderer.render(example('Hi', 'Yes')) == ('<Hi>', ['<Yes>'])


def test_a_missing_template_file(llama):
    with pytest.raises(ConfigError, match=r"data\.chat_template='chat\.jinja': expected"):
        Renderer(llama, DataConfig(chat_template='chat.jinja'))


def test_several_named_templates(chatml):
    assert with_template(chatml, {'default': 'a', 'tool_use': 'b'}).template == 'a'
    with pytest.raises(ConfigError, match='tool_use and none named default'):
        with_template(chatml, {'tool_use': 'b'})
