import pytest

from mmext_backbones.backbones import recomputation


@pytest.fixture(autouse=True)
def _recomputes(monkeypatch):
    """Small images recompute as large ones do: that is the form with a backward pass of its own."""
    monkeypatch.setattr(recomputation, 'ON_CPU', -1)
