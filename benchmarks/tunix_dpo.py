"""DPO steps of Tunix's DPOTrainer on JAX: python -m benchmarks.tunix_dpo --help.

Runs in an environment of its own with google-tunix; benchmarks/README.md tells how to
make it. Prompts and responses are padded to the limits given, as Tunix asks: its programs
have one shape. The reference is a second model that runs in every step.
"""

import argparse
import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import machine, task
from benchmarks.records import Recorder


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.tunix_dpo',
        description="Seconds and memory of the steps of Tunix's DPOTrainer.",
    )
    task.add_contestant_arguments(parser)
    add = parser.add_argument
    add('--max-prompt', type=int, required=True, help='prompts are padded to it, tokens')
    add('--max-response', type=int, required=True, help='responses are padded to it')
    args = parser.parse_args(argv)
    if args.model is None:
        parser.error('--model: needed; Tunix loads a folder')
    return args


def padded(ids: Sequence[int], length: int, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask, both int32 [length], with padding on one side.

    Raises:
      TaskError: more tokens than `length`.
    """
    if len(ids) > length:
        raise task.TaskError(
            f'{len(ids)} tokens, padded to {length}; raise --max-prompt or --max-response'
        )
    tokens, mask = np.zeros(length, np.int32), np.zeros(length, np.int32)
    where = slice(length - len(ids), length) if left else slice(0, len(ids))
    tokens[where], mask[where] = ids, 1
    return tokens, mask


def batch(
    step: Sequence[task.Group], max_prompt: int, max_response: int
) -> dict[str, np.ndarray]:
    """A step as Tunix's TrainingInput takes it, every array int32 [prompts, length]."""
    out: dict[str, list[np.ndarray]] = {}
    for pair in task.pairs(step):
        for key in ('prompt', 'chosen', 'rejected'):
            left = key == 'prompt'
            length = max_prompt if left else max_response
            tokens, mask = padded(pair[f'{key}_ids'], length, left)
            out.setdefault(f'{key}_ids', []).append(tokens)
            out.setdefault(f'{key}_mask', []).append(mask)
    return {key: np.stack(arrays) for key, arrays in out.items()}


def _model(args: argparse.Namespace) -> Any:
    """The model of a folder, with its own rotary base, which Tunix would not read."""
    import jax.numpy as jnp
    from tunix.models.llama3 import model as llama
    from tunix.models.llama3 import params

    config = json.loads((args.model / 'config.json').read_text('utf-8'))
    given = functools.partial(apply_rope_of(llama), rope_theta=config['rope_theta'])
    llama.apply_rope = given
    shape = llama.ModelConfig(
        num_layers=config['num_hidden_layers'],
        vocab_size=config['vocab_size'],
        embed_dim=config['hidden_size'],
        hidden_dim=config['intermediate_size'],
        num_heads=config['num_attention_heads'],
        head_dim=config['head_dim'],
        num_kv_heads=config['num_key_value_heads'],
        rope_theta=config['rope_theta'],
        norm_eps=config['rms_norm_eps'],
        weight_tying=config['tie_word_embeddings'],
    )
    dtype = jnp.dtype(args.dtype)
    return params.create_model_from_safe_tensors(str(args.model), shape, None, dtype)


def apply_rope_of(llama: Any) -> Any:
    """Tunix's own function, also where it was replaced before."""
    found = llama.apply_rope
    return found.func if isinstance(found, functools.partial) else found


def _trainer(args: argparse.Namespace, recorder: Recorder) -> Any:
    """A trainer that writes a line when a step's results are there."""
    import optax
    from tunix.sft.dpo import dpo_trainer

    class Trainer(dpo_trainer.DPOTrainer):
        done = 0

        def _post_process_train_step(self, aux: Any) -> None:
            super()._post_process_train_step(aux)
            margin = float(aux['rewards/margin'])
            self.done += 1
            recorder.step(
                compiled=self.done == 1,
                margin=margin,
                chosen_logp=float(aux['log_probs/chosen']),
            )

    config = dpo_trainer.DPOTrainingConfig(
        eval_every_n_steps=args.steps + 1, max_steps=args.steps, beta=0.1
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6))
    return Trainer(_model(args), _model(args), optimizer, config)


def run(args: argparse.Namespace) -> None:
    """Trains for as many steps as asked for, and writes what they took."""
    steps = task.read_steps(args.steps_file)[: args.steps]
    recorder = Recorder(args.out)
    recorder.write(
        'header',
        contestant='tunix',
        variant='plain',
        dtype=args.dtype,
        prompts=len(steps[0]),
        machine=machine.machine(),
        matmul_flops=machine.matmul_rate(args.dtype),
    )
    trainer = _trainer(args, recorder)

    def batches() -> Iterator[Any]:
        from tunix.sft.dpo.dpo_trainer import TrainingInput

        for step in steps:
            yield TrainingInput(**batch(step, args.max_prompt, args.max_response))

    recorder.start()
    trainer.train(batches())
    cells = 2 * len(steps[0]) * (args.max_prompt + args.max_response)
    recorder.end(reference_seconds=0.0, computed_tokens=cells, reference_in_step=True)


if __name__ == '__main__':
    run(arguments())
