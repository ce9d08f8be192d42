"""A pretrained LLaMA of children's stories, with a reward for what it writes."""

import dataclasses
import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from epa_jax.evals.generation import sample
from epa_jax.evals.sampling import Sampling
from epa_jax.evals.scoring import score
from epa_jax.formats.load import load_model
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.models.spec import ModelSpec
from epa_jax.models.transformer import Compute
from epa_jax.types import Params

OPENING, LENGTH = 12, 64
ROUNDS = 16  # of samples in search of different openings
COMPUTE = Compute()
Reward = Callable[[str], float]


@dataclasses.dataclass(frozen=True)
class Storyteller:
    """A pretrained model and what it can be asked for."""

    spec: ModelSpec
    params: Params
    tokenizer: PreTrainedTokenizerBase
    reward: Reward

    def continuations(
        self, params: Params, openings: Sequence[np.ndarray], each: int, key: jax.Array
    ) -> list[list[np.ndarray]]:
        """`each` samples of a policy after every opening."""
        flat = sample(
            params,
            self.spec,
            COMPUTE,
            [opening for opening in openings for _ in range(each)],
            Sampling(LENGTH, (self.tokenizer.eos_token_id,)),
            key=key,
        )
        return [flat[i : i + each] for i in range(0, len(flat), each)]

    def openings(self, count: int, key: jax.Array) -> list[np.ndarray]:
        """Different beginnings of stories, beginning of sequence included."""
        bos = np.array([self.tokenizer.bos_token_id], np.int32)
        found: dict[bytes, np.ndarray] = {}
        for part in jax.random.split(key, ROUNDS):
            drawn = sample(
                self.params,
                self.spec,
                COMPUTE,
                [bos] * count,
                Sampling(OPENING, (self.tokenizer.eos_token_id,)),
                key=part,
            )
            found |= {ids.tobytes(): ids for ids in drawn if len(ids) == OPENING}
            if len(found) >= count:
                return [np.concatenate([bos, ids]) for ids in list(found.values())[:count]]
        raise ValueError(
            f'{count * ROUNDS} samples have {len(found)} different openings; '
            f'expected {count}'
        )

    def rewards(self, answers: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        """True reward of every continuation, [N, K]."""
        texts = [
            [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in row]
            for row in answers
        ]
        return np.array([[self.reward(text) for text in row] for row in texts])

    def log_ratios(
        self,
        params: Params,
        openings: Sequence[np.ndarray],
        answers: list[list[np.ndarray]],
    ) -> np.ndarray:
        """log(policy / reference) of every continuation, [N, K]."""
        policy = score(params, self.spec, COMPUTE, openings, answers).logps
        return policy - self.logps(openings, answers)

    def logps(
        self, openings: Sequence[np.ndarray], answers: list[list[np.ndarray]]
    ) -> np.ndarray:
        """log(reference) of every continuation, [N, K]."""
        return score(self.params, self.spec, COMPUTE, openings, answers).logps


def vader() -> Reward:
    """Minus twice the compound score, from -2 (happy) to 2 (sad)."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        sys.exit(
            'the reward needs a lexicon: '
            'pip install -c constraints.txt vaderSentiment==3.3.2'
        )
    analyser = SentimentIntensityAnalyzer()
    return lambda text: -2 * analyser.polarity_scores(text)['compound']


def load_teller(folder: str, reward: Reward) -> Storyteller:
    """The model and tokenizer of a Hugging Face folder."""
    spec, params = load_model(folder, 'float32')
    return Storyteller(spec, params, load_tokenizer(folder), reward)
