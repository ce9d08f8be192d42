"""One HTML file that opens without a network."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from epa_jax.comparison import table
from epa_jax.comparison.runs import Group

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; }
table { border-collapse: collapse; }
th, td { padding: .25em .9em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child { text-align: left; font-weight: normal; }
img { max-width: 100%; } pre { background: #f6f6f6; padding: 1em; overflow: auto; }
"""


def page(groups: Sequence[Group], figures: Mapping[str, Figure]) -> str:
    """The table, the figures and the configuration of every group.

    Args:
      groups: the runs.
      figures: by name; they are embedded.
    """
    images = ''.join(_image(name, figure) for name, figure in figures.items())
    configs = ''.join(
        f'<details><summary>{html.escape(group.label)}: '
        f'{html.escape(", ".join(str(run.folder) for run in group.runs))}</summary>'
        f'<pre>{html.escape(json.dumps(dict(group.runs[0].config), indent=2))}</pre>'
        '</details>\n'
        for group in groups
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<title>Comparison of runs</title><style>{STYLE}</style></head><body>\n'
        f'<h1>Comparison of runs</h1>\n{table.as_html(groups)}\n'
        '<p>± is half of a 95 % interval: over seeds where a column has several, else '
        'over prompts or questions.</p>\n'
        f'{images}'
        f'<h2>Configurations</h2>\n{configs}</body></html>\n'
    )


def _image(name: str, figure: Figure) -> str:
    png = io.BytesIO()
    figure.savefig(png, format='png')
    data = base64.b64encode(png.getvalue()).decode('ascii')
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">\n'
