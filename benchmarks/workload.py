"""A benchmark's run, built as any run is: python -m benchmarks.workload writes its tokens.

The configuration goes through `epa_jax.config`, the data through `epa_jax.data`. Other
trainers get the same tokens in the same order from the file that the command writes.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from benchmarks import task
from epa_jax import sharding
from epa_jax.batches import make_batches
from epa_jax.config import changed, defaults, resolve
from epa_jax.data.load import load_datasets
from epa_jax.data.pipeline import Pipeline
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.prepare import Job, compute_of, loss_of, prepare
from epa_jax.schema import RunConfig
from epa_jax.train_step import Objective
from epa_jax.types import TokenGroup

SHARED = Path(__file__).resolve().parent.parent.parent / 'shared' / 'data'
DATA = {
    'hh': 'hh_rlhf_harmless_test.jsonl.gz',
    'rated': 'alpaca_eval_nary.jsonl.gz',
}
MAX_PROMPT, MAX_RESPONSE = 384, 256  # tokens, those of experiments/smollm2_hh.py


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
      model: Hugging Face folder.
      data: a key of `DATA`, or a file.
      ratio: responses of a prompt, such as '1:1:2'.
      prompts: of a step.
      steps: optimiser steps.
      dtype: of matrix products.
      max_prompt: longest prompt, tokens; longer ones lose their start.
      max_response: longest response, tokens; longer ones lose their end.
    """

    model: str
    data: str = 'hh'
    ratio: str = '1:1'
    prompts: int = 4
    steps: int = 4
    dtype: str = 'float32'
    max_prompt: int = MAX_PROMPT
    max_response: int = MAX_RESPONSE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag for every field of `Setting`."""
    add = parser.add_argument
    add('--model', required=True, help='Hugging Face folder')
    add('--data', default='hh', help=f'{", ".join(DATA)}, or a file that runs can read')
    add('--ratio', default='1:1', help='chosen, strong and weak responses, such as 1:1:2')
    add('--prompts', type=int, default=4, help='prompts of a step')
    add('--steps', type=int, default=4, help='optimiser steps')
    add('--dtype', choices=task.DTYPES, default='float32', help='of matrix products')
    add('--max-prompt', type=int, default=MAX_PROMPT, help='longest prompt, tokens')
    add('--max-response', type=int, default=MAX_RESPONSE, help='longest response, tokens')


def setting_of(args: argparse.Namespace) -> Setting:
    """The fields that `add_arguments` read."""
    names = [field.name for field in dataclasses.fields(Setting)]
    return Setting(**{name: getattr(args, name) for name in names})


def run_config(setting: Setting, folder: Path, **values: object) -> RunConfig:
    """The configuration of a run; nothing is written below `folder` but the cache.

    Args:
      setting: what is trained.
      folder: for the cache of reference log-probs, so that none is found by chance.
      **values: further keys, with __ for their dots.
    """
    ratio = task.ratio(setting.ratio)
    found = SHARED / DATA[setting.data] if setting.data in DATA else Path(setting.data)
    keys = {
        'workdir': str(folder / 'run'),
        'steps': setting.steps,
        'step0_guard': False,
        'model.path': setting.model,
        'model.compute_dtype': setting.dtype,
        'model.remat': 'dots',
        'data.train': str(found),
        'data.bad_lines': 'skip',
        'data.max_prompt_tokens': setting.max_prompt,
        'data.max_response_tokens': setting.max_response,
        'data.n_strong': ratio.strong,
        'data.n_weak': ratio.weak,
        'batch.prompts': setting.prompts,
        'loss.name': ratio.loss,
        'loss.beta': 0.1,
        'optim.lr': 1e-6,
        'optim.schedule': 'constant',
        'optim.warmup_ratio': 0.0,
        'reference.cache_dir': str(folder / 'reference'),
    }
    given = {name.replace('__', '.'): value for name, value in values.items()}
    return resolve(changed(defaults(), keys | given))


def make_job(run: RunConfig) -> Job:
    """The run, ready to start; reference log-probs are computed here.

    Its rows are as long as those of a run over all of the data: of the few steps that are
    measured, lengths could be chosen that suit no others as well.
    """
    tokenizer = load_tokenizer(run.model.path)
    strong = loss_of(run).needs.min_strong
    datasets = load_datasets(run.data, tokenizer, min_strong=strong)
    job = prepare(run, datasets, tokenizer)
    epoch = max(len(datasets.train) // run.batch.prompts, run.steps)
    layouts = make_batches(run, datasets, (), job.mesh, epoch).train.preference.layouts
    data = dataclasses.replace(job.batches.train.preference, layouts=layouts)
    train = dataclasses.replace(job.batches.train, preference=data)
    return dataclasses.replace(job, batches=dataclasses.replace(job.batches, train=train))


def pipeline(run: RunConfig) -> Pipeline:
    """The preference data of a run; no weights are read."""
    tokenizer = load_tokenizer(run.model.path)
    strong = loss_of(run).needs.min_strong
    datasets = load_datasets(run.data, tokenizer, min_strong=strong)
    mesh = sharding.make_mesh(run.mesh)
    return make_batches(run, datasets, (), mesh, run.steps).train.preference


def objective(job: Job) -> Objective:
    """The job's objective anew: model and loss, computed as the run computes."""
    return Objective(job.spec, compute_of(job.run, job.mesh), job.loss)


def groups_of_steps(data: Pipeline, steps: int) -> list[list[TokenGroup]]:
    """The prompts of the first steps, as the run visits them."""
    groups = data.groups()
    return [list(groups[number]) for number in range(steps)]


def as_lists(groups: Sequence[TokenGroup]) -> list[task.Group]:
    """Groups in the form of the steps file."""
    return [
        task.Group(g.prompt_ids.tolist(), [ids.tolist() for ids in g.response_ids])
        for g in groups
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the steps file."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.workload',
        description='The tokens of every step of a run, for trainers elsewhere.',
    )
    add_arguments(parser)
    parser.add_argument('--out', type=Path, required=True, help='file to write')
    args = parser.parse_args(argv)
    setting = setting_of(args)
    data = pipeline(run_config(setting, args.out.parent))
    steps = groups_of_steps(data, setting.steps)
    task.write_steps(args.out, [as_lists(groups) for groups in steps])
    print(f'{args.out}: {setting.steps} steps of {setting.prompts} prompts')


if __name__ == '__main__':
    main()
