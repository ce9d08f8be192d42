"""The keys of a run: type, default, meaning, allowed values.

A key of type `X | None` is unset by default.
"""

import dataclasses

from epa_jax.loss_config import LossConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where examples come from and what of them is trained on.

    Attributes:
      train: a file (JSON, JSONL, either also .gz, parquet) or a `datasets` folder, either
        local or gs://BUCKET/PATH; or a hub name, optionally 'name:split'.
      eval: the same for held-out examples; '' takes `eval_examples` out of `train`.
      eval_examples: held-out examples taken from `train` by `split_seed`, or at most
        this many read from `eval`; 0 evaluates on all of `eval`, or not at all.
      layout: 'auto', or one of `data.layouts.LAYOUTS` (pairs, hh, rated, sft).
      max_examples: use at most this many training examples; 0 is all.
      split_seed: fixes which examples are held out.
      max_prompt_tokens: longer prompts follow `overlong_prompt`.
      max_response_tokens: longer responses follow `overlong_response`.
      overlong_prompt: 'truncate_left', 'drop' or 'error'.
      overlong_response: 'truncate_right', 'drop' or 'error'; 'drop' drops the response
        and, if too few remain, its example.
      bad_lines: 'error', or 'skip' to skip and count lines that cannot be read.
      chat_template: 'auto' applies the tokenizer's template when it has one, 'none'
        joins text as it is; anything else is the path of a Jinja template.
      system_prompt: put before conversations that have no system message.
      shuffle: new order every epoch, by the run's seed.
      n_strong: most worse responses of the same prompt per visit.
      n_weak: responses of other prompts per visit.
      weak_source: 'chosen', 'rejected' or 'any' response of the other prompt.
      resample_negatives: draw negatives anew every epoch, else keep the first draw.
    """

    train: str = ''
    eval: str = ''
    eval_examples: int = 0
    layout: str = 'auto'
    max_examples: int = 0
    split_seed: int = 0
    max_prompt_tokens: int = 512
    max_response_tokens: int = 512
    overlong_prompt: str = 'truncate_left'
    overlong_response: str = 'truncate_right'
    bad_lines: str = 'error'
    chat_template: str = 'auto'
    system_prompt: str = ''
    shuffle: bool = True
    n_strong: int = 1
    n_weak: int = 0
    weak_source: str = 'any'
    resample_negatives: bool = True


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Responses whose likelihood is raised beside the preference loss (MPO's D_sft).

    Chat template, limits and bad lines follow `data`.

    Attributes:
      train: as `data.train`; of several responses the chosen one counts. '' has none.
      eval: held-out examples; '' takes `eval_examples` out of `train`.
      eval_examples: as `data.eval_examples`.
      layout: as `data.layout`.
      weight: of the mean negative log-likelihood per response token, nats.
      sequences: examples per optimiser step, over all devices.
    """

    train: str = ''
    eval: str = ''
    eval_examples: int = 0
    layout: str = 'auto'
    weight: float = 0.1
    sequences: int = 16


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Text whose likelihood is raised beside the preference loss (MPO's D_pretrain).

    Attributes:
      train: as `data.train`; records hold a text each. '' has none.
      eval: held-out texts; '' takes `eval_examples` out of `train`.
      eval_examples: held-out texts taken from `train`, or at most this many of `eval`.
      text_key: key of a record's text.
      weight: of the mean negative log-likelihood per token, nats.
      sequences: sequences per optimiser step, over all devices.
      max_tokens: longer texts go on in further sequences.
      append_eos: texts end with end-of-sequence; False for excerpts, which end anywhere.
    """

    train: str = ''
    eval: str = ''
    eval_examples: int = 0
    text_key: str = 'text'
    weight: float = 0.1
    sequences: int = 16
    max_tokens: int = 512
    append_eos: bool = True


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The policy's initial weights and how it computes.

    Attributes:
      path: a Hugging Face folder (safetensors or flax_model.msgpack) or a .gguf file.
      tokenizer: a folder or .gguf file; '' looks beside the weights.
      param_dtype: dtype of the parameters, 'float32' or 'bfloat16'; adapters (see
        `lora`) are float32.
      compute_dtype: dtype of matrix products; log-probs are always float32.
      remat: what the backward pass keeps of a layer: 'none' keeps all, 'dots' matrix
        products and attention's results, 'full' only the layer's input.
      attention: back end: 'auto' is 'spans' on a CPU, 'pallas' on a TPU, 'cudnn' on a GPU
        in 16-bit floats, else 'xla' (see `models.attention`); what the machine cannot run
        falls back, with a line in the log.
      logprob_chunk: tokens per row that meet the vocabulary at once; 0 is all where rows
        are split over devices, which then reduce the head's gradient once, and 128 else.
      vocab_block: words that they meet at once on a device; 0: 16384 on a GPU, else 4096.
    """

    path: str = ''
    tokenizer: str = ''
    param_dtype: str = 'float32'
    compute_dtype: str = 'float32'
    remat: str = 'full'
    attention: str = 'auto'
    logprob_chunk: int = 0
    vocab_block: int = 0


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Adapters that are trained in place of the model, which stays as it is.

    The reference is the model without them, so no mode of it needs a second copy.

    Attributes:
      rank: inner dimension of the adapters; 0 trains the whole model.
      alpha: adapters are scaled by alpha / rank.
      modules: matrices that get one: 'all-linear', or names joined by commas of q_proj,
        k_proj, v_proj, o_proj, gate_proj, up_proj and down_proj.
      rank_stabilized: scale by alpha / sqrt(rank).
    """

    rank: int = 0
    alpha: float = 32.0
    modules: str = 'all-linear'
    rank_stabilized: bool = False


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """How prompts become rows.

    Attributes:
      prompts: prompts per optimiser step, over all devices.
      row_length: tokens of the longest rows; 0 chooses, see `data.row_lengths`.
      row_lengths: at most so many lengths, each compiled by itself; 0 is up to 3, where
        they save more than compiling costs, and 1 where `row_length` is given.
      rows: rows per micro-batch, over all devices; a step runs as many micro-batches
        as its prompts need, so this bounds memory and changes no result. 0 is one
        row for every data-parallel device.
    """

    prompts: int = 16
    row_length: int = 0
    row_lengths: int = 0
    rows: int = 0


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
    """The reference policy.

    Attributes:
      mode: 'cached' computes its log-probs once before training, 'in_step' keeps a
        frozen copy and recomputes them, 'none' has no reference. A loss that needs no
        reference is given none.
      path: weights of the reference; '' is the policy's own initial weights.
      cache_dir: where cached log-probs live; they are found again by content.
      cache_file: an exact cache file to use; refused if it was made from anything
        else. '' finds or makes one in `cache_dir`.
    """

    mode: str = 'cached'
    path: str = ''
    cache_dir: str = 'runs/reference_cache'
    cache_file: str = ''


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser.

    Attributes:
      name: 'adamw', 'adafactor' or 'rmsprop'.
      lr: peak learning rate.
      schedule: after warm-up 'cosine' or 'linear' down to `final_lr_ratio`, or 'constant'.
      warmup_ratio: fraction of all steps spent rising from 0 to `lr`.
      final_lr_ratio: last learning rate over `lr`.
      b1: first-moment decay (adamw).
      b2: second-moment decay (adamw), squared-gradient decay (rmsprop).
      eps: added to the denominator.
      weight_decay: decoupled; matrices only, never norms and biases.
      clip_norm: global gradient norm; 0 does not clip.
      mu_dtype: dtype in which the first moment is kept (adamw), 'float32' or 'bfloat16'.
    """

    name: str = 'adamw'
    lr: float = 5e-7
    schedule: str = 'cosine'
    warmup_ratio: float = 0.1
    final_lr_ratio: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    mu_dtype: str = 'float32'


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; at most one may be -1 (all that remain).

    Attributes:
      data: copies of the model; a multiple of the number of TPU slices.
      fsdp: shards of the parameters; batches are split over data and fsdp.
      tensor: shards of heads, MLP and vocabulary.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When state is saved, and what is kept.

    Attributes:
      every: steps between saves; 0 saves at the end only.
      keep_last: most recent checkpoints kept.
      keep_best: further ones kept by `best_metric`; 0 keeps none.
      best_metric: an evaluation metric.
      best_mode: 'max' or 'min'.
      resume: continue from the newest checkpoint in the run folder.
    """

    every: int = 0
    keep_last: int = 1
    keep_best: int = 0
    best_metric: str = 'eval/rewards/accuracies'
    best_mode: str = 'max'
    resume: bool = True


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is reported, and when.

    Attributes:
      every: steps between lines of metrics.
      eval_every: steps between evaluations; 0 evaluates at the start and the end.
      tensorboard: write TensorBoard event files.
      wandb: W&B project; '' does not use W&B.
      profile_steps: steps to trace with JAX's profiler, into `profile/` of the run
        folder: 'FIRST:LAST', both included; '' traces none.
    """

    every: int = 1
    eval_every: int = 0
    tensorboard: bool = True
    wandb: str = ''
    profile_steps: str = ''


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What `epa_jax.plan` assumes where model or data are not at hand; no run reads it.

    Attributes:
      architecture: Hugging Face's config.json, used when `model.path` does not exist.
      examples: training examples.
      prompt_tokens: of a prompt, mean; 0 reads the data.
      response_tokens: of a response, mean.
      sft_tokens: of an SFT example, prompt and response, mean.
    """

    architecture: str = ''
    examples: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    sft_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Attributes:
      workdir: the run folder: config, metrics, checkpoints, summary, export.
      seed: every random choice follows from it.
      epochs: passes over the training examples; ignored when `steps` is set.
      steps: optimiser steps; 0 follows `epochs`.
      max_bad_steps: non-finite updates in a row that stop the run.
      max_step_minutes: a step (or batch measured) that hangs so long ends the run; 0 never.
      step0_guard: check at step 0 that a policy equal to its reference has its known loss.
      export: write a Hugging Face folder at the end; with `lora`, of the adapters, in
        PEFT's layout.
    """

    workdir: str = ''
    seed: int = 0
    epochs: float = 1.0
    steps: int = 0
    max_bad_steps: int = 5
    max_step_minutes: float = 120.0
    step0_guard: bool = True
    export: bool = True
    data: DataConfig = DataConfig()
    sft: SftConfig = SftConfig()
    pretrain: PretrainConfig = PretrainConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    batch: BatchConfig = BatchConfig()
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    reference: ReferenceConfig = ReferenceConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    plan: PlanConfig = PlanConfig()
