"""Every batch of a run, in rows of static shapes."""

import dataclasses
from collections.abc import Mapping, Sequence

from jax.sharding import Mesh

from epa_jax import sharding
from epa_jax.config import ConfigError
from epa_jax.data import packing
from epa_jax.data.load import Datasets
from epa_jax.data.mixture import Mixture
from epa_jax.data.negatives import NegativeRule
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
    """Preference rows of one shape, and rows of one shape for the text of all streams.

    Raises:
      ConfigError: rows that the mesh or the examples contradict.
    """
    preference, held_out = _preference(run, datasets, mesh, total_steps)
    made = {stream.name: _pipelines(run, stream) for stream in streams}
    train = {name: pipeline for name, (pipeline, _) in made.items()}
    measured = {name: pipeline for name, (_, pipeline) in made.items() if pipeline.examples}
    layout = _text_layout(preference.layout, [*train.values(), *measured.values()])
    rows = packing.own_rows(layout)

    def placed(pipelines: Mapping[str, Pipeline]) -> dict[str, Pipeline]:
        return {
            name: dataclasses.replace(pipeline, layout=layout, row_slice=rows)
            for name, pipeline in pipelines.items()
        }

    return Batches(Mixture(preference, placed(train)), held_out, placed(measured))


def _preference(
    run: RunConfig, datasets: Datasets, mesh: Mesh, total_steps: int
) -> tuple[Pipeline, Pipeline | None]:
    """Batches of training and of evaluation."""
    cfg = run.data
    rule = NegativeRule(run.seed, cfg.n_strong, cfg.n_weak, cfg.weak_source)
    unknown = packing.Layout(1, 1, 1, rule.responses)

    def pipeline(examples: list[TokenExample], shuffle: bool) -> Pipeline:
        visits = Visits(
            size=len(examples),
            prompts=run.batch.prompts,
            seed=run.seed,
            shuffle=shuffle,
            resample=shuffle and cfg.resample_negatives,
        )
        return Pipeline(examples, rule, visits, unknown)

    data = pipeline(datasets.train, cfg.shuffle)
    sizes = [data.group(v).num_tokens for v in data.visits.first(total_steps)]
    held_out = pipeline(datasets.held_out, False) if datasets.held_out else None
    if held_out:
        sizes += [held_out.group(v).num_tokens for v in held_out.visits.everything()]
    layout = _layout(run, sizes, rule.responses, mesh)
    rows = packing.own_rows(layout)
    return (
        dataclasses.replace(data, layout=layout, row_slice=rows),
        held_out and dataclasses.replace(held_out, layout=layout, row_slice=rows),
    )


def _layout(run: RunConfig, sizes: list[int], responses: int, mesh: Mesh) -> packing.Layout:
    ways = sharding.batch_devices(mesh)
    rows = run.batch.rows or ways
    if rows % ways:
        raise ConfigError(
            f'batch.rows={rows}: expected a multiple of mesh.data * mesh.fsdp = {ways}'
        )
    row_length = run.batch.row_length or packing.automatic_row_length(max(sizes))
    groups = min(run.batch.prompts, row_length // min(sizes))
    return packing.Layout(rows, row_length, max(groups, 1), responses)


def _pipelines(run: RunConfig, stream: Stream) -> tuple[Pipeline, Pipeline]:
    """Text to train on and text to measure, without their layout."""
    rule = NegativeRule(run.seed, 0, 0, run.data.weak_source)
    unknown = packing.Layout(1, 1, 1, 1)

    def pipeline(examples: list[TokenExample], shuffle: bool) -> Pipeline:
        visits = Visits(len(examples), stream.sequences, run.seed, shuffle, resample=False)
        return Pipeline(examples, rule, visits, unknown)

    return pipeline(stream.train, run.data.shuffle), pipeline(stream.held_out, False)


def _text_layout(
    preference: packing.Layout, pipelines: Sequence[Pipeline]
) -> packing.Layout:
    """As many rows as the preference data has, as long or longer where text needs it."""
    sizes = [
        len(example.prompt_ids) + len(example.response_ids[0])
        for pipeline in pipelines
        for example in pipeline.examples
    ]
    if not sizes:
        return preference
    longest = packing.automatic_row_length(max(sizes))
    row_length = max(preference.row_length, longest)
    most = max(pipeline.visits.prompts for pipeline in pipelines)
    groups = max(min(most, row_length // min(sizes)), 1)
    return packing.Layout(preference.rows, row_length, groups, 1)
