"""Adam on numbers whose gradient others compute. Pure tensor code: no models, no network."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_STATE = ("step", "exp_avg", "exp_avg_sq")


class Descent:
    """One Adam optimiser whose gradients come from elsewhere, one step at a time.

    It can be put down as tensors and taken up again: the next steps then have the same bits.

    Args:
        start: tensors to begin with; they are copied.
        rate: the learning rate.
    """

    def __init__(self, start: Sequence[Tensor], rate: float) -> None:
        self._values = [torch.nn.Parameter(tensor.clone()) for tensor in start]
        self._optimiser = torch.optim.Adam(self._values, lr=rate)

    @property
    def values(self) -> list[Tensor]:
        """Where the descent stands, in the order of the start."""
        return [value.detach() for value in self._values]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Go one step down, given the gradient by each of the values."""
        for value, gradient in zip(self._values, gradients, strict=True):
            value.grad = gradient.to(value)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)  # as large as the values: not kept in between

    def tensors(self) -> dict[str, Tensor]:
        """Values and optimiser state by name, to be kept."""
        saved: dict[str, Tensor] = {}
        for i, value in enumerate(self._values):
            saved[f"{i}/value"] = value.detach().clone()
            for name in _STATE:
                if value in self._optimiser.state:
                    saved[f"{i}/{name}"] = self._optimiser.state[value][name].clone()
        return saved

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`tensors` gave."""
        for i, value in enumerate(self._values):
            value.data = saved[f"{i}/value"].clone()
            state = {
                name: saved[f"{i}/{name}"].clone() for name in _STATE if f"{i}/{name}" in saved
            }
            if state:
                self._optimiser.state[value] = state
