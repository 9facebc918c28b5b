"""Damage inside checkpoints, which torch does not notice."""

import zipfile

import pytest
import torch

from mmext_backbones.utils.checksums import check_zip
from mmext_backbones.utils.errors import UserError


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save({'w': torch.randn(100, 100), 'meta': {'iter': 3}}, path)
    return path


def changed(path, start, content):
    data = bytearray(path.read_bytes())
    data[start : start + len(content)] = content
    path.write_bytes(data)


def test_whole(checkpoint):
    check_zip(checkpoint)
    check_zip(str(checkpoint))


@pytest.mark.parametrize('change', ['bit', 'zeros'])
def test_damage_inside_a_tensor(checkpoint, change):
    middle = checkpoint.stat().st_size // 2
    before = checkpoint.read_bytes()[middle]
    changed(checkpoint, middle, bytes([before ^ 0x40]) if change == 'bit' else bytes(512))
    torch.load(checkpoint)  # not noticed
    with pytest.raises(UserError, match=r"a\.pth is damaged: the checksum of its part 'a/data/0' is wrong"):
        check_zip(checkpoint)


def test_damage_at_every_place_of_the_table_of_contents(checkpoint):
    """Never another error than ours; bytes that matter to nobody may pass."""
    whole = checkpoint.read_bytes()
    table = whole.index(b'PK\x01\x02')
    caught = 0
    for start in range(table, len(whole), 3):
        changed(checkpoint, 0, whole)
        changed(checkpoint, start, bytes([whole[start] ^ 0xFF]))
        try:
            check_zip(checkpoint)
        except UserError:
            caught += 1
    assert caught > 50


def test_cut(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(UserError, match='its list of parts cannot be read'):
        check_zip(checkpoint)


def test_without_checksums(checkpoint):
    """As torch writes a checkpoint with set_crc32_options(False): zeros in the place of every checksum."""
    with zipfile.ZipFile(checkpoint) as parts:
        sums = [part.CRC.to_bytes(4, 'little') for part in parts.infolist()]
    data = checkpoint.read_bytes()
    for each in sums:
        data = data.replace(each, bytes(4))
    checkpoint.write_bytes(data)
    with zipfile.ZipFile(checkpoint) as parts:
        assert not any(part.CRC for part in parts.infolist())
    check_zip(checkpoint)


@pytest.mark.parametrize('content', [b'', b'PK', b'no zip file'])
def test_other_formats_are_left_alone(tmp_path, content):
    (tmp_path / 'a.pth').write_bytes(content)
    check_zip(tmp_path / 'a.pth')


def test_the_older_format_is_left_alone(tmp_path):
    torch.save({'w': torch.zeros(3)}, tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    check_zip(tmp_path / 'a.pth')


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        check_zip(tmp_path / 'a.pth')
