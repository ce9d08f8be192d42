"""DPO steps of TRL's DPOTrainer: python -m benchmarks.trl_dpo --help.

Runs in an environment of its own with torch and trl; benchmarks/README.md tells how to
make it. Tokens come ready from the steps file, in its order; TRL pads, runs the reference
and updates as it always does. Dropout is off and AdamW is TRL's default, as here.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import machine, task
from benchmarks.records import Recorder


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.trl_dpo',
        description="Seconds and memory of the steps of TRL's DPOTrainer.",
    )
    task.add_contestant_arguments(parser)
    add = parser.add_argument
    add('--precompute', action='store_true', help='reference log-probs before training')
    add(
        '--checkpointing', action='store_true', help="gradient checkpointing, TRL's default"
    )
    add('--attention', default='sdpa', help="transformers' attn_implementation")
    add('--padding-free', action='store_true', help="TRL's; needs flash attention")
    add('--accumulate', type=int, default=1, help='micro-batches that a step is cut into')
    add('--device', choices=('cpu', 'cuda'), default='cpu')
    add('--param-dtype', choices=task.DTYPES, default='float32', help='of the weights')
    args = parser.parse_args(argv)
    if (args.model is None) == (args.shape is None):
        parser.error('give either --model or --shape')
    return args


def micro_batches(
    steps: Sequence[Sequence[task.Group]], count: int
) -> list[Sequence[task.Group]]:
    """Every step in `count` parts of equal size.

    Raises:
      TaskError: the prompts of a step cannot be cut so.
    """
    if any(len(step) % count for step in steps):
        raise task.TaskError(f'--accumulate={count}: expected a divisor of {len(steps[0])}')
    parts = []
    for step in steps:
        size = len(step) // count
        parts += [step[i : i + size] for i in range(0, len(step), size)]
    return parts


def hf_config(shape: str) -> dict[str, Any]:
    """Arguments of transformers' LlamaConfig for a shape."""
    found = task.SHAPES[shape]
    return {
        'vocab_size': found['vocab_size'],
        'hidden_size': found['d_model'],
        'intermediate_size': found['d_ff'],
        'num_hidden_layers': found['n_layers'],
        'num_attention_heads': found['n_heads'],
        'num_key_value_heads': found['n_kv_heads'],
        'tie_word_embeddings': found['tie_embeddings'],
        'max_position_embeddings': found['max_positions'],
    }


def rows(steps: Sequence[Sequence[task.Group]], count: int) -> list[dict[str, Any]]:
    """Examples of the first `count` steps, in order.

    Raises:
      TaskError: too few steps in the file.
    """
    if len(steps) < count:
        raise task.TaskError(f'{len(steps)} steps in the file, --steps={count} asked for')
    return [pair for step in steps[:count] for pair in task.pairs(step)]


def padded_tokens(
    steps: Sequence[Sequence[task.Group]], multiple: int | None = None
) -> int:
    """Cells of the rectangles that TRL computes: both responses, prompt repeated."""
    total = 0
    for step in steps:
        lengths = [
            len(group.prompt) + len(response)
            for group in step
            for response in group.responses
        ]
        longest = max(lengths)
        longest += -longest % (multiple or 1)
        total += longest * len(lengths)
    return total


def _models(args: argparse.Namespace, dtype: Any) -> tuple[Any, Any]:
    """Policy and reference: TRL loads the reference of a folder by itself."""
    import copy

    import transformers

    kind = transformers.AutoModelForCausalLM
    options = {'dtype': dtype, 'attn_implementation': args.attention}
    if args.model:
        return kind.from_pretrained(args.model, **options), None
    model = kind.from_config(transformers.LlamaConfig(**hf_config(args.shape)), **options)
    return model, None if args.precompute else copy.deepcopy(model)


def _tokenizer(args: argparse.Namespace) -> Any:
    """The model's tokenizer; for random weights one of numbers, which reads no text."""
    import tokenizers
    import transformers

    if args.model:
        return transformers.AutoTokenizer.from_pretrained(args.model)
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({'0': 0}, unk_token='0'))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token='0', eos_token='0'
    )


def _config(args: argparse.Namespace, prompts: int, folder: str) -> Any:
    from trl import DPOConfig

    return DPOConfig(
        output_dir=folder,
        per_device_train_batch_size=prompts // args.accumulate,
        gradient_accumulation_steps=args.accumulate,
        max_steps=args.steps,
        max_length=None,
        beta=0.1,
        lr_scheduler_type='constant',
        train_sampling_strategy='sequential',
        precompute_ref_log_probs=args.precompute,
        gradient_checkpointing=args.checkpointing,
        padding_free=args.padding_free,
        bf16=args.dtype == 'bfloat16',
        use_cpu=args.device == 'cpu',
        dataloader_pin_memory=args.device != 'cpu',
        logging_steps=1,
        save_strategy='no',
        report_to='none',
        disable_tqdm=True,
    )


def _trainer_class(recorder: Recorder, spent: dict[str, float]) -> Any:
    """DPOTrainer that takes tokens as they are and times the reference's own pass."""
    import transformers
    from trl import DPOTrainer

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            found = super()._precompute_ref_logps(*args, **kwargs)
            spent['reference'] = time.perf_counter() - start
            return found

    class Steps(transformers.TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            recorder.start()

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logs = kwargs['logs']
            if 'loss' in logs:
                recorder.step(
                    compiled=state.global_step == 1,
                    loss=float(logs['loss']),
                    chosen_logp=float(logs['logps/chosen']),
                )

    return Trainer, Steps


def run(args: argparse.Namespace) -> None:
    """Trains for as many steps as asked for, and writes what they took."""
    import datasets
    import torch

    steps = task.read_steps(args.steps_file)
    prompts = len(steps[0])
    batches = micro_batches(steps[: args.steps], args.accumulate)
    recorder, spent = Recorder(args.out), {'reference': 0.0}
    recorder.write(
        'header',
        contestant='trl',
        variant=variant(args),
        dtype=args.dtype,
        prompts=prompts,
        machine=machine.machine(),
        matmul_flops=torch_rate(args),
    )
    model, reference = _models(args, getattr(torch, args.param_dtype))
    trainer_class, callback = _trainer_class(recorder, spent)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=model,
            ref_model=reference,
            args=_config(args, prompts, folder),
            train_dataset=datasets.Dataset.from_list(rows(steps, args.steps)),
            processing_class=_tokenizer(args),
            callbacks=[callback()],
        )
        trainer.train()
    collator_multiple = trainer.data_collator.pad_to_multiple_of
    recorder.end(
        reference_seconds=spent['reference'] / args.steps,
        computed_tokens=padded_tokens(batches, collator_multiple) / args.steps,
        reference_in_step=not args.precompute,
        device_peak_bytes=torch.cuda.max_memory_allocated() if args.device == 'cuda' else 0,
    )


def torch_rate(args: argparse.Namespace) -> float:
    """The matrix rate of torch on the CPU; 0 on a GPU, whose peak is published."""
    return machine.torch_matmul_rate(args.dtype) if args.device == 'cpu' else 0.0


def variant(args: argparse.Namespace) -> str:
    """What is not the first choice, in words."""
    words = ['precompute'] * args.precompute + ['checkpointing'] * args.checkpointing
    words += ['padding-free'] * args.padding_free
    words += [f'{args.accumulate} micro-batches'] * (args.accumulate > 1)
    words += ['bfloat16 weights'] * (args.param_dtype == 'bfloat16')
    words += [args.attention] if args.attention != 'sdpa' else []
    return '+'.join(words) or 'plain'


if __name__ == '__main__':
    run(arguments())
