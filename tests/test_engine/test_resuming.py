"""Which checkpoint a training goes on from, and that it does not start over where one cannot be read."""

import re

import pytest
import torch
from mmengine.config import Config

from mmext_backbones.config.editing import ConfigEditor
from mmext_backbones.engine.config_edits import use_resume
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


@pytest.mark.parametrize('damage', ['bit', 'zeros'])
def test_damage_inside_a_tensor_is_noticed(tmp_path, damage):
    """torch reads such a file without a word."""
    whole, last = (save(tmp_path, number, weights=torch.randn(200, 200)) for number in (3, 6))
    content = bytearray(last.read_bytes())
    middle = len(content) // 2
    if damage == 'zeros':
        content[middle : middle + 64] = bytes(64)
    else:
        content[middle] ^= 1
    last.write_bytes(content)
    said = []
    assert find_checkpoint(tmp_path, said.append) == str(whole)
    assert 'iter_6.pth cannot be read: it is truncated or damaged, the checksum' in said[0]
    (tmp_path / 'last_checkpoint').unlink()
    assert find_checkpoint(tmp_path, said.append) == str(whole)
    whole.unlink()
    with pytest.raises(UserError, match='checksum'):
        find_checkpoint(tmp_path, said.append)
    cfg = Config({'work_dir': str(tmp_path)})
    with pytest.raises(UserError, match='checksum'):
        use_resume(ConfigEditor(cfg), str(last))


NOTES = (b'', b'\xff\xfe\x00', b'x' * 10**7, b'no/such/file.pth', b'two\nlines')


@pytest.mark.parametrize('content', NOTES, ids=range(len(NOTES)))
def test_a_damaged_note_of_the_last_checkpoint(content, tmp_path):
    path = save(tmp_path, 3)
    (tmp_path / 'last_checkpoint').write_bytes(content)
    assert find_checkpoint(tmp_path, print) == str(path)
    path.unlink()
    with pytest.raises(UserError, match=r'last_checkpoint|no such file'):
        find_checkpoint(tmp_path, print)


@pytest.mark.parametrize(
    'meta', [{'iter': 'x'}, {'iter': -1}, {'iter': True}, {'iter': 1e9}, {'iter': None}, 5, [], None]
)
def test_files_of_somebody_else_are_passed_over(meta, tmp_path):
    path = save(tmp_path, 3)
    (tmp_path / 'last_checkpoint').unlink()
    torch.save({'meta': meta, 'optimizer': {}}, tmp_path / 'other.pth')
    torch.save(torch.zeros(3), tmp_path / 'tensor.pth')
    assert find_checkpoint(tmp_path, print) == str(path)


def test_an_empty_folder_is_no_checkpoint(tmp_path):
    path, last = save(tmp_path, 3), save(tmp_path, 6)
    last.unlink()
    last.mkdir()
    assert find_checkpoint(tmp_path, print) == str(path)
    (last / 'mp_rank_00_model_states.pt').touch()  # DeepSpeed's are folders
    assert find_checkpoint(tmp_path, print) == str(last)
