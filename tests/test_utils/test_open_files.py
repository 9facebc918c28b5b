"""The limit of open files, which loader processes reach first."""

import errno

import pytest

from mmext_backbones.utils.explain import explain, ran_out


@pytest.mark.parametrize(
    'error',
    [
        OSError(errno.EMFILE, 'Too many open files'),
        RuntimeError('unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)'),
        RuntimeError('received 0 items of ancdata'),
    ],
)
def test_the_limit_is_named(error):
    assert ran_out(error) is None  # no memory is lacking
    assert 'ulimit -n' in explain(error)
    assert 'num_workers=0' in explain(error)


def test_no_other_error_is_taken_for_it():
    assert explain(ValueError('Too many open files')) is None
    assert explain(RuntimeError('another')) is None
