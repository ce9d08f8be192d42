"""The pages in docs/ do what they say."""

import re
from pathlib import Path

import numpy as np
import pytest

from epa_jax.losses import LOSSES, make_loss
from tests.every_loss_test import train

DOCS = Path(__file__).resolve().parent.parent / 'docs'


@pytest.fixture
def page():
    """Names that the code blocks of the page define, run in order."""
    text = (DOCS / 'adding_a_loss.md').read_text()
    names: dict = {}
    for block in re.findall(r'```python\n(.*?)```', text, re.S):
        exec(compile(block, 'adding_a_loss.md', 'exec'), names)
    return names


def test_the_loss_of_the_page_trains(page):
    losses = {**LOSSES, 'exponential': page['definition']}
    loss = make_loss('exponential', {'beta': 0.2}, losses)
    history = train(loss)
    assert history[-1]['loss'] < history[0]['loss'] - 1e-2
    assert np.isfinite(history[-1]['rewards/margins'])


def test_every_path_named_in_the_pages_exists():
    for doc in DOCS.glob('*.md'):
        for path in re.findall(
            r'`((?:epa_jax|tests|experiments)/[\w/.]+)`', doc.read_text()
        ):
            assert (DOCS.parent / path).exists(), f'{doc.name}: {path}'
