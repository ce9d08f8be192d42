"""Tokenizers of the models that `formats.load` opens; no remote code is ever run."""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from epa_jax import storage
from epa_jax.formats.files import check_path, read_json
from epa_jax.formats.gguf_file import open_gguf
from epa_jax.formats.gguf_tokenizer import build_tokenizer
from epa_jax.formats.names import FormatError
from epa_jax.formats.peft import is_adapter, open_chain
from epa_jax.models.spec import ModelSpec


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer beside the weights, chat template and special tokens included.

    A folder's tokenizer.json is used exactly as it is: the class named in
    tokenizer_config.json is not instantiated, as some classes of transformers replace
    parts of the file by their own.

    Args:
      path: a folder with tokenizer.json, or a .gguf file; an adapter without one has
        that of its base.

    Raises:
      FormatError: no tokenizer there, or one that cannot be read.
      StorageError: a bucket that cannot be read.
    """
    path = storage.local(path)
    check_path(path)
    if path.suffix == '.gguf' and path.is_file():
        return build_tokenizer(open_gguf(path))
    if not path.is_dir():
        raise FormatError(f'{path}: expected a folder with tokenizer.json, or a .gguf file')
    if not (path / 'tokenizer.json').is_file() and is_adapter(path):
        chain = [adapter.base for adapter in open_chain(path)]
        own = [base for base in chain if (base / 'tokenizer.json').is_file()]
        return load_tokenizer((own or chain[-1:])[0])
    if not (path / 'tokenizer.json').is_file():
        raise FormatError(f'{path}: tokenizer.json is missing; {_remedy(path)}')
    read_json(path / 'tokenizer.json')
    try:
        found = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
        for special in (False, True):  # some values show that they are bad when used
            found(['a'], add_special_tokens=special)
        return found
    except Exception as error:  # the tokenizers library raises bare Exception
        raise FormatError(f'{path}/tokenizer.json: cannot be read: {error}') from error


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, spec: ModelSpec) -> None:
    """Refuses a tokenizer with tokens that the model does not have.

    A model may have more rows than its tokenizer has tokens; they are padding.

    Raises:
      FormatError: the tokenizer belongs to another model.
    """
    if len(tokenizer) > spec.vocab_size:
        raise FormatError(
            f'the tokenizer has {len(tokenizer)} tokens, the model {spec.vocab_size}; use '
            'the tokenizer that belongs to the model'
        )


def _remedy(path: Path) -> str:
    if (path / 'tokenizer.model').is_file() or (path / 'vocab.json').is_file():
        return (
            'convert the older tokenizer files with transformers, '
            "AutoTokenizer.from_pretrained('FOLDER').save_pretrained('FOLDER')"
        )
    return 'copy the tokenizer files beside the weights, or set model.tokenizer'


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes tokenizer files that transformers 4.x, 5.x and vLLM read."""
    tokenizer.save_pretrained(folder)
    path = folder / 'tokenizer_config.json'
    config = read_json(path)
    for key in ('backend', 'is_local', 'local_files_only'):
        config.pop(key, None)
    config['tokenizer_class'] = 'PreTrainedTokenizerFast'  # 5.x's own name is new in 5
    if isinstance(tokenizer.chat_template, str):  # 4.x read it here before 4.51
        config['chat_template'] = tokenizer.chat_template
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + '\n', 'utf-8')
