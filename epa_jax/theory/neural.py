"""Worlds whose policies are LLaMAs: the whole response tree, by the code of training."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import numpy as np

from epa_jax.data import packing
from epa_jax.logprobs import response_table
from epa_jax.models import transformer
from epa_jax.models.spec import ModelSpec, plain_llama
from epa_jax.theory.worlds import World
from epa_jax.types import PackedBatch, Params, Role, TokenGroup

EOS = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
    """Every response to some prompts, packed as in training.

    Attributes:
      spec: architecture; its vocabulary is all there is.
      responses: M token sequences; see `response_tree`.
      batch: one row a prompt, with all M responses after it.
    """

    spec: ModelSpec
    responses: tuple[tuple[int, ...], ...]
    batch: PackedBatch

    def logps(self, params: Params) -> jax.Array:
        """Log pi(y|x) of all responses to all prompts: float32 [N, M]."""
        compute = transformer.Compute()
        return response_table(params, self.batch, spec=self.spec, compute=compute).logps


@functools.partial(jax.jit, static_argnums=0)
def logps(tree: Tree, params: Params) -> jax.Array:
    """`Tree.logps`, compiled once for each tree."""
    return tree.logps(params)


def response_tree(vocab: int, length: int) -> tuple[tuple[int, ...], ...]:
    """All responses of at most `length` tokens, shortest first.

    A response ends with its first EOS, or, without one, at `length` tokens; so their
    probabilities sum to 1 under every policy.
    """
    inner = range(1, vocab)
    ended = [
        (*tokens, EOS)
        for size in range(length)
        for tokens in itertools.product(inner, repeat=size)
    ]
    return (*ended, *itertools.product(inner, repeat=length))


def make_tree(spec: ModelSpec, prompts: Sequence[Sequence[int]], length: int) -> Tree:
    """The tree of all responses to these prompts.

    Args:
      spec: architecture.
      prompts: token sequences.
      length: of the longest responses, in tokens.
    """
    responses = response_tree(spec.vocab_size, length)
    roles = np.full(len(responses), Role.REJECTED, np.int8)
    roles[0] = Role.CHOSEN  # any: a group has one
    ratings = np.full(len(responses), np.nan, np.float32)
    ids = tuple(np.array(tokens, np.int32) for tokens in responses)
    groups = [
        TokenGroup(i, np.array(prompt, np.int32), ids, roles, ratings)
        for i, prompt in enumerate(prompts)
    ]
    size = max(group.num_tokens for group in groups)
    layout = packing.Layout(len(groups), size, 1, len(responses))
    (batch,) = packing.pack(groups, layout)
    order = np.argsort(batch.keys[:, 0])
    return Tree(spec, responses, jax.tree.map(lambda x: x[order], batch))


def small_spec(vocab: int, d_model: int = 32, n_layers: int = 2) -> ModelSpec:
    """A LLaMA that can be trained in seconds."""
    return plain_llama(
        vocab_size=vocab,
        d_model=d_model,
        d_ff=2 * d_model,
        n_layers=n_layers,
        n_heads=4,
        n_kv_heads=2,
        tie_embeddings=False,
        max_positions=64,
    )


def random_params(spec: ModelSpec, seed: int, scale: float = 6.0) -> Params:
    """Random parameters whose policies differ clearly between prompts."""
    params = transformer.init_params(spec, jax.random.key(seed))
    return jax.tree.map(lambda p: p * (scale if p.ndim > 1 else 1.0), params)


def neural_world(tree: Tree, ref_params: Params, beta: float, seed: int) -> World:
    """The reference of `ref_params` with normally distributed true rewards."""
    log_ref = np.asarray(logps(tree, ref_params), np.float64)
    log_ref -= np.log(np.exp(log_ref).sum(axis=1, keepdims=True))  # float32's last digits
    reward = np.random.default_rng(seed).normal(size=log_ref.shape)
    return World(log_ref, reward, beta)
