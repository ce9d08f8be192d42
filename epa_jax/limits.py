"""What values the keys of a run may have; see `schema` for their meaning."""

CHOICES = {
    'data.overlong_prompt': ('truncate_left', 'drop', 'error'),
    'data.overlong_response': ('truncate_right', 'drop', 'error'),
    'data.bad_lines': ('error', 'skip'),
    'data.weak_source': ('chosen', 'rejected', 'any'),
    'model.param_dtype': ('float32', 'bfloat16'),
    'model.compute_dtype': ('float32', 'bfloat16'),
    'model.remat': ('none', 'dots', 'full'),
    'model.attention': ('auto', 'xla', 'spans', 'pallas', 'splash', 'cudnn'),
    'reference.mode': ('cached', 'in_step', 'none'),
    'optim.name': ('adamw', 'adafactor', 'rmsprop'),
    'optim.schedule': ('cosine', 'linear', 'constant'),
    'optim.mu_dtype': ('float32', 'bfloat16'),
    'checkpoint.best_mode': ('max', 'min'),
}

# keys that name a file or a folder: local, or in a bucket
PLACES = (
    'workdir',
    'data.train',
    'data.eval',
    'data.chat_template',
    'sft.train',
    'sft.eval',
    'pretrain.train',
    'pretrain.eval',
    'model.path',
    'model.tokenizer',
    'reference.path',
    'reference.cache_dir',
    'reference.cache_file',
)
# keys that name a local file
LOCAL = ('plan.architecture',)

# what lora.modules names
LINEAR = ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')

MOST_STEPS = 2**31 - 1  # the train state counts in int32

# key -> (lowest, highest), inclusive; None is unbounded
RANGES: dict[str, tuple[float | None, float | None]] = {
    'seed': (0, 2**32 - 1),
    'epochs': (0, None),
    'steps': (0, MOST_STEPS),
    'max_bad_steps': (1, None),
    'max_step_minutes': (0, None),
    'data.eval_examples': (0, None),
    'data.max_examples': (0, None),
    'data.split_seed': (0, 2**32 - 1),
    'data.max_prompt_tokens': (1, None),
    'data.max_response_tokens': (1, None),
    'data.n_strong': (0, None),
    'data.n_weak': (0, None),
    'sft.eval_examples': (0, None),
    'sft.weight': (0, None),
    'sft.sequences': (1, None),
    'pretrain.eval_examples': (0, None),
    'pretrain.weight': (0, None),
    'pretrain.sequences': (1, None),
    'pretrain.max_tokens': (2, None),
    'model.logprob_chunk': (0, None),
    'model.vocab_block': (0, None),
    'lora.rank': (0, None),
    'lora.alpha': (0, None),
    'batch.prompts': (1, None),
    'batch.row_length': (0, None),
    'batch.row_lengths': (0, 4),
    'batch.rows': (0, None),
    'optim.lr': (0, None),
    'optim.warmup_ratio': (0, 1),
    'optim.final_lr_ratio': (0, 1),
    'optim.b1': (0, 1),
    'optim.b2': (0, 1),
    'optim.eps': (0, None),
    'optim.weight_decay': (0, None),
    'optim.clip_norm': (0, None),
    'mesh.data': (-1, None),
    'mesh.fsdp': (-1, None),
    'mesh.tensor': (-1, None),
    'checkpoint.every': (0, None),
    'checkpoint.keep_last': (1, None),
    'checkpoint.keep_best': (0, None),
    'plan.examples': (0, None),
    'plan.prompt_tokens': (0, None),
    'plan.response_tokens': (0, None),
    'plan.sft_tokens': (0, None),
    'log.every': (1, None),
    'log.eval_every': (0, None),
}
