"""Every batch of a run, in rows of static shapes."""

import dataclasses
from collections.abc import Mapping, Sequence

from jax.sharding import Mesh

from epa_jax import sharding
from epa_jax.config import ConfigError
from epa_jax.data import packing, row_lengths
from epa_jax.data.load import Datasets
from epa_jax.data.mixture import Mixture
from epa_jax.data.negatives import NegativeRule
from epa_jax.data.packing import Layout
from epa_jax.data.pipeline import Pipeline, Visits
from epa_jax.data.streams import Stream
from epa_jax.schema import RunConfig
from epa_jax.types import TokenExample


@dataclasses.dataclass(frozen=True)
class Batches:
    """All batches of a run.

    Attributes:
      train: of every step.
      held_out: of evaluation, or None without held-out examples.
      held_out_streams: held-out text, by stream; those without any are left out.
    """

    train: Mixture
    held_out: Pipeline | None
    held_out_streams: Mapping[str, Pipeline]


def make_batches(
    run: RunConfig,
    datasets: Datasets,
    streams: Sequence[Stream],
    mesh: Mesh,
    total_steps: int,
) -> Batches:
    """Preference rows of a few shapes, and rows of a few for the text of all streams.

    Raises:
      ConfigError: rows that the mesh or the examples contradict.
    """
    train, held_out = _preference(run, datasets)
    made = {stream.name: _pipelines(run, stream) for stream in streams}
    texts = {name: text for name, (text, _) in made.items()}
    measured = {name: text for name, (_, text) in made.items() if text.examples}
    rows = _rows(run, mesh)
    evaluated = [] if held_out is None else [held_out]
    layouts = _layouts(run, rows, [train], evaluated, total_steps)
    of_text = layouts
    if texts:
        groups = [*texts.values()], [*measured.values()]
        of_text = _layouts(run, rows, *groups, total_steps, longer=True)

    def placed(pipeline: Pipeline, layouts: tuple[Layout, ...]) -> Pipeline:
        own = packing.own_rows(layouts[-1])
        return dataclasses.replace(pipeline, layouts=layouts, row_slice=own)

    return Batches(
        Mixture(
            placed(train, layouts),
            {name: placed(text, of_text) for name, text in texts.items()},
        ),
        held_out and placed(held_out, layouts),
        {name: placed(text, of_text) for name, text in measured.items()},
    )


def _preference(run: RunConfig, datasets: Datasets) -> tuple[Pipeline, Pipeline | None]:
    """Preferences to train on and preferences to measure, without their layouts."""
    cfg = run.data
    rule = NegativeRule(run.seed, cfg.n_strong, cfg.n_weak, cfg.weak_source)

    def pipeline(examples: list[TokenExample], shuffle: bool) -> Pipeline:
        visits = Visits(
            size=len(examples),
            prompts=run.batch.prompts,
            seed=run.seed,
            shuffle=shuffle,
            resample=shuffle and cfg.resample_negatives,
        )
        return Pipeline(examples, rule, visits, ())

    held_out = pipeline(datasets.held_out, False) if datasets.held_out else None
    return pipeline(datasets.train, cfg.shuffle), held_out


def _pipelines(run: RunConfig, stream: Stream) -> tuple[Pipeline, Pipeline]:
    """Text to train on and text to measure, without their layouts."""
    rule = NegativeRule(run.seed, 0, 0, run.data.weak_source)

    def pipeline(examples: list[TokenExample], shuffle: bool) -> Pipeline:
        visits = Visits(len(examples), stream.sequences, run.seed, shuffle, resample=False)
        return Pipeline(examples, rule, visits, ())

    return pipeline(stream.train, run.data.shuffle), pipeline(stream.held_out, False)


def _rows(run: RunConfig, mesh: Mesh) -> int:
    """Rows of every micro-batch."""
    ways = sharding.batch_devices(mesh)
    rows = run.batch.rows or ways
    if rows % ways:
        raise ConfigError(
            f'batch.rows={rows}: expected a multiple of mesh.data * mesh.fsdp = {ways}'
        )
    return rows


def _layouts(
    run: RunConfig,
    rows: int,
    train: Sequence[Pipeline],
    held_out: Sequence[Pipeline],
    total_steps: int,
    longer: bool = False,
) -> tuple[Layout, ...]:
    """Layouts that these pipelines share.

    Args:
      run: the configuration.
      rows: of a micro-batch.
      train: batches of every step.
      held_out: batches of evaluation.
      total_steps: of the run.
      longer: rows may be longer than the configuration says, where examples need it.
    """
    steps = [step for pipeline in train for step in _sizes_of_steps(pipeline, total_steps)]
    visited = [(pipeline, pipeline.visits.first(total_steps)) for pipeline in train]
    visited += [(pipeline, pipeline.visits.everything()) for pipeline in held_out]
    sizes = [p.group(visit).num_tokens for p, visits in visited for visit in visits]
    shortest, longest = min(sizes), max(sizes)
    prompts = max(pipeline.visits.prompts for pipeline in train)

    def layout(row_length: int) -> Layout:
        groups = max(min(prompts, row_length // shortest), 1)
        return Layout(rows, row_length, groups, train[0].rule.responses)

    given = run.batch.row_length
    if given and longer:
        given = max(given, packing.automatic_row_length(longest))
    if given:
        packing.check_length(longest, layout(given))
    lengths = row_lengths.choose(
        steps, longest, layout, total_steps, run.batch.row_lengths, given
    )
    return tuple(layout(length) for length in lengths)


def _sizes_of_steps(pipeline: Pipeline, total_steps: int) -> list[list[int]]:
    """Tokens of every prompt with its responses, of steps spread over the run."""
    numbers = row_lengths.sampled(total_steps, pipeline.visits.prompts)
    steps = pipeline.visits.steps(numbers)
    return [[pipeline.group(visit).num_tokens for visit in step] for step in steps]
