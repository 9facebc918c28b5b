"""Losses and gradients that are not finite: found, told, saved and replayed."""
