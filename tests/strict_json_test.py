"""Every text is a value that can be written again, or one kind of error."""

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from epa_jax.strict_json import JsonError, brief, check_text, parse, shown
from tests.hostile import wild


@wild.examples(200)
@hypothesis.given(wild.values)
def test_values_come_back_or_are_refused(value):
    text = wild.dumps(value)
    try:
        json.dumps(value, ensure_ascii=False).encode('utf-8')
    except UnicodeEncodeError:
        with pytest.raises(JsonError, match=r'half a surrogate pair|not UTF-8'):
            parse(text)
    else:
        assert wild.dumps(parse(text)) == text
        json.dumps(parse(text), ensure_ascii=False).encode('utf-8')


@wild.examples(200)
@hypothesis.given(st.one_of(st.text(), st.text('[]{}":,\\ud8-+eE.0N aInfity', max_size=30)))
def test_texts_are_read_as_json_reads_them_or_refused(text):
    try:
        expected = json.loads(text)
        json.dumps(expected, ensure_ascii=False).encode('utf-8')
    except ValueError:
        with pytest.raises(JsonError):
            parse(text)
    else:
        assert repr(parse(text)) == repr(expected)


def test_the_place_is_named():
    with pytest.raises(JsonError, match=r'^not JSON: Expecting value \(column 2\)$'):
        parse('[')
    with pytest.raises(JsonError, match=r'^not JSON: .* \(line 3, column 1\)$'):
        parse('[\n1\n2]')
    with pytest.raises(JsonError, match=r'^not UTF-8: byte 0x80 at character 3$'):
        check_text('ab\udc80')


def test_errors_of_the_caller_pass():
    def unique(pairs):
        raise KeyError('mine')

    with pytest.raises(KeyError, match='mine'):
        parse('{}', unique)

    def refuse(pairs):
        raise ValueError('mine, too')

    with pytest.raises(ValueError, match=r'^mine, too$'):
        parse('{}', refuse)


@hypothesis.given(wild.values)
def test_what_is_shown_is_short(value):
    assert len(shown(value)) < 5000
    assert len(brief('a' * 10**6 + shown(value))) < 8000
    assert brief(shown(5)) == '5'


def test_a_long_message_keeps_both_ends():
    message = brief('file.json: ' + 'x' * 10**6 + ' mend it')
    assert message.startswith('file.json: ')
    assert message.endswith(' mend it')
    assert ' ... ' in message
