"""Which checkpoint a training goes on from, and that it does not start over where one cannot be read."""

import re

import pytest
import torch

from mmext_backbones.engine.resume.position import find_checkpoint
from mmext_backbones.utils.errors import UserError


def save(folder, iteration, **more):
    path = folder / f'iter_{iteration}.pth'
    torch.save({'meta': {'iter': iteration}, 'state_dict': {}, 'optimizer': {}, **more}, path)
    (folder / 'last_checkpoint').write_text(str(path))
    return path


class Code:
    def __reduce__(self):
        return print, ('run',)


def test_nothing_there(tmp_path):
    said = []
    assert find_checkpoint(tmp_path, said.append) is None
    (tmp_path / 'iter_5.pth.partial').write_bytes(b'PK')  # killed before the first was whole
    assert find_checkpoint(tmp_path, said.append) is None
    torch.save({'state_dict': {}}, tmp_path / 'weights.pth')  # what a training may have begun with
    assert find_checkpoint(tmp_path, said.append) is None
    assert said == []


@pytest.mark.parametrize('noted', [True, False])
@pytest.mark.parametrize('damage', ['cut', 'empty', 'code'])
def test_none_that_can_be_read_is_an_error(tmp_path, damage, noted, capsys):
    paths = [save(tmp_path, 5), save(tmp_path, 10)]
    for path in paths:
        if damage == 'code':
            save(tmp_path, int(path.stem[5:]), extra=Code())
        else:
            path.write_bytes(path.read_bytes()[: 100 if damage == 'cut' else 0])
    if not noted:
        (tmp_path / 'last_checkpoint').unlink()
    before = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())
    said = []
    with pytest.raises(UserError) as caught:
        find_checkpoint(tmp_path, said.append)
    text = str(caught.value)
    assert 'iter_10.pth' in text
    # torch's own message leaves `builtins.` out
    assert re.search(r'is not read: it refers to (builtins\.)?print,' if damage == 'code' else 'cannot be read', text)
    assert 'iter_5.pth' in text
    assert 'cannot go on from any of them' in text
    assert '--work-dir' in text
    assert len(said) == noted
    assert capsys.readouterr().out == ''
    assert sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir()) == before

    whole = save(tmp_path, 3)
    (tmp_path / 'last_checkpoint').write_text(str(paths[1]))
    assert find_checkpoint(tmp_path, said.append) == str(whole)


def test_what_is_there_to_be_tested_does_not_hide_it(tmp_path):
    save(tmp_path, 10).write_bytes(b'')
    torch.save({'meta': {'iter': 8}, 'state_dict': {}}, tmp_path / 'best_iter_8.pth')
    with pytest.raises(UserError, match=r'iter_10\.pth cannot be read'):
        find_checkpoint(tmp_path, print)
