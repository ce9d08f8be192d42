"""Writes a policy as a Hugging Face folder: python -m epa_jax.export RUN OUT."""

import argparse
from pathlib import Path

from epa_jax import sharding
from epa_jax.commands import add_model_arguments, mesh_config, policy_of, show_errors
from epa_jax.formats.export import DTYPES, export_adapter, export_model
from epa_jax.formats.files import read_json
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.model_card import model_card
from epa_jax.policy import base_model, load_adapted
from epa_jax.storage import argument as local_path


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m epa_jax.export',
        description='A run, a checkpoint of it or any readable model as a folder that '
        'transformers and vLLM open.',
    )
    add_model_arguments(parser)
    add = parser.add_argument
    add('out', type=local_path, help='folder to make')
    add('--weights', default='bfloat16', choices=sorted(DTYPES), help='dtype in the file')
    add('--adapter', action='store_true', help='the adapters of a run with lora alone')
    add('--overwrite', action='store_true', help='replace a folder of that name')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Writes weights, tokenizer, chat template, generation defaults and model card."""
    args = arguments(argv)
    if args.adapter:
        print(f'exported {_export_adapter(args)}')
        return
    policy = policy_of(args)
    out = export_model(
        args.out,
        policy.spec,
        policy.params,
        policy.tokenizer,
        dtype=args.weights,
        model_card=_card(args.model, args.step),
        overwrite=args.overwrite,
    )
    print(f'exported {out}')


def _export_adapter(args: argparse.Namespace) -> Path:
    """Writes adapters in PEFT's layout."""
    mesh = sharding.make_mesh(mesh_config(args))
    found = load_adapted(args.model, args.step, mesh)
    base, own = base_model(args.model)
    return export_adapter(
        args.out,
        found.spec,
        found.adapters,
        found.lora,
        str(base),
        load_tokenizer(args.tokenizer or own),
        model_card=_card(args.model, args.step),
        overwrite=args.overwrite,
    )


def _card(model: Path, step: int | None) -> str | None:
    """The model card of a run; other models have none to write."""
    if not (model / 'checkpoints').is_dir():
        return None
    config = read_json(model / 'config.json')
    summary = model / 'summary.json'
    found = read_json(summary) if summary.is_file() else None
    if found is None and step is None:  # it has not finished
        saved = (model / 'checkpoints').iterdir()
        step = max(int(path.name) for path in saved if path.name.isdigit())
    last = found is not None and step == found['steps']
    return model_card(config, found, None if last else step)


def run_main() -> None:
    """Shows bad input as one message."""
    show_errors(main)


if __name__ == '__main__':
    run_main()
