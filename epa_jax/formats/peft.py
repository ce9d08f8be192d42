"""LoRA adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from epa_jax import storage
from epa_jax.formats import safetensors
from epa_jax.formats.assemble import StoredTensor, fill
from epa_jax.formats.files import check_path, read_json
from epa_jax.formats.names import HUGGING_FACE, FormatError, Layout, Slot
from epa_jax.models.lora import DOWN, MATRICES, UP, Lora, abstract_adapters
from epa_jax.models.spec import ModelSpec
from epa_jax.strict_json import shown
from epa_jax.types import Params

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'
MAX_RANK, MAX_ALPHA = 1 << 20, 1e9
_ENDS = {DOWN: 'lora_A', UP: 'lora_B'}
_TENSOR = re.compile(r'.*\.(\w+)_proj\.lora_[AB]\.weight')

# Keys that change nothing here: how the adapter was trained, or what the tensors say.
_IRRELEVANT = {
    'auto_mapping',
    'base_model_name_or_path',
    'corda_config',
    'ensure_weight_tying',
    'eva_config',
    'exclude_modules',
    'inference_mode',
    'layers_pattern',
    'lora_alpha',
    'lora_dropout',
    'lora_ga_config',
    'megatron_core',
    'peft_version',
    'qalora_group_size',
    'r',
    'revision',
    'target_modules',
    'use_rslora',
}
# Values of keys that would change what is computed; of any other key, only empty ones.
_ALLOWED: dict[str, tuple[Any, ...]] = {
    'peft_type': ('LORA',),
    'task_type': ('CAUSAL_LM', None),
    'bias': ('none',),
    'init_lora_weights': (True, False, 'gaussian', 'orthogonal', 'eva'),
}
_EMPTY: tuple[Any, ...] = (None, False, {}, [], ())


class Adapter(NamedTuple):
    """An adapter whose headers are checked and whose values are not yet read.

    Attributes:
      base: the model it adapts.
      lora: its shape and scale.
      tensors: of the file.
    """

    base: Path
    lora: Lora
    tensors: list[StoredTensor]


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (path / CONFIG).is_file() and not (path / 'config.json').is_file()


def open_adapter(folder: Path) -> Adapter:
    """Reads the configuration of an adapter and the headers of its tensors.

    Raises:
      FormatError: a malformed file, a base model that is not on this machine, or a kind
        of adapter that is not read here.
    """
    config = read_json(folder / CONFIG)
    _check(folder / CONFIG, config)
    tensors = safetensors.file_tensors(folder / WEIGHTS)
    rank, alpha = config['r'], float(config['lora_alpha'])
    found = {match[1] for t in tensors if (match := _TENSOR.fullmatch(t.name))}
    matrices = tuple(name for name in MATRICES if name in found)
    lora = Lora(rank, alpha, matrices, bool(config.get('use_rslora')))
    return Adapter(_base(folder, config), lora, tensors)


def open_chain(folder: Path) -> list[Adapter]:
    """An adapter, that which its base is if it is one, and so on down to a whole model.

    Raises:
      FormatError: as `open_adapter`, or an adapter that is its own base.
    """
    chain: list[Adapter] = []
    seen: list[Path] = []
    while is_adapter(folder):
        if folder.resolve() in seen:
            raise FormatError(f'{folder / CONFIG}: the adapter is its own base')
        seen.append(folder.resolve())
        chain.append(open_adapter(folder))
        folder = chain[-1].base
    return chain


def read_adapter(
    adapter: Adapter, spec: ModelSpec, shardings: Params | None = None
) -> Params:
    """Adapters as `models.lora.abstract_adapters` describes them, float32.

    Args:
      adapter: from `open_adapter`.
      spec: architecture of its base.
      shardings: of the adapters, or None for the default device.

    Raises:
      FormatError: tensors that are not those of such an adapter of every layer.
    """
    abstract = abstract_adapters(spec, adapter.lora)
    return fill(abstract, slots(spec, adapter.lora), adapter.tensors, shardings)


def slots(spec: ModelSpec, lora: Lora) -> dict[str, Slot]:
    """Every tensor of an adapter's file, and where it goes."""
    out = {}
    for layer in range(spec.n_layers):
        for name in lora.matrices:
            stem = HUGGING_FACE.inside[name][0].format(layer).removesuffix('.weight')
            for end, theirs in _ENDS.items():
                full = f'base_model.model.{stem}.{theirs}.weight'
                out[full] = Slot(('layers', name + end), layer, Layout.OUT_IN)
    return out


def config_of(lora: Lora, base: str) -> dict[str, Any]:
    """What adapter_config.json says of an adapter."""
    return {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': base,
        'r': lora.rank,
        'lora_alpha': lora.alpha,
        'lora_dropout': 0.0,
        'use_rslora': lora.rank_stabilized,
        'target_modules': [f'{name}_proj' for name in lora.matrices],
        'bias': 'none',
        'fan_in_fan_out': False,
        'inference_mode': True,
        'init_lora_weights': True,
    }


def _check(path: Path, config: dict[str, Any]) -> None:
    for key, value in config.items():
        if key in _ALLOWED and value not in _ALLOWED[key]:
            known = ', '.join(map(repr, _ALLOWED[key]))
            message = f'{key}={shown(value)}: expected one of {known}'
            raise FormatError(f'{path}: {message}')
        if key not in _IRRELEVANT and key not in _ALLOWED and value not in _EMPTY:
            raise FormatError(
                f'{path}: {key}={shown(value)} is not read here; merge the adapter with '
                'PEFT (merge_and_unload) and use the merged model'
            )
    rank, alpha = config.get('r'), config.get('lora_alpha', 0)
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MAX_RANK:
        raise FormatError(
            f'{path}: r={shown(rank)}: expected a whole number from 1 to {MAX_RANK}'
        )
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not number or not 0 < alpha <= MAX_ALPHA:
        raise FormatError(
            f'{path}: lora_alpha={shown(alpha)}: expected a number above 0, at most '
            f'{MAX_ALPHA:g}'
        )


def _base(folder: Path, config: dict[str, Any]) -> Path:
    name = config.get('base_model_name_or_path')
    if isinstance(name, str) and name.startswith(storage.SCHEME):
        return storage.local(name)
    if isinstance(name, str) and name:
        for path in (Path(name), folder / name):
            check_path(path)
            if path.exists():
                return path
    raise FormatError(
        f'{folder / CONFIG}: base_model_name_or_path={shown(name)}: no such model on this '
        'machine; set it to the folder or .gguf file that the adapter was trained on'
    )
