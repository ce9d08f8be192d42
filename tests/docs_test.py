"""The pages do what they say, and what they name is there."""

import re
from pathlib import Path

import numpy as np
import pytest

from epa_jax.losses import LOSSES, make_loss
from tests.every_loss_test import train

REPO = Path(__file__).resolve().parent.parent
DOCS = REPO / 'docs'
PAGES = sorted(
    path
    for pattern in ('*.md', 'docs/*.md', 'benchmarks/*.md', 'experiments/**/*.md')
    for path in REPO.glob(pattern)
)
ROOMS = 'epa_jax|tests|experiments|benchmarks|tpu_scripts|docs'


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


def named(page):
    """What a page names: from the top, beside it, in links, as modules."""
    text = page.read_text('utf-8')
    for path in re.findall(rf'`((?:{ROOMS})/[\w/.+-]+)`', text):
        yield REPO / path
    for path in re.findall(r'--config=([\w/]+\.py)', text):
        if not path.endswith('RECIPE.py'):
            yield REPO / path
    for path in re.findall(r'`(results/[\w/.+-]+)`', text):
        yield page.parent / path
    for path in re.findall(r'\]\((?!https?:)([^)#]+)\)', text):
        yield page.parent / path
    for module in re.findall(
        r'-m ((?:epa_jax|experiments|benchmarks)(?:\.[a-z]\w*)+)', text
    ):
        yield REPO / module.replace('.', '/')


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_every_path_named_in_a_page_exists(page):
    for path in named(page):
        found = path.exists() or path.with_suffix('.py').is_file()
        assert found, f'{path.relative_to(REPO)}: named and not there'
