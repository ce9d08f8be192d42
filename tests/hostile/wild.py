"""Wild values, damage to good files, and the judge of what readers make of them."""

import copy
import json
import math
import os
import pickle

import hypothesis
from hypothesis import strategies as st

from epa_jax import commands, train

OWN_ERRORS = (*train.USER_ERRORS, *commands.USER_ERRORS)

FACTOR = int(os.environ.get('FUZZ', '0'))

HUGE = 10**400
DEEP = 100_000

text = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ['', ' ', '\0', '\ud800', '\udcff', 'a' * 5000, '../../etc/passwd', '/etc/passwd']
    ),
    st.sampled_from(['\n\nHuman:', '\n\nAssistant: a', '</s>', '<s>' * 99, '￿']),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([HUGE, -HUGE, 2**31, 2**63, -1, 0]),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e308, 1e39, -0.0, 1e-320]),
    st.floats(),
    text,
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)
    ),
    max_leaves=6,
)


def examples(count: int) -> hypothesis.settings:
    """So many examples, always the same; FUZZ=20 tries 20 times as many new ones."""
    return hypothesis.settings(max_examples=count * (FACTOR or 1), derandomize=not FACTOR)


def dumps(value) -> str:
    """JSON of any value: integers of any length, NaN, halves of surrogate pairs."""
    return json.dumps(value)


@st.composite
def damaged(draw, document):
    """A JSON document with one to three of its nodes replaced, removed or added."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        document = _damage(draw, document)
    return document


def _damage(draw, node):
    if isinstance(node, dict | list) and node and draw(st.integers(0, 5)):
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = draw(st.sampled_from(keys))
        if not draw(st.integers(0, 4)):
            node.pop(key)
        else:
            node[key] = _damage(draw, node[key])
        return node
    if isinstance(node, dict) and draw(st.booleans()):
        return node | {draw(text): draw(values)}
    return draw(values)


@st.composite
def cut_or_changed(draw, content: bytes):
    """Bytes cut anywhere, with a byte changed, or with bytes put in."""
    place = draw(st.integers(0, len(content)))
    kind = draw(st.sampled_from(['cut', 'change', 'insert']))
    if kind == 'cut':
        return content[:place]
    new = draw(st.binary(min_size=1, max_size=4))
    return content[:place] + new + content[place + len(new) * (kind == 'change') :]


def read_or_refuse(read, *names):
    """What `read()` returns, or None if it refuses as it should.

    Only errors of this package may come out, each with a message that names the file, or
    the key, in one of `names`.
    """
    try:
        return read()
    except OWN_ERRORS as error:
        message = str(error)
        assert any(str(name) in message for name in names), message
        return None


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), 'w'))


def trap(path) -> bytes:
    """A pickle that makes the file `path`."""
    return pickle.dumps(Trap(path))
