"""A policy as EleutherAI's lm-evaluation-harness asks for it; needs the extra lm_eval."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jinja2
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from epa_jax.config import ConfigError
from epa_jax.evals import generation
from epa_jax.evals.continuations import Continuation, share_contexts
from epa_jax.evals.sampling import Sampling
from epa_jax.evals.scoring import ROWS, ScoreError, score
from epa_jax.evals.stopping import before, special_token, stop_at
from epa_jax.policy import Policy


class PolicyLM(TemplateLM):
    """Answers the harness's requests, each kind in batches over all devices.

    Every process computes the same on the whole mesh and gets all answers, so to the
    harness it is one process.

    Attributes:
      policy: the model.
      tokenizer: of the model.
      stop_ids: tokens that end a response, whatever a task says; see `stopping.stop_ids`.
      rows: rows a device scores together.
      sample_rows: responses a device generates together.
      seed: of sampled responses.
      cut: contexts that were too long and cut on the left, by kind of request.
    """

    def __init__(
        self,
        policy: Policy,
        stop_ids: Sequence[int] = (),
        *,
        rows: int = ROWS,
        sample_rows: int = generation.ROWS,
        seed: int = 0,
    ):
        super().__init__()
        self.policy = policy
        self.tokenizer = policy.tokenizer
        self.stop_ids = tuple(stop_ids)
        self.rows = rows
        self.sample_rows = sample_rows
        self.seed = seed
        self.cut: collections.Counter[str] = collections.Counter()

    @property
    def eot_token_id(self) -> int | None:
        """End of sequence."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What an empty context becomes: the beginning of sequence, or else its end.

        Raises:
          ConfigError: the tokenizer has neither.
        """
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise ConfigError(
            'an empty context needs a beginning- or end-of-sequence token, and the '
            'tokenizer has neither'
        )

    @property
    def max_length(self) -> int:
        """Tokens that the model reads."""
        return self.policy.spec.max_positions

    @property
    def max_gen_toks(self) -> int:
        """Tokens of a response where a task does not say; the harness's own default."""
        return 256

    @property
    def tokenizer_name(self) -> str:
        """Digest of tokenizer and chat template, for the harness's cache of requests."""
        text = self.tokenizer.backend_tokenizer.to_str()
        text += json.dumps(self.tokenizer.chat_template)
        return f'epa_jax-{hashlib.sha256(text.encode()).hexdigest()[:16]}'

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Tokens of a text.

        Args:
          string: the text.
          add_special_tokens: None leaves it to the tokenizer, but for a text that begins
            with the beginning of sequence, as chat templates write it.
          **kwargs: what other models of the harness know; none is used.
        """
        prefix = str(self.tokenizer.decode([self.prefix_token_id]))
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(prefix)
        return list(
            self.tokenizer.encode(
                string, add_special_tokens=add_special_tokens, verbose=False
            )
        )

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Log-prob of continuations, nats, and whether greedy decoding gives them.

        Context and continuation meet where the harness says: the continuation's tokens
        are those of the whole text after as many as the context has by itself, a space at
        the context's end counting to the continuation.

        Args:
          requests: instances with `args` (context, continuation).
          disable_tqdm: whether to show no progress of tokenising.

        Raises:
          ScoreError: a context or continuation without tokens, or a continuation that is
            longer than the model reads.
        """
        for context, continuation in (request.args for request in requests):
            if not continuation:
                raise ScoreError(f'an empty continuation, after {context[-40:]!r}')
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        found = self._score(
            [self._fitted(key, given, scored) for key, given, scored in requests]
        )
        for (key, _, _), answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial('loglikelihood', key, answer)
        return found

    def _fitted(
        self, key: tuple[str, str], given: Sequence[int], scored: Sequence[int]
    ) -> Continuation:
        """The end of a context that fits; the last token is scored, but never read."""
        if not given or not scored or len(scored) > self.max_length:
            raise ScoreError(
                f'{key[1][:40]!r} after {key[0][-40:]!r}: {len(given)} tokens of context '
                f'and {len(scored)} to score; expected 1 or more of both, and at most '
                f'{self.max_length} to score, which is what the model reads'
            )
        room = self.max_length + 1 - len(scored)
        self.cut['loglikelihood'] += len(given) > room
        return Continuation(np.array(given[-room:], np.int32), np.array(scored, np.int32))

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[float]:
        """Log-prob of whole texts, nats.

        A text that is longer than the model reads goes in the harness's windows: each
        token is scored once, and those of the last window behind all that fits.

        Args:
          requests: instances with `args` (text,).
          disable_tqdm: there is no progress bar.
        """
        pairs, owners = [], []
        for i, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in windows:
                given, scored = make_disjoint_window(window)
                pairs.append(
                    Continuation(np.array(given, np.int32), np.array(scored, np.int32))
                )
                owners.append(i)
        out = [0.0] * len(requests)
        for i, (logp, _) in zip(owners, self._score(pairs), strict=True):
            out[i] += logp
        for request, total in zip(requests, out, strict=True):
            self.cache_hook.add_partial('loglikelihood_rolling', request.args, total)
        return out

    def _score(self, pairs: Sequence[Continuation]) -> list[tuple[float, bool]]:
        """Log-prob and greediness of each pair."""
        if not pairs:
            return []
        groups = share_contexts(pairs)
        # one more than the model reads: the state of the last token is not used
        spec = dataclasses.replace(self.policy.spec, max_positions=self.max_length + 1)
        found = score(
            self.policy.params,
            spec,
            self.policy.compute,
            [pairs[members[0]].context for members in groups],
            [[pairs[i].continuation for i in members] for members in groups],
            greedy=True,
            mesh=self.policy.mesh,
            rows=self.rows,
        )
        assert found.greedy is not None
        out = [(0.0, False)] * len(pairs)
        for logps, hits, members in zip(found.logps, found.greedy, groups, strict=True):
            for i, logp, hit in zip(members, logps, hits, strict=False):
                out[i] = (float(logp), bool(hit))
        return out

    def generate_until(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[str]:
        """Responses, greedy unless a task samples; what stops one is not part of it.

        Args:
          requests: instances with `args` (context, options); the options are until,
            max_gen_toks (or one of the harness's other names for it), do_sample,
            temperature, top_k, top_p and min_p. Copies of a sampled request get
            independent responses.
          disable_tqdm: there is no progress bar.

        Raises:
          ConfigError: another option, or no room for a context.
        """
        kinds: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            kind = json.dumps(request.args[1], sort_keys=True)
            kinds.setdefault(kind, []).append(i)
        out = [''] * len(requests)
        for members in kinds.values():
            contexts = [requests[i].args[0] for i in members]
            texts = self._respond(contexts, requests[members[0]].args[1])
            for i, text in zip(members, texts, strict=True):
                out[i] = text
                self.cache_hook.add_partial('generate_until', requests[i].args, text)
        return out

    def _respond(self, contexts: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        sampling, stops = self._sampling(options)
        room = self.max_length - sampling.max_new_tokens
        if room < 1:
            raise ConfigError(
                f'max_gen_toks={sampling.max_new_tokens}: the model reads '
                f'{self.max_length} tokens, which leaves no room for a context; lower it'
            )
        prompts = [self.tok_encode(text) or [self.prefix_token_id] for text in contexts]
        self.cut['generate_until'] += sum(len(ids) > room for ids in prompts)
        ids = [np.array(tokens[-room:], np.int32) for tokens in prompts]
        found = generation.sample(
            self.policy.params,
            self.policy.spec,
            self.policy.compute,
            ids,
            sampling,
            key=jax.random.key(self.seed),
            draws=generation.draws_of(ids),
            stop=stop_at(self.tokenizer, stops),
            mesh=self.policy.mesh,
            rows=self.sample_rows,
        )
        texts = [str(self.tokenizer.decode(x, skip_special_tokens=True)) for x in found]
        return [before(text, stops) for text in texts]

    def _sampling(self, options: Mapping[str, Any]) -> tuple[Sampling, list[str]]:
        """How to draw, and the texts that end a response."""
        known = dict(normalize_gen_kwargs(dict(options), self.max_gen_toks))
        stops = handle_stop_sequences(known.pop('until'), self.tokenizer.eos_token)
        stops = [text for text in stops if text]
        named = [special_token(self.tokenizer, text) for text in stops]
        size, draws = known.pop('max_gen_toks'), known.pop('do_sample')
        temperature = float(known.pop('temperature', 1.0)) if draws else 0.0
        known.pop('temperature', None)
        cut = {k: v for k in ('top_k', 'top_p', 'min_p') if (v := known.pop(k, None))}
        if any(value is not None for value in known.values()):
            raise ConfigError(
                f'generation_kwargs {", ".join(known)}: not supported; expected until, '
                'max_gen_toks, do_sample, temperature, top_k, top_p or min_p'
            )
        ends = [*self.stop_ids, *(token for token in named if token is not None)]
        return Sampling(size, tuple(dict.fromkeys(ends)), temperature, **cut), stops

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Messages as a text of the tokenizer's chat template.

        Args:
          chat_history: messages with role and content.
          add_generation_prompt: begin the response; else the last message is left open.

        Raises:
          ConfigError: no chat template, or one that refuses the messages.
        """
        if self.tokenizer.chat_template is None:
            raise ConfigError('the tokenizer has no chat template to apply')
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in chat_history],
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )
        except jinja2.TemplateError as error:
            roles = [message['role'] for message in chat_history]
            raise ConfigError(
                f'the chat template refuses messages of {", ".join(roles)}: {error}'
            ) from error
