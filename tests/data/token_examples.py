"""Token examples made up for tests."""

import hashlib

import numpy as np
from hypothesis import strategies as st

from epa_jax.types import Role, TokenExample, TokenGroup

NAN = float('nan')


def example(prompt, responses, roles=None, ratings=None, prompt_key=None):
    """A token example from lists of ids; the first response is the chosen one."""
    roles = roles or [Role.CHOSEN] + [Role.REJECTED] * (len(responses) - 1)
    ids = np.array(prompt, np.int32)
    return TokenExample(
        prompt_ids=ids,
        response_ids=tuple(np.array(r, np.int32) for r in responses),
        roles=np.array(roles, np.int8),
        ratings=np.array(ratings or [NAN] * len(responses), np.float32),
        prompt_key=prompt_key or hashlib.sha256(ids.tobytes()).digest()[:16],
        origin='made up',
    )


def random_examples(count, seed=0, rejected=3):
    """Different prompts, each with one chosen and up to `rejected` rejected responses."""
    rng = np.random.default_rng(seed)

    def ids(most):
        return rng.integers(1, 1000, rng.integers(1, most)).tolist()

    return [
        example([i + 1, *ids(6)], [ids(8) for _ in range(rng.integers(2, 2 + rejected))])
        for i in range(count)
    ]


def token_group(key, prompt, responses):
    """A group whose first response is chosen and rated by its key."""
    roles = [Role.CHOSEN] + [Role.REJECTED] * (len(responses) - 1)
    ratings = [key - 0.5 * k for k in range(len(responses))]
    return TokenGroup(
        key=key,
        prompt_ids=np.array(prompt, np.int32),
        response_ids=tuple(np.array(r, np.int32) for r in responses),
        roles=np.array(roles, np.int8),
        ratings=np.array(ratings, np.float32),
    )


def ids(most):
    """Strategy of 1 to `most` token ids; 0, the padding's value, is among them."""
    return st.lists(st.integers(0, 9), min_size=1, max_size=most)


@st.composite
def groups(draw, responses=3, most=12):
    """Up to `most` groups of 1 to `responses` responses; none exceeds 32 tokens."""
    bodies = draw(
        st.lists(
            st.tuples(ids(8), st.lists(ids(8), min_size=1, max_size=responses)),
            min_size=1,
            max_size=most,
        )
    )
    keys = draw(st.permutations(range(len(bodies))))
    return [token_group(key, p, r) for key, (p, r) in zip(keys, bodies, strict=True)]
