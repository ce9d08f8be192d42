"""Plans every recipe for every machine: python -m experiments.tpu.plan_all

Needs libtpu (`pip install -c constraints.txt -e '.[plan]'`), no TPU; minutes of compilation
each. Writes experiments/plans/RECIPE.MACHINE.json and a table of all of them, README.md.
Plans that are there are kept; --again makes them anew.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import itertools
import json
from pathlib import Path
from typing import Any

import jax

from epa_jax.config import resolve
from epa_jax.plan import plan
from epa_jax.planning.topology import parse
from epa_jax.run_folder import code_version
from epa_jax.train import show_log
from experiments.tpu.recipes import MACHINES

RECIPES = ('mistral_7b_epa', 'llama3_8b_epa', 'mistral_7b_mpo', 'llama3_8b_mpo')
PLANS = Path(__file__).resolve().parent.parent / 'plans'
HEAD = """# Plans of the recipes for TPUs

Made by `python -m experiments.tpu.plan_all`, one by
`python -m epa_jax.plan --config=experiments/RECIPE.py:MACHINE --topology=MACHINE`. Nothing
here was run on a TPU: memory and collectives are the compiler's, time is the roofline at
60 % of every peak, dollars are on-demand list prices of 2025 in the cheapest US region.
HBM is what a chip needs / what it has. Lengths are assumed (see the recipes). The JSON
files hold everything.

"""
COLUMNS = (
    'recipe', 'machine', 'HBM, GB', 'MFU', 'tokens/s', 's/step', 'hours', 'US $', 'binds',
    'made', 'commit', 'libtpu',
)  # fmt: skip


def row(recipe: str, machine: str, data: dict[str, Any]) -> str:
    """A line of the table."""
    memory, cost = data['memory'], data['cost']
    needed = f'{memory["needed"] / 1e9:.1f} / {memory["capacity"] / 1e9:.1f}'
    if not memory['fits']:
        return f'| {recipe} | {machine} | {needed}: does not fit |' + 9 * '  |'
    commit = data['code']['commit'][:7]
    hours = cost['hours'] + cost['reference_hours']
    return (
        f'| {recipe} | {machine} | {needed} | {cost["mfu"]:.0%} | '
        f'{cost["tokens_per_second"]:,.0f} | {cost["step_seconds"]:.2f} | {hours:.1f} | '
        f'{cost["dollars"]:,.0f} | {data["roofline"]["binds"]} | {data["made"]} | '
        f'{commit} | {data["versions"]["libtpu"]} |'
    )


def write_table() -> None:
    """README.md of all plans that are there."""
    lines = [f'| {" | ".join(COLUMNS)} |', '| --- ' * len(COLUMNS) + '|']
    for recipe, machine in itertools.product(RECIPES, MACHINES):
        path = PLANS / f'{recipe}.{machine}.json'
        if path.is_file():
            data = json.loads(path.read_text())
            lines.append(row(recipe, machine, data))
    (PLANS / 'README.md').write_text(HEAD + '\n'.join(lines) + '\n')


def made(recipe: str, machine: str) -> dict[str, Any]:
    """A plan and its date."""
    print(f'{recipe} on {machine}', flush=True)
    module = importlib.import_module(f'experiments.{recipe}')
    data = plan(resolve(module.get_config(machine)), parse(machine))
    return data | {'made': datetime.datetime.now(datetime.UTC).date().isoformat()}


def main() -> None:
    """Makes the plans that are missing."""
    parser = argparse.ArgumentParser(description='Plans every recipe for every machine.')
    parser.add_argument('--recipes', nargs='+', default=RECIPES, choices=RECIPES)
    parser.add_argument('--machines', nargs='+', default=MACHINES, choices=MACHINES)
    parser.add_argument('--again', action='store_true', help='also those that are there')
    args = parser.parse_args()
    jax.config.update('jax_platforms', 'cpu')
    show_log()
    PLANS.mkdir(exist_ok=True)
    code = code_version(Path(__file__))  # before plans change the working tree
    versions = {name: importlib.metadata.version(name) for name in ('jax', 'libtpu')}
    for recipe, machine in itertools.product(args.recipes, args.machines):
        path = PLANS / f'{recipe}.{machine}.json'
        if args.again or not path.is_file():
            data = made(recipe, machine) | {'versions': versions, 'code': code}
            path.write_text(json.dumps(data, indent=1) + '\n')
            write_table()


if __name__ == '__main__':
    main()
