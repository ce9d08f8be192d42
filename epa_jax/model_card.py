"""The README.md of an exported policy."""

import json
from collections.abc import Mapping
from typing import Any


def model_card(
    config: Mapping[str, Any], summary: Mapping[str, Any] | None, step: int | None = None
) -> str:
    """What the policy was made from and what was measured, as Markdown.

    Args:
      config: configuration of the run, by dotted key.
      summary: what summary.json holds; None for a run that has not finished.
      step: the checkpoint, where it is not the end of the run.
    """
    end = summary if step is None else None
    steps = step if end is None else end['steps']
    taken = dict(summary['hyperparameters']) if summary else _set_values(config)
    return (
        f'# {config["loss.name"]} from {config["model.path"]}\n\n'
        f'Trained with epa_jax: loss `{config["loss.name"]}` {taken}, data '
        f'`{config["data.train"]}`, {steps} steps of {config["batch.prompts"]} prompts.\n\n'
        f'{_evaluations(end)}\n\n'
        '## Configuration\n\n'
        f'```json\n{json.dumps(config, indent=2, ensure_ascii=False)}\n```\n'
    )


def _set_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The loss's keys that are set."""
    return {
        key.removeprefix('loss.'): value
        for key, value in config.items()
        if key.startswith('loss.') and key != 'loss.name' and value is not None
    }


def _evaluations(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return 'A checkpoint of a run; see its metrics for what was measured there.'
    first, last = summary['eval_first'] or {}, summary['eval_last'] or {}
    rows = [
        f'| {name[5:]} | {first[name]:.4f} | {last[name]:.4f} |'
        for name in sorted(last)
        if name.startswith('eval/') and name in first
    ]
    if not rows:
        return 'No held-out examples were evaluated.'
    return '\n'.join(['| held out | before | after |', '| --- | --- | --- |', *rows])
