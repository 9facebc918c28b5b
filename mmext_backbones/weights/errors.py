"""The error of weights that cannot be used."""

from ..utils.errors import UserError

__all__ = ['WeightsError']


class WeightsError(UserError, ValueError):
    """Weights that do not belong to the model, or not all of them."""
