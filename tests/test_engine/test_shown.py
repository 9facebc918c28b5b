"""The names of the pictures of --show-dir."""

import os
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from mmext_backbones.config.editing import ConfigEditor
from mmext_backbones.engine.config_edits import PREDICTIONS_HOOK, use_hooks
from mmext_backbones.engine.evaluation.shown import ShownPictures
from mmext_backbones.utils.errors import UserError


class Data(list):
    """A data set that knows its images."""

    def get_data_info(self, index):
        return self[index]


def sample(path=None, number=None):
    return SimpleNamespace(img_path=path, img_id=number)


def made(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return [str(folder / name) for name in names]


def test_each_image_has_a_picture_of_its_own(tmp_path):
    paths = made(tmp_path / 'data', 'a/0.png', 'b/0.png', 'b/0.jpg', 'B/0.bmp', 'c/1.png')
    shown = ShownPictures(Data({'img_path': path} for path in paths), tmp_path / 'shown', Config())
    names = [shown(sample(path)).relative_to(tmp_path / 'shown').as_posix() for path in paths]
    assert names == ['a_0.png', 'b_0.png', 'b_0_2.png', 'B_0_3.png', '1.png']
    assert shown(sample(paths[2])).name == 'b_0_2.png'  # again


def test_one_folder_gives_plain_names(tmp_path):
    paths = made(tmp_path, 'x.jpg', 'y.v1.jpg')
    shown = ShownPictures(Data({'img_path': path} for path in paths), tmp_path / 'shown', Config())
    assert [shown(sample(path)).name for path in paths] == ['x.png', 'y.v1.png']


def test_images_without_a_file_of_their_own(tmp_path):
    archive = str(tmp_path / 'all.h5')
    shown = ShownPictures(Data([{'img_path': archive}, {'img_path': archive}, {}]), tmp_path, Config())
    names = [shown(sample(archive, 7)), shown(sample(archive, 8)), shown(sample(archive, 7)), shown(sample())]
    assert [path.name for path in names] == ['all_7.png', 'all_8.png', 'all_7.png', 'image_3.png']
    assert shown(sample()) != names[-1]
    silent = ShownPictures(object(), tmp_path, Config())  # a data set that cannot be asked
    assert [silent(sample(path)).name for path in ('a/x.png', 'b/x.jpg', 'a/x.png')] == ['x.png', 'x_2.png', 'x.png']


@pytest.mark.parametrize('key', ['img_path', 'seg_map_path'])
def test_files_of_the_data_are_never_replaced(key, tmp_path):
    (image,) = made(tmp_path, 'images/0.jpg')
    (given,) = made(tmp_path, 'maps/0.png')
    data = Data([{'img_path': image, key: given}])
    with pytest.raises(UserError, match=r'--show-dir .*maps: .*0\.png.* would be replaced'):
        ShownPictures(data, tmp_path / 'maps', Config())
    os.symlink(tmp_path / 'maps', tmp_path / 'link')
    with pytest.raises(UserError, match='would be replaced'):
        ShownPictures(data, tmp_path / 'link', Config())
    ShownPictures(data, tmp_path / 'elsewhere', Config())
    silent = ShownPictures(object(), tmp_path / 'maps', Config())
    with pytest.raises(UserError, match='would replace it'):
        silent(sample(given))


def test_the_hook_of_a_training_gets_the_folder_of_the_test():
    """The config that a training leaves has the hook already."""
    cfg = Config({'custom_hooks': [{'type': PREDICTIONS_HOOK, 'num_images': 3}, {'type': 'Other'}]})
    use_hooks(ConfigEditor(cfg), [{'type': PREDICTIONS_HOOK, 'show_dir': 'x'}, {'type': 'New'}])
    assert cfg.custom_hooks == [
        {'type': PREDICTIONS_HOOK, 'num_images': 3, 'show_dir': 'x'}, {'type': 'Other'}, {'type': 'New'},
    ]  # fmt: skip
