"""The report needs nothing but itself."""

import re

from epa_jax.comparison.figure import draw
from epa_jax.comparison.page import page
from epa_jax.comparison.runs import grouped, read_run
from tests.comparison import folders


def test_it_opens_without_a_network(tmp_path):
    run = folders.write(tmp_path / 'a', data__system_prompt='</pre><script>x</script>')
    groups = grouped([read_run(run)])
    text = page(groups, {'curves': draw(groups), 'more': draw(groups)})
    assert '<script' not in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) == 2
    assert sources[0].startswith('data:image/png;base64,')
    assert len(sources[0]) > 10_000
    assert '0.75 ± 0.085' in text
