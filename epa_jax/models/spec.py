"""What distinguishes one LLaMA- or Mistral-shaped model from another.

`models.hf_config` translates it from and to Hugging Face's config.json.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling of rotary embeddings (`rope_type: llama3`).

    Attributes:
      factor: long wavelengths are stretched by it.
      low_freq_factor: wavelengths above original_max_positions / it are stretched.
      high_freq_factor: wavelengths below original_max_positions / it are kept.
      original_max_positions: context length before scaling, tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Architecture of a decoder: all that the forward pass and the shapes need.

    Attributes:
      model_type: 'llama' or 'mistral', as in Hugging Face's config.json.
      vocab_size: V.
      d_model: width of the residual stream (hidden_size).
      d_ff: width of the MLP (intermediate_size).
      n_layers: decoder layers.
      n_heads: query heads.
      n_kv_heads: key and value heads; divides n_heads.
      head_dim: width of a head; any, not only d_model / n_heads.
      norm_eps: RMSNorm epsilon.
      rope_theta: RoPE base.
      rope_scaling: llama-3 scaling, or None.
      sliding_window: a token sees fewer than this many positions back, itself
        included, or None for all.
      tie_embeddings: the output head is the embedding.
      attention_bias: q, k, v and o projections have biases.
      mlp_bias: gate, up and down projections have biases.
      max_positions: longest position the model was made for, tokens.
    """

    model_type: str
    vocab_size: int
    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    sliding_window: int | None
    tie_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    max_positions: int


MAX_LAYERS = 10_000


class SpecError(ValueError):
    """An architecture this package does not implement; the message says what to do."""


def check_spec(spec: ModelSpec, origin: str) -> None:
    """Refuses sizes that contradict one another.

    Raises:
      SpecError: heads that do not divide, an odd head width, an empty blend of rotary
        frequencies, or more layers than any model has.
    """
    if spec.n_layers > MAX_LAYERS:  # whose tensors are listed one by one
        raise SpecError(f'{origin}: {spec.n_layers} layers; expected at most {MAX_LAYERS}')
    if spec.n_heads % spec.n_kv_heads:
        raise SpecError(
            f'{origin}: {spec.n_heads} query heads cannot share {spec.n_kv_heads} '
            'key-value heads; expected a divisor'
        )
    if spec.head_dim % 2 or not spec.head_dim:
        raise SpecError(
            f'{origin}: head_dim={spec.head_dim}; rotary embeddings need an even width'
        )
    scaling = spec.rope_scaling
    if scaling and scaling.low_freq_factor >= scaling.high_freq_factor:
        raise SpecError(
            f'{origin}: low_freq_factor={scaling.low_freq_factor} must be below '
            f'high_freq_factor={scaling.high_freq_factor}'
        )


def plain_llama(
    *,
    vocab_size: int,
    d_model: int,
    d_ff: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    tie_embeddings: bool,
    max_positions: int,
) -> ModelSpec:
    """A LLaMA without biases, RoPE scaling or sliding window, for models made here.

    Arguments are those of `ModelSpec`; the head width is d_model / n_heads.
    """
    return ModelSpec(
        model_type='llama',
        vocab_size=vocab_size,
        d_model=d_model,
        d_ff=d_ff,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=d_model // n_heads,
        norm_eps=1e-5,
        rope_theta=1e4,
        rope_scaling=None,
        sliding_window=None,
        tie_embeddings=tie_embeddings,
        attention_bias=False,
        mlp_bias=False,
        max_positions=max_positions,
    )
