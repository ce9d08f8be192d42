"""The README.md of an exported policy."""

import json
from collections.abc import Mapping
from typing import Any

from epa_jax.config import flatten
from epa_jax.schema import RunConfig


def model_card(run: RunConfig, summary: Mapping[str, Any]) -> str:
    """What the policy was made from and what was measured, as Markdown.

    Args:
      run: configuration of the run.
      summary: what summary.json holds.
    """
    rows = []
    first, last = summary['eval_first'] or {}, summary['eval_last'] or {}
    for name in sorted(last):
        if name.startswith('eval/') and name in first:
            rows.append(f'| {name[5:]} | {first[name]:.4f} | {last[name]:.4f} |')
    table = '\n'.join(['| held out | before | after |', '| --- | --- | --- |', *rows])
    config = json.dumps(flatten(run), indent=2, ensure_ascii=False)
    return (
        f'# {run.loss.name} from {run.model.path}\n\n'
        f'Trained with epa_jax: loss `{run.loss.name}` '
        f'{dict(summary["hyperparameters"])}, data `{run.data.train}`, '
        f'{summary["steps"]} steps of {run.batch.prompts} prompts.\n\n'
        f'{table if rows else "No held-out examples were evaluated."}\n\n'
        f'## Configuration\n\n```json\n{config}\n```\n'
    )
