import gc

import pytest


@pytest.fixture(scope='module', autouse=True)
def _light_collections():
    """mmengine collects garbage twice for each data set that it serialises, among all that torch holds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
