"""A language of about 150 words, with prompts, responses and a known reward.

A prompt names a topic, two of its things and a length: "tell me briefly about roses and
bees in the garden". A response is an opening and one or two clauses: "gladly , roses and
bees are fragrant .". What people write is of mixed quality (`draw_response`); how good
it is, `true_reward` says.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

# topic -> seven things; topic -> four qualities. No word has two topics.
THINGS = {
    'garden': 'roses bees hedges weeds tulips seeds lawns',
    'kitchen': 'knives ovens spices pans soups cakes plates',
    'harbour': 'ships anchors sails gulls ropes docks waves',
    'forest': 'oaks owls ferns wolves mosses trails pines',
    'school': 'books pupils desks lessons pencils maps essays',
    'market': 'stalls coins baskets grocers scales carts silks',
    'castle': 'towers knights moats banners kings walls swords',
    'desert': 'dunes camels cacti scorpions lizards mirages oases',
    'theatre': 'actors curtains masks stages plays tickets singers',
    'farm': 'cows barns tractors ploughs chickens fences haystacks',
}
QUALITIES = {
    'garden': 'fragrant thorny leafy muddy',
    'kitchen': 'tasty greasy spicy baked',
    'harbour': 'salty stormy rusty tidal',
    'forest': 'shady wild mossy ancient',
    'school': 'studious inky strict clever',
    'market': 'cheap crowded costly lively',
    'castle': 'noble ruined armoured royal',
    'desert': 'dry sandy scorching barren',
    'theatre': 'dramatic comic famous loud',
    'farm': 'rural fertile grassy tame',
}
TOPICS = tuple(THINGS)
OPENINGS = (
    'tell me',
    'please speak',
    'say something',
    'i wonder',
    'teach me',
    'talk',
)
LENGTHS = {'briefly': 1, 'fully': 2}  # clauses that the answer should have
POLITE = ('gladly', 'certainly', 'sure', 'indeed')
RUDE = ('ugh', 'nonsense', 'whatever', 'idiot')
VERBS = ('are', 'look', 'seem', 'stay')
FUNCTION_WORDS = ('about', 'and', 'in', 'the', ',', '.')

THINGS_OF = {topic: tuple(THINGS[topic].split()) for topic in TOPICS}
QUALITIES_OF = {topic: tuple(QUALITIES[topic].split()) for topic in TOPICS}
TOPIC_OF = {
    word: topic for topic in TOPICS for word in THINGS_OF[topic] + QUALITIES_OF[topic]
}

LOWEST_REWARD, HIGHEST_REWARD = -4.0, 2.75


def words() -> list[str]:
    """Every word of the language, in a fixed order."""
    openings = [word for opening in OPENINGS for word in opening.split()]
    groups = (FUNCTION_WORDS, openings, LENGTHS, TOPICS, TOPIC_OF, POLITE, RUDE, VERBS)
    return list(dict.fromkeys(word for group in groups for word in group))


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is asked.

    Attributes:
      opening: one of `OPENINGS`.
      length: a key of `LENGTHS`.
      things: two things of the topic.
      topic: a key of `TOPICS`.
    """

    opening: str
    length: str
    things: tuple[str, str]
    topic: str

    @property
    def text(self) -> str:
        """The prompt as the model reads it."""
        first, second = self.things
        asked = f'{first} and {second} in the {self.topic}'
        return f'{self.opening} {self.length} about {asked}'


def all_prompts() -> list[Prompt]:
    """Every prompt there is, in a fixed order."""
    return [
        Prompt(opening, length, (first, second), topic)
        for topic, things in THINGS_OF.items()
        for first in things
        for second in things
        if first != second
        for length in LENGTHS
        for opening in OPENINGS
    ]


def draw_response(prompt: Prompt, rng: np.random.Generator) -> str:
    """A response as people of this world write it, good or bad."""
    clauses = LENGTHS[prompt.length] if rng.random() < 0.6 else int(rng.integers(1, 3))
    parts = [_clause(prompt, rng) for _ in range(clauses)]
    opening = rng.choice(['', *POLITE, *RUDE], p=[0.35] + [0.1] * 4 + [0.0625] * 4)
    if opening:
        parts.insert(0, str(opening))
    end = ' .' if rng.random() < 0.85 else ''
    return ' , '.join(parts) + end


def _clause(prompt: Prompt, rng: np.random.Generator) -> str:
    """Such as "roses and bees are fragrant"."""
    things = [_thing(prompt, rng)]
    if rng.random() < 0.4:
        things.append(_thing(prompt, rng))
    topic = prompt.topic if rng.random() < 0.6 else rng.choice(TOPICS)
    quality = rng.choice(QUALITIES_OF[str(topic)])
    return f'{" and ".join(things)} {rng.choice(VERBS)} {quality}'


def _thing(prompt: Prompt, rng: np.random.Generator) -> str:
    """One that was asked about, another of the topic, or any."""
    chance = rng.random()
    if chance < 0.45:
        return str(rng.choice(prompt.things))
    topic = prompt.topic if chance < 0.75 else rng.choice(TOPICS)
    return str(rng.choice(THINGS_OF[str(topic)]))


def true_reward(prompt: Prompt, response: str) -> float:
    """How good a response is, between `LOWEST_REWARD` and `HIGHEST_REWARD`.

      relevance   mean over things and qualities of 1 for the topic's, -1 for others';
                  -1 when there are none
      coverage    share of the two things asked about that are mentioned
      form        1/2 for the number of clauses asked for, else -1/2
      courtesy    1/4 for a polite word
      rudeness    -1 for a rude word
      repetition  -1/2 for each thing or quality said again, at most -1
      ending      -1/2 unless it ends with the only full stop

    Args:
      prompt: what was asked.
      response: words separated by blanks, any of the language in any order.
    """
    said = response.split()
    content = [word for word in said if word in TOPIC_OF]
    on_topic = [1.0 if TOPIC_OF[word] == prompt.topic else -1.0 for word in content]
    relevance = sum(on_topic) / len(on_topic) if on_topic else -1.0
    coverage = sum(thing in content for thing in prompt.things) / 2
    clauses = sum(word in VERBS for word in said)
    repeats = len(content) - len(set(content))
    return (
        relevance
        + coverage
        + (0.5 if clauses == LENGTHS[prompt.length] else -0.5)
        + (0.25 if _any_of(POLITE, said) else 0.0)
        - (1.0 if _any_of(RUDE, said) else 0.0)
        - 0.5 * min(repeats, 2)
        - (0.0 if said[-1:] == ['.'] and said.count('.') == 1 else 0.5)
    )


def _any_of(wanted: Sequence[str], said: Sequence[str]) -> bool:
    return any(word in said for word in wanted)
