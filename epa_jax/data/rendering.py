"""Examples as text that is ready to tokenise: chat templates and plain turns."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from epa_jax import storage
from epa_jax.config import ConfigError
from epa_jax.data.sources import DataError
from epa_jax.schema import DataConfig
from epa_jax.strict_json import shown
from epa_jax.types import Example, Message, as_messages

MAX_TEMPLATE = 1 << 20  # bytes of a file


class Unusable(Exception):
    """An example to leave out and count; the message is the reason."""


class Renderer:
    """Renders prompts and responses with one template.

    Attributes:
      template: Jinja text, or None for plain text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, cfg: DataConfig):
        """Finds the chat template.

        Raises:
          ConfigError: no such template file.
        """
        self._tokenizer = tokenizer
        self._cfg = cfg
        self.template = _find_template(tokenizer, cfg.chat_template)

    def render(self, example: Example) -> tuple[str, list[str]]:
        """The prompt and each response, without the end of sequence.

        Raises:
          ConfigError: a system prompt where there is no place for it.
          DataError: the template refuses the messages or does not put the response after
            the prompt.
          Unusable: it refuses them, and such lines are to be skipped.
        """
        prompt = example.prompt
        responses = [self._without_eos(text) for text in example.responses]
        if self.template is None and isinstance(prompt, str):
            if self._cfg.system_prompt:
                raise ConfigError(
                    'data.system_prompt: needs a chat template or conversations; '
                    f'{example.origin} has a prompt of plain text'
                )
            return prompt, responses
        messages = self._system(as_messages(prompt))
        if self.template is None:
            return _plain_turns(messages), [f' {text}' for text in responses]
        before = self._apply(messages, example.origin, add_generation_prompt=True)
        texts = []
        for response in responses:
            answer = Message('assistant', response)
            full = self._apply((*messages, answer), example.origin)
            if not full.startswith(before):
                raise DataError(
                    f'{example.origin}: the chat template does not put the response right '
                    'after its generation prompt; give a template that does by '
                    "data.chat_template=FILE, or use data.chat_template='none'"
                )
            texts.append(self._until_eos(full[len(before) :], response))
        return before, texts

    def _system(self, prompt: Sequence[Message]) -> tuple[Message, ...]:
        if not self._cfg.system_prompt or prompt[0].role == 'system':
            return tuple(prompt)
        return (Message('system', self._cfg.system_prompt), *prompt)

    def _apply(
        self, messages: Sequence[Message], origin: str, add_generation_prompt: bool = False
    ) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [message._asdict() for message in messages],
                    chat_template=self.template,
                    add_generation_prompt=add_generation_prompt,
                    tokenize=False,
                )
            )
        except Exception as error:  # a template is a program, it may raise anything
            if self._cfg.bad_lines == 'skip':
                raise Unusable(f'the chat template refuses it: {error}') from None
            raise DataError(
                f'{origin}: the chat template refuses these messages: {error}. Mend the '
                "line, or skip and count such lines with data.bad_lines='skip'"
            ) from error

    def _without_eos(self, response: str) -> str:
        """A response without the end of sequence that some data sets come with."""
        eos = self._tokenizer.eos_token
        end, words = len(response), len(response.rstrip())
        while response.endswith(eos, 0, words):  # without copies: there may be many
            end = words = words - len(eos)
            while words and response[words - 1].isspace():
                words -= 1
        return response[:end]

    def _until_eos(self, text: str, response: str) -> str:
        """The response up to the template's end of sequence, which is added as a token.

        Only what the template writes after the response is looked at: a response may
        itself hold the characters of an end of sequence.
        """
        eos, words = self._tokenizer.eos_token, response.strip()
        start = text.find(words)
        if start < 0:  # the template changed the response
            return text.rpartition(eos)[0] if eos in text else text
        end = text.find(eos, start + len(words))
        return text if end < 0 else text[:end]


def _plain_turns(messages: Sequence[Message]) -> str:
    """Messages where there is no chat template, in HH-RLHF's plain layout."""
    names = {'user': 'Human', 'assistant': 'Assistant', 'system': 'System'}
    turns = [f'\n\n{names.get(m.role, m.role)}: {m.content}' for m in messages]
    return ''.join(turns) + '\n\nAssistant:'


def _find_template(tokenizer: PreTrainedTokenizerBase, setting: str) -> str | None:
    """The Jinja text to use, or None for plain text."""
    if setting == 'none':
        return None
    if setting == 'auto':
        template = tokenizer.chat_template
        if template is not None and not isinstance(template, str | dict):
            raise ConfigError(
                'model.tokenizer: its chat template is not text; write the one to use to a '
                'file: data.chat_template=FILE'
            )
        if not isinstance(template, dict):
            return template
        if 'default' not in template:
            raise ConfigError(
                f'model.tokenizer: has the chat templates {", ".join(template)} and none '
                'named default; write the one to use to a file: data.chat_template=FILE'
            )
        return template['default']
    path = storage.local(setting)
    try:
        if not path.is_file() or path.stat().st_size > MAX_TEMPLATE:
            raise ValueError(f'no file of at most {MAX_TEMPLATE} bytes')
        return path.read_text(encoding='utf-8')
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"data.chat_template={shown(setting)}: expected 'auto', 'none' or a file of "
            f'Jinja ({reason})'
        ) from None
