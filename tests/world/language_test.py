"""The small language: its words, its prompts, and rewards worked out by hand."""

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from epa_jax.world import language
from epa_jax.world.language import Prompt
from epa_jax.world.measure import MAX_NEW_TOKENS

BRIEF = Prompt('tell me', 'briefly', ('roses', 'bees'), 'garden')
FULL = Prompt('talk', 'fully', ('roses', 'bees'), 'garden')
WORDS = language.words()
PROMPTS = language.all_prompts()


def test_no_word_is_said_twice_or_of_two_topics():
    assert len(WORDS) == len(set(WORDS))
    content = [
        word
        for topic in language.TOPICS
        for word in language.THINGS_OF[topic] + language.QUALITIES_OF[topic]
    ]
    assert len(content) == len(set(content)) == 10 * (7 + 4)
    others = {*language.POLITE, *language.RUDE, *language.VERBS, *language.FUNCTION_WORDS}
    assert not others & set(content)


def test_every_prompt_is_there_once():
    # topics x ordered pairs of seven things x lengths x openings
    assert len({p.text for p in PROMPTS}) == len(PROMPTS) == 10 * 7 * 6 * 2 * 6
    assert BRIEF in PROMPTS
    assert BRIEF.text == 'tell me briefly about roses and bees in the garden'
    assert {word for p in PROMPTS for word in p.text.split()} <= set(WORDS)


# relevance + coverage + form + courtesy - rudeness - repetition - ending
BY_HAND = {
    'gladly , roses and bees are fragrant .': 1 + 1 + 0.5 + 0.25,
    'roses and bees are fragrant .': 1 + 1 + 0.5,
    'roses are fragrant .': 1 + 0.5 + 0.5,
    'weeds are fragrant .': 1 + 0 + 0.5,
    'weeds are salty .': 0 + 0 + 0.5,
    'ships are fragrant , bees are salty .': 0 + 0.5 - 0.5,
    'ships are salty .': -1 + 0 + 0.5,
    'idiot , roses and bees are fragrant .': 1 + 1 + 0.5 - 1,
    'gladly , idiot , roses and bees are fragrant .': 1 + 1 + 0.5 + 0.25 - 1,
    'gladly sure , ugh whatever , roses and bees are fragrant .': 1 + 1 + 0.5 + 0.25 - 1,
    'roses and bees are fragrant': 1 + 1 + 0.5 - 0.5,
    'roses and bees are fragrant . .': 1 + 1 + 0.5 - 0.5,
    '. roses and bees are fragrant': 1 + 1 + 0.5 - 0.5,
    'roses and roses are fragrant .': 1 + 0.5 + 0.5 - 0.5,
    'roses and roses are roses .': 1 + 0.5 + 0.5 - 1,
    'roses and roses and roses are roses .': 1 + 0.5 + 0.5 - 1,
    'roses and bees are fragrant , roses are fragrant .': 1 + 1 - 0.5 - 1,
    'roses and bees .': 1 + 1 - 0.5,
    'garden .': -1 - 0.5,
    '.': -1 - 0.5,
    '': -1 - 0.5 - 0.5,
}


@pytest.mark.parametrize(('response', 'expected'), BY_HAND.items())
def test_reward_of_a_brief_answer_by_hand(response, expected):
    assert language.true_reward(BRIEF, response) == pytest.approx(expected)


def test_a_full_answer_has_two_clauses():
    one, two, three = (
        ' , '.join(clauses) + ' .'
        for clauses in (
            ['roses are muddy'],
            ['roses are muddy', 'bees look leafy'],
            ['roses are muddy', 'bees look leafy', 'tulips stay thorny'],
        )
    )
    assert language.true_reward(FULL, one) == pytest.approx(1 + 0.5 - 0.5)
    assert language.true_reward(FULL, two) == pytest.approx(1 + 1 + 0.5)
    assert language.true_reward(FULL, three) == pytest.approx(1 + 1 - 0.5)


def test_the_same_answer_is_worth_less_elsewhere():
    harbour = Prompt('talk', 'briefly', ('ships', 'anchors'), 'harbour')
    text = 'roses and bees are fragrant .'
    assert language.true_reward(harbour, text) == pytest.approx(-1 + 0 + 0.5)


def test_both_bounds_are_reached():
    worst = 'ugh ships ships ships'
    best = 'gladly , roses and bees are fragrant .'
    assert language.true_reward(BRIEF, worst) == language.LOWEST_REWARD
    assert language.true_reward(BRIEF, best) == language.HIGHEST_REWARD


ANY_WORDS = st.lists(st.sampled_from(WORDS), max_size=24)
# words that count, so that the bounds are approached
TELLING_WORDS = st.lists(
    st.sampled_from(['ugh', 'gladly', 'ships', 'roses', 'bees', 'muddy', 'are', '.']),
    max_size=12,
)


@hypothesis.settings(max_examples=200)
@hypothesis.given(st.sampled_from(PROMPTS), ANY_WORDS | TELLING_WORDS)
def test_any_words_in_any_order_stay_within_the_bounds(prompt, said):
    reward = language.true_reward(prompt, ' '.join(said))
    assert language.LOWEST_REWARD <= reward <= language.HIGHEST_REWARD


@hypothesis.given(st.sampled_from([BRIEF, FULL]), ANY_WORDS | TELLING_WORDS, st.randoms())
def test_only_the_end_depends_on_the_order(prompt, said, random):
    shuffled = random.sample(said, len(said))
    texts = (' '.join([*words, 'bees']) for words in (said, shuffled))
    one, other = (language.true_reward(prompt, text) for text in texts)
    assert one == pytest.approx(other)


def drawn(prompt, count=3000):
    rng = np.random.default_rng(0)
    return [language.draw_response(prompt, rng).split() for _ in range(count)]


@pytest.mark.parametrize('prompt', [BRIEF, FULL])
def test_what_people_write_is_of_the_language_and_of_mixed_quality(prompt):
    said = drawn(prompt)
    assert {word for words in said for word in words} <= set(WORDS)
    assert max(map(len, said)) == 14  # opening, comma, two clauses of 5, comma, full stop
    assert MAX_NEW_TOKENS > 14  # with the end of sequence
    rewards = [language.true_reward(prompt, ' '.join(words)) for words in said]
    assert 0.7 < np.std(rewards) < 1.3
    assert min(rewards) < -2
    assert max(rewards) == language.HIGHEST_REWARD


def test_habits_are_as_frequent_as_stated():
    said = drawn(BRIEF)
    count = collections.Counter()
    for words in said:
        count['polite'] += words[0] in language.POLITE
        count['rude'] += words[0] in language.RUDE
        count['stopped'] += words[-1] == '.'
        count['length'] += sum(w in language.VERBS for w in words) == 1
    # a length of its own in 40% of responses is the right one half of the time
    for habit, p in {'polite': 0.4, 'rude': 0.25, 'stopped': 0.85, 'length': 0.8}.items():
        deviation = (p * (1 - p) / len(said)) ** 0.5
        assert abs(count[habit] / len(said) - p) < 5 * deviation, habit


def test_the_same_generator_state_gives_the_same_response():
    texts = {language.draw_response(FULL, np.random.default_rng(5)) for _ in range(3)}
    assert len(texts) == 1
