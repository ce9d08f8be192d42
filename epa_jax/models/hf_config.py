"""Hugging Face's config.json, to and from a `ModelSpec`.

Reading fails closed: a model is never run as if it were a slightly different one.
"""

from collections.abc import Mapping
from typing import Any

from epa_jax.models.spec import ModelSpec, RopeScaling, SpecError, check_spec
from epa_jax.strict_json import shown

_CLASSES = {'llama': 'LlamaForCausalLM', 'mistral': 'MistralForCausalLM'}

# What transformers takes when config.json has no such key.
_WHEN_ABSENT: dict[str, dict[str, Any]] = {
    'llama': {'num_key_value_heads': None, 'max_position_embeddings': 2048},
    'mistral': {'num_key_value_heads': 8, 'max_position_embeddings': 131072},
}
_MISTRAL_WINDOW = 4096
_ROPE_THETA = 10000.0
_NORM_EPS = 1e-6
_MOST = {int: 2**31 - 1, float: 1e30}

# Keys that would change the model, with the values at which they do not.
_FIXED: dict[str, tuple[Any, ...]] = {
    'hidden_act': ('silu',),
    'attention_dropout': (0, None),
    'partial_rotary_factor': (1, None),
    'rope_interleaved': (False,),
    'layer_types': (None,),
    'per_layer_config': (None,),
    'pruned_heads': ({}, None),
    'is_encoder_decoder': (False,),
    'add_cross_attention': (False,),
    'cross_attention_hidden_size': (None,),
    'tie_encoder_decoder': (False,),
    'quantization_config': (None,),
    'auto_map': (None,),
}
_FIXED_BY_TYPE: dict[str, dict[str, tuple[Any, ...]]] = {
    'llama': {'sliding_window': (None,)},
    'mistral': {'attention_bias': (False,), 'mlp_bias': (False,)},
}

# Keys that do not touch the logits: bookkeeping, initialisation, token ids (those of the
# tokenizer count), and the generation and classification defaults that transformers 4.x
# wrote into every config.json.
_IGNORED_TEXT = """
    transformers_version torch_dtype dtype use_cache initializer_range pretraining_tp
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
    _name_or_path name_or_path _commit_hash _attn_implementation _flash_attn_2_enabled
    _attn_implementation_autoset attn_implementation is_llama_config
    transformers.js_config unsloth_version unsloth_fixed max_sequence_length
    model_max_length task_specific_params finetuning_task tokenizer_class prefix
    problem_type id2label label2id num_labels output_attentions output_hidden_states
    output_scores return_dict return_dict_in_generate torchscript use_bfloat16 is_decoder
    chunk_size_feed_forward tf_legacy_loss tie_last_hidden_states temperature top_k top_p
    typical_p do_sample num_beams num_beam_groups num_return_sequences max_length
    min_length max_new_tokens early_stopping length_penalty repetition_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size diversity_penalty epsilon_cutoff
    eta_cutoff bad_words_ids forced_bos_token_id forced_eos_token_id suppress_tokens
    begin_suppress_tokens remove_invalid_values exponential_decay_length_penalty
    """
_IGNORED = frozenset(_IGNORED_TEXT.split())


class _Required:
    """Marks a key that has no default."""


class _Keys:
    """A JSON object whose keys are taken one by one, so that none is overlooked."""

    def __init__(self, values: Mapping[str, Any], origin: str):
        self._left = dict(values)
        self._origin = origin

    def error(self, message: str) -> SpecError:
        return SpecError(f'{self._origin}: {message}')

    def take(self, key: str, kind: Any, absent: Any = _Required, null: bool = False) -> Any:
        """Removes a key and returns its value, or `absent` where there is none.

        Args:
          key: name.
          kind: int, float (both positive), bool, str or dict.
          absent: value of an absent key.
          null: whether null is allowed; it always is where `absent` is None.
        """
        if key not in self._left:
            if absent is _Required:
                raise self.error(f'{key} is missing; expected {_words(kind)}')
            return absent
        value = self._left.pop(key)
        if value is None and (null or absent is None):
            return None
        number = kind in (int, float)
        if number and type(value) in (int, kind) and not 0 < value <= _MOST[kind]:
            raise self.error(f'{key}={shown(value)}: expected {_words(kind)}')
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.error(f'{key}={shown(value)}: expected {_words(kind)}')
        return value

    def require(self, fixed: Mapping[str, tuple[Any, ...]]) -> None:
        """Takes keys that may only be absent or have one of the given values."""
        for key, allowed in fixed.items():
            value = self._left.pop(key, allowed[0])
            if value not in allowed:
                raise self.error(
                    f'{key}={shown(value)} is not implemented, only {allowed[0]!r}; use a '
                    'checkpoint that was made with that value'
                )

    def finish(self, ignored: frozenset[str] = frozenset()) -> None:
        """Refuses keys that nobody took."""
        unknown = {k: v for k, v in self._left.items() if k not in ignored}
        if unknown:
            some = sorted(unknown.items())[:8]
            listed = ', '.join(f'{k}={shown(v)}' for k, v in some)
            raise self.error(
                f'unknown {listed}; expected none, because it may change the model. Remove '
                'it from the file if you know that it does not'
            )


def _words(kind: type) -> str:
    positive = {
        int: f'a positive integer up to {_MOST[int]}',
        float: f'a positive number up to {_MOST[float]:g}',
    }
    return positive.get(kind, f'a {kind.__name__}')


def spec_from_hf(config: Mapping[str, Any], origin: str) -> ModelSpec:
    """Reads Hugging Face's config.json, as transformers 4.x or 5.x writes it.

    Every key is read, ignored by name, or held to the one value implemented here. The
    rotary embedding is `rope_theta` and `rope_scaling` in 4.x, `rope_parameters` in 5.x;
    the precision of the weights (`torch_dtype`, `dtype`) is read off the weights. An
    absent key means what it means to transformers.

    Args:
      config: the parsed JSON object.
      origin: the file's name, for messages.

    Raises:
      SpecError: a key that is unknown, missing, ill-typed or contradictory, or a value
        that is not implemented.
    """
    keys = _Keys(config, origin)
    model_type = keys.take('model_type', str)
    if model_type not in _CLASSES:
        known = sorted(_CLASSES)
        raise keys.error(f'model_type={shown(model_type)}: expected one of {known}')
    keys.require({'architectures': ([_CLASSES[model_type]], None)})
    keys.require(_FIXED | _FIXED_BY_TYPE[model_type])
    absent = _WHEN_ABSENT[model_type]
    d_model, n_heads = keys.take('hidden_size', int), keys.take('num_attention_heads', int)
    window = _MISTRAL_WINDOW if model_type == 'mistral' else None
    theta, scaling = _rope(keys, origin)
    spec = ModelSpec(
        model_type=model_type,
        vocab_size=keys.take('vocab_size', int),
        d_model=d_model,
        d_ff=keys.take('intermediate_size', int),
        n_layers=keys.take('num_hidden_layers', int),
        n_heads=n_heads,
        n_kv_heads=keys.take(
            'num_key_value_heads', int, absent['num_key_value_heads'], null=True
        )
        or n_heads,
        head_dim=keys.take('head_dim', int, None) or d_model // n_heads,
        norm_eps=keys.take('rms_norm_eps', float, _NORM_EPS),
        rope_theta=theta,
        rope_scaling=scaling,
        sliding_window=keys.take('sliding_window', int, window, null=True),
        tie_embeddings=keys.take('tie_word_embeddings', bool, False),
        attention_bias=keys.take('attention_bias', bool, False),
        mlp_bias=keys.take('mlp_bias', bool, False),
        max_positions=keys.take(
            'max_position_embeddings', int, absent['max_position_embeddings']
        ),
    )
    keys.finish(_IGNORED)
    check_spec(spec, origin)
    return spec


def _rope(keys: _Keys, origin: str) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary embedding, from either spelling."""
    theta = keys.take('rope_theta', float, None)
    old, new = (
        keys.take('rope_scaling', dict, None),
        keys.take('rope_parameters', dict, None),
    )
    if old and new and old != new:
        raise keys.error('rope_scaling and rope_parameters differ; keep one of them')
    rope = _Keys(
        new or old or {}, f'{origin}: {"rope_parameters" if new else "rope_scaling"}'
    )
    own_theta = rope.take('rope_theta', float, None)
    if theta and own_theta and theta != own_theta:
        raise rope.error(f'rope_theta={own_theta} contradicts rope_theta={theta} outside')
    theta = own_theta or theta or _ROPE_THETA
    kind, old_kind = rope.take('rope_type', str, None), rope.take('type', str, None)
    if kind and old_kind and kind != old_kind:
        raise rope.error(f'rope_type={kind!r} contradicts type={old_kind!r}')
    kind = kind or old_kind or 'default'
    rope.require({'partial_rotary_factor': (1, None)})
    if kind not in ('default', 'llama3'):
        raise rope.error(
            f"rope_type={kind!r} is not implemented; expected 'llama3' or none"
        )
    scaling = None
    if kind == 'llama3':
        scaling = RopeScaling(
            factor=rope.take('factor', float),
            low_freq_factor=rope.take('low_freq_factor', float),
            high_freq_factor=rope.take('high_freq_factor', float),
            original_max_positions=rope.take('original_max_position_embeddings', int),
        )
    rope.finish()
    return theta, scaling


def spec_to_hf(
    spec: ModelSpec,
    dtype: str,
    bos: int | None = None,
    eos: int | None = None,
    pad: int | None = None,
) -> dict[str, Any]:
    """The config.json of a model, in the spelling that transformers 4.x, 5.x and vLLM read.

    Args:
      spec: architecture.
      dtype: precision of the weights, such as 'bfloat16'.
      bos: token id that begins a text, or None.
      eos: token id that ends a text, or None.
      pad: token id of padding, or None.

    Raises:
      SpecError: an architecture that no Hugging Face class has.
    """
    _check_expressible(spec)
    config: dict[str, Any] = {
        'architectures': [_CLASSES[spec.model_type]],
        'model_type': spec.model_type,
        'vocab_size': spec.vocab_size,
        'hidden_size': spec.d_model,
        'intermediate_size': spec.d_ff,
        'num_hidden_layers': spec.n_layers,
        'num_attention_heads': spec.n_heads,
        'num_key_value_heads': spec.n_kv_heads,
        'head_dim': spec.head_dim,
        'hidden_act': 'silu',
        'rms_norm_eps': spec.norm_eps,
        'rope_theta': spec.rope_theta,
        'rope_scaling': None,
        'max_position_embeddings': spec.max_positions,
        'tie_word_embeddings': spec.tie_embeddings,
        'attention_dropout': 0.0,
        'bos_token_id': bos,
        'eos_token_id': eos,
        'pad_token_id': pad,
        'torch_dtype': dtype,
    }
    if spec.rope_scaling:
        config['rope_scaling'] = {
            'rope_type': 'llama3',
            'factor': spec.rope_scaling.factor,
            'low_freq_factor': spec.rope_scaling.low_freq_factor,
            'high_freq_factor': spec.rope_scaling.high_freq_factor,
            'original_max_position_embeddings': spec.rope_scaling.original_max_positions,
        }
    if spec.model_type == 'mistral':
        return config | {'sliding_window': spec.sliding_window}
    return config | {'attention_bias': spec.attention_bias, 'mlp_bias': spec.mlp_bias}


def _check_expressible(spec: ModelSpec) -> None:
    if spec.model_type not in _CLASSES:
        raise SpecError(f'model_type={spec.model_type!r}: expected {sorted(_CLASSES)}')
    if spec.model_type == 'mistral' and (spec.attention_bias or spec.mlp_bias):
        raise SpecError("model_type='mistral' has no biases; use model_type='llama'")
    if spec.model_type == 'llama' and spec.sliding_window:
        raise SpecError(
            "model_type='llama' has no sliding_window; use model_type='mistral'"
        )
    if spec.model_type == 'llama' and spec.d_model % spec.n_heads:
        raise SpecError(
            f"model_type='llama' needs d_model={spec.d_model} to be a multiple of "
            f"n_heads={spec.n_heads}; use model_type='mistral'"
        )
