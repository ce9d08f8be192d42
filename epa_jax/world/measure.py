"""What a policy of the world is worth, against the true reward."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from epa_jax.evals.generation import sample
from epa_jax.evals.linearity import Linearity, linearity
from epa_jax.evals.sampling import Sampling
from epa_jax.evals.scoring import score
from epa_jax.models.spec import ModelSpec
from epa_jax.models.transformer import Compute
from epa_jax.types import Params
from epa_jax.world.language import Prompt, true_reward

MAX_NEW_TOKENS = 24  # the longest response of the language has 15
COMPUTE = Compute()


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over prompts and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, values_NS: np.ndarray) -> 'Estimate':
        """From S samples of each of N prompts; the prompts are the independent draws."""
        means = values_NS.mean(axis=1, dtype=np.float64)
        return cls(float(means.mean()), float(means.std(ddof=1) / len(means) ** 0.5))


@dataclasses.dataclass(frozen=True)
class Responses:
    """K responses to each of N prompts.

    Attributes:
      token_ids: N lists of K arrays, end of sequence included.
      rewards: float64 [N, K], their true rewards.
    """

    token_ids: list[list[np.ndarray]]
    rewards: np.ndarray


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was measured of one policy.

    Attributes:
      name: of the policy.
      accuracy: share of held-out pairs whose preferred response it ranks first.
      margin: mean r_theta of the preferred less that of the other.
      linearity: of r_theta against the true reward.
      kl: to the reference, nats.
      reward: true reward of fresh samples.
      r_theta: [N, K], of the responses that `linearity` is about.
    """

    name: str
    accuracy: float
    margin: float
    linearity: Linearity
    kl: Estimate
    reward: Estimate
    r_theta: np.ndarray


@dataclasses.dataclass(frozen=True)
class World:
    """The prompts to measure on, and how to reach the model.

    Attributes:
      prompts: held-out prompts.
      tokenizer: of the language.
      spec: architecture of all policies.
      seed: of all samples.
    """

    prompts: Sequence[Prompt]
    tokenizer: PreTrainedTokenizerBase
    spec: ModelSpec
    seed: int

    def prompt_ids(self) -> list[np.ndarray]:
        """The prompts as tokens, each with its <s>."""
        texts = [prompt.text for prompt in self.prompts]
        return [np.array(ids, np.int32) for ids in self.tokenizer(texts).input_ids]

    def text(self, token_ids: np.ndarray) -> str:
        """Words of a response."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))

    def sample(self, params: Params, each: int, stream: int) -> Responses:
        """`each` fresh responses to every prompt; other streams are independent."""
        ids = self.prompt_ids()
        flat = sample(
            params,
            self.spec,
            COMPUTE,
            [prompt for prompt in ids for _ in range(each)],
            Sampling(MAX_NEW_TOKENS, (self.tokenizer.eos_token_id,)),
            key=jax.random.fold_in(jax.random.key(self.seed), stream),
        )
        grouped = [flat[i * each : (i + 1) * each] for i in range(len(ids))]
        return self.with_rewards(grouped)

    def with_rewards(self, token_ids: list[list[np.ndarray]]) -> Responses:
        """Adds the true rewards."""
        rewards = [
            [true_reward(prompt, self.text(ids)) for ids in answers]
            for prompt, answers in zip(self.prompts, token_ids, strict=True)
        ]
        return Responses(token_ids, np.array(rewards))

    def logps(self, params: Params, responses: Responses) -> np.ndarray:
        """float32 [N, K], log-probs of the responses."""
        ids = self.prompt_ids()
        return score(params, self.spec, COMPUTE, ids, responses.token_ids).logps

    def with_off_topic(self, responses: Responses, count: int) -> Responses:
        """Adds to each prompt `count` responses to prompts of other topics."""
        rng = np.random.default_rng(self.seed)
        topics = np.array([prompt.topic for prompt in self.prompts])
        grouped = []
        for topic, own in zip(topics, responses.token_ids, strict=True):
            others = rng.choice(np.flatnonzero(topics != topic), count)
            foreign = [responses.token_ids[i][rng.integers(len(own))] for i in others]
            grouped.append([*own, *foreign])
        return self.with_rewards(grouped)


@dataclasses.dataclass(frozen=True)
class Judge:
    """Measures policies on the same responses.

    Attributes:
      world: prompts and model.
      ref_params: the reference.
      beta: inverse temperature of r_theta.
      each: fresh samples of a policy to every prompt.
      responses: on which r_theta is compared with the true reward.
    """

    world: World
    ref_params: Params
    beta: float
    each: int
    responses: Responses

    def outcome(self, name: str, params: Params, accuracy: float, margin: float) -> Outcome:
        """Everything about one policy; the held-out pairs were measured in training."""
        fresh = self.world.sample(params, self.each, stream=1)
        log_ratio = self._log_ratio(params, fresh)
        r_theta = self.beta * self._log_ratio(params, self.responses)
        return Outcome(
            name=name,
            accuracy=accuracy,
            margin=margin,
            linearity=linearity(r_theta, self.responses.rewards),
            kl=Estimate.of(log_ratio),
            reward=Estimate.of(fresh.rewards),
            r_theta=r_theta,
        )

    def _log_ratio(self, params: Params, responses: Responses) -> np.ndarray:
        policy = self.world.logps(params, responses)
        return policy - self.world.logps(self.ref_params, responses)


def best_of_n(rewards_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KL and reward of choosing the best of n = 1 .. K reference samples.

    A yardstick: what the true reward itself buys at a distance from the reference.

    Args:
      rewards_NK: true rewards of K independent reference samples to N prompts.

    Returns:
      log(n) - (n - 1) / n, an upper bound of the KL in nats (exact without ties); the
      mean of the largest of n, each over all choices of n of the K samples. Both [K].
    """
    count = rewards_NK.shape[1]
    n = np.arange(1, count + 1)
    ranked = np.sort(rewards_NK, axis=1)
    # with i smaller samples, one is the largest in C(i, n - 1) of the C(K, n) choices
    weights = [
        [math.comb(i, size - 1) / math.comb(count, size) for i in range(count)]
        for size in n.tolist()
    ]
    return np.log(n) - (n - 1) / n, (ranked @ np.array(weights).T).mean(axis=0)
