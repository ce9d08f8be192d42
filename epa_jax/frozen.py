"""Parameters that a step reads and leaves as they are: a base model, a reference."""

import flax.struct

from epa_jax.models import lora
from epa_jax.types import Params


@flax.struct.dataclass
class Frozen:
    """What stands beside the trained parameters.

    Attributes:
      base: the model whose adapters are trained; None when a whole model is.
      reference: of a reference that runs in the step; None when it is the base.
      in_step: the reference runs in the step.
      scale: of the adapters.
    """

    base: Params | None = None
    reference: Params | None = None
    in_step: bool = flax.struct.field(pytree_node=False, default=False)
    scale: float = flax.struct.field(pytree_node=False, default=1.0)

    def policy(self, trained: Params) -> Params:
        """The parameters of the policy, which the functions of the model take."""
        return trained if self.base is None else lora.attach(self.base, trained, self.scale)

    def reference_params(self) -> Params | None:
        """Those of the reference that runs in the step; None without one."""
        if not self.in_step:
            return None
        return self.base if self.reference is None else self.reference


NOTHING = Frozen()
