"""The architecture of a GGUF file, from its metadata; fails closed as config.json does."""

import dataclasses
from typing import Any

import numpy as np

from epa_jax.formats.gguf_file import GgufFile
from epa_jax.formats.names import FormatError
from epa_jax.models import rope
from epa_jax.models.spec import ModelSpec, RopeScaling, check_spec
from epa_jax.strict_json import shown

_PREFIX = 'llama.'
_DEFAULT_ROPE_THETA = 10000.0

# llama.* keys that would change the model, with the values at which they do not
_FIXED: dict[str, tuple[Any, ...]] = {
    'expert_count': (0,),
    'expert_used_count': (0,),
    'rope.scaling.type': ('none',),
    'rope.scale_linear': (1.0,),
    'rope.scaling.factor': (1.0,),
    'attention.causal': (True,),
    'logit_scale': (1.0,),
    'residual_scale': (1.0,),
    'embedding_scale': (1.0,),
    'tensor_data_layout': ('Meta AI original pth',),
}
_IGNORED = ('rope.scaling.finetuned',)

# Llama 3.1 to 3.3; llama.cpp keeps of it only the frequencies, in rope_freqs.weight
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_POSITIONS = 1.0, 4.0, 8192


class _Metadata:
    """The llama.* keys, taken one by one so that none is overlooked."""

    def __init__(self, file: GgufFile):
        self._origin = str(file.path)
        self._left = {
            key.removeprefix(_PREFIX): value
            for key, value in file.metadata.items()
            if key.startswith(_PREFIX)
        }

    def error(self, message: str) -> FormatError:
        return FormatError(f'{self._origin}: {message}')

    def take(self, key: str, kind: Any, absent: Any = ...) -> Any:
        """Removes a key and returns its positive value, or `absent` where there is none."""
        if key not in self._left:
            if absent is ...:
                raise self.error(f'metadata {_PREFIX}{key} is missing')
            return absent
        value = self._left.pop(key)
        most = 2**31 - 1 if kind is int else float(np.finfo(np.float32).max)
        if type(value) is not kind or not 0 < value <= most:
            raise self.error(
                f'metadata {_PREFIX}{key}={shown(value)}: expected a positive '
                f'{kind.__name__}, at most {most:g}'
            )
        return value

    def finish(self) -> None:
        for key, value in self._left.items():
            if key in _IGNORED or value in _FIXED.get(key, ()):
                continue
            expected = _FIXED[key][0] if key in _FIXED else 'no such key'
            raise self.error(
                f'metadata {_PREFIX}{key}={shown(value)} is not implemented; expected '
                f'{expected}'
            )


def read_spec(file: GgufFile) -> ModelSpec:
    """The architecture of a `llama` GGUF file; Mistral models are such files, too.

    llama.cpp does not keep Mistral-7B-v0.1's sliding window, so a file made from it has
    none here either.

    Raises:
      FormatError: another architecture, a missing or unknown key.
      SpecError: sizes that contradict one another.
    """
    _check_general(file)
    m = _Metadata(file)
    d_model, n_heads = m.take('embedding_length', int), m.take('attention.head_count', int)
    width = m.take('rope.dimension_count', int, d_model // n_heads)
    head_dim = m.take('attention.key_length', int, width)
    if m.take('attention.value_length', int, head_dim) != head_dim or width != head_dim:
        raise m.error(
            f'keys of width {head_dim}, of which {width} rotate; expected one width for '
            'keys, values and rotation'
        )
    positions = m.take('rope.scaling.original_context_length', int, _LLAMA3_POSITIONS)
    window = m.take('attention.sliding_window', int, None)
    tensors = {t.name for t in file.tensors}
    plain = window is None and d_model % n_heads == 0
    spec = ModelSpec(
        model_type='llama' if plain else 'mistral',
        vocab_size=m.take('vocab_size', int, None) or _vocabulary(file),
        d_model=d_model,
        d_ff=m.take('feed_forward_length', int),
        n_layers=m.take('block_count', int),
        n_heads=n_heads,
        n_kv_heads=m.take('attention.head_count_kv', int, n_heads),
        head_dim=head_dim,
        norm_eps=_shortest(m.take('attention.layer_norm_rms_epsilon', float)),
        rope_theta=_shortest(m.take('rope.freq_base', float, _DEFAULT_ROPE_THETA)),
        rope_scaling=None,
        sliding_window=window,
        tie_embeddings='output.weight' not in tensors,
        attention_bias='blk.0.attn_q.bias' in tensors,
        mlp_bias='blk.0.ffn_gate.bias' in tensors,
        max_positions=m.take('context_length', int),
    )
    m.finish()
    check_spec(spec, str(file.path))
    return _with_rope_scaling(file, spec, positions)


def _check_general(file: GgufFile) -> None:
    architecture = file.metadata.get('general.architecture')
    if architecture != 'llama':
        raise FormatError(
            f"{file.path}: general.architecture={shown(architecture)}; expected 'llama' "
            '(LLaMA and Mistral models)'
        )
    if file.metadata.get('general.type', 'model') != 'model':
        raise FormatError(
            f'{file.path}: general.type={shown(file.metadata["general.type"])}; expected '
            'a model, adapters must be merged first'
        )
    if file.metadata.get('split.count', 1) not in (0, 1):
        raise FormatError(
            f'{file.path}: one of {shown(file.metadata["split.count"])} parts; join them '
            'with llama-gguf-split --merge'
        )


def _shortest(value: float) -> float:
    """The decimal that was meant by a float32: 9.99999974e-06 is 1e-05."""
    return float(str(np.float32(value)))


def _vocabulary(file: GgufFile) -> int:
    tokens = file.metadata.get('tokenizer.ggml.tokens')
    if not isinstance(tokens, list) or not tokens:
        raise FormatError(
            f'{file.path}: metadata llama.vocab_size and tokenizer.ggml.tokens are missing'
        )
    return len(tokens)


def _with_rope_scaling(file: GgufFile, spec: ModelSpec, positions: int) -> ModelSpec:
    """Adds Llama-3 scaling, recognised by the factors it gives to the frequencies."""
    found = [t for t in file.tensors if t.name == 'rope_freqs.weight']
    if not found:
        return spec
    stored = np.asarray(found[0].read(), np.float32)
    factor = _shortest(float(stored.max(initial=1.0)))
    scaling = RopeScaling(factor, _LLAMA3_LOW, _LLAMA3_HIGH, positions)
    scaled = dataclasses.replace(spec, rope_scaling=scaling)
    factors = rope.frequencies(spec) / rope.frequencies(scaled)
    if stored.shape != factors.shape or not np.allclose(stored, factors, rtol=1e-4):
        raise FormatError(
            f'{file.path}: tensor rope_freqs.weight is not Llama-3 scaling from '
            f'{positions} positions; other rotary scalings are not implemented'
        )
    return scaled
