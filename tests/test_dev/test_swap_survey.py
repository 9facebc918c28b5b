"""dev/swap_survey.py: a sample of the zoo, and how results are judged, counted and kept."""

import copy
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

DEV = Path(__file__).parents[2] / 'dev'


def tool(name):
    spec = importlib.util.spec_from_file_location(name, DEV / f'{name}.py')
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


steps = tool('survey_steps')
survey = tool('swap_survey')

# a config for each kind of original backbone and of head, families in turn
SAMPLE = [
    ('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'loss'),
    ('mmdet', 'hrnet/fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco.py', 'loss'),
    ('mmdet', 'htc/htc_r50_fpn_1x_coco.py', 'loss'),
    ('mmdet', 'pvt/retinanet_pvtv2-b0_fpn_1x_coco.py', 'loss'),
    ('mmdet', 'res2net/cascade-rcnn_res2net-101_fpn_20e_coco.py', 'loss'),
    ('mmdet', 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', 'loss'),
    ('mmdet', 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', 'loss'),
    ('mmdet', 'solov2/solov2_x101-dcn_fpn_ms-3x_coco.py', 'loss'),
    ('mmdet', 'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py', 'loss of the detector'),
    ('mmdet', 'yolo/yolov3_d53_8xb8-320-273e_coco.py', 'refused: Darknet'),
    ('mmseg', 'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py', 'loss'),
    ('mmseg', 'convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py', 'loss'),
    ('mmseg', 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', 'loss'),
    ('mmseg', 'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py', 'loss'),
    ('mmseg', 'ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024.py', 'loss'),
    ('mmseg', 'setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512.py', 'refused: VisionTransformer'),
]
# of the sample, what runs with the tests of every day
EVERY_DAY = ('mask_rcnn/', 'hrnet/', 'pvt/', 'yolo/', 'segformer/', 'deeplabv3plus/', 'setr/')


@pytest.mark.parametrize(
    ('number', 'library', 'config', 'expected'),
    [
        pytest.param(i, *row, marks=[] if row[1].startswith(EVERY_DAY) else pytest.mark.slow)
        for i, row in enumerate(SAMPLE)
    ],
)
@pytest.mark.usefixtures('one_block_a_stage', 'maps_found_once')
def test_sample_of_the_zoo(number, library, config, expected):
    row, swapped = survey.prepare(library, config, survey.FAMILIES[number % len(survey.FAMILIES)])
    if expected.startswith('refused'):
        assert row['outcome'] == 'refused'
        assert expected.removeprefix('refused: ') in row['reason']
    else:
        assert swapped is not None, row
        end = swapped.run()
        assert (end['outcome'], end['level']) == ('ran', expected), end


def test_a_model_wired_to_other_channels_fails():
    cfg = steps.load('mmseg', 'fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py')
    broken = copy.deepcopy(cfg)
    broken.model.decode_head.in_channels = 511
    end = steps.Swapped(cfg, broken, 'mmseg').run()
    assert (end['outcome'], end['level']) == ('failed', 'loss')
    assert '511' in end['reason']


def test_what_the_original_cannot_do_is_not_asked_of_the_swapped():
    cfg = steps.load('mmseg', 'fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py')
    cfg.model.decode_head.loss_decode.type = 'NoSuchLoss'
    swapped = steps.Swapped(cfg, cfg, 'mmseg')
    end = swapped.run()
    assert (end['outcome'], end['level']) == ('ran', 'features')
    assert 'NoSuchLoss' in end['remark']
    cfg.model.backbone.type = 'NoSuchBackbone'
    assert swapped.run()['outcome'] == 'no reference'


def test_key_tells_models_apart_and_leaves_out_data():
    cfg = steps.load('mmseg', 'fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py')
    longer = steps.load('mmseg', 'fcn/fcn_r50-d8_4xb4-160k_ade20k-512x512.py')
    classes = steps.load('mmseg', 'fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py')
    keys = [steps.Swapped(c, c, 'mmseg').key for c in (cfg, longer, classes)]
    assert keys[0] == keys[1] != keys[2]


def test_configs_without_a_model_or_without_a_base_are_told_apart():
    assert survey.prepare('mmdet', 'common/ms_3x_coco.py', 'swin_t')[0]['outcome'] == 'no model'
    row, _ = survey.prepare('mmdet', 'sort/faster-rcnn_r50_fpn_8xb2-4e_mot17train_test-mot17train.py', 'swin_t')
    assert row['outcome'] == 'unreadable'
    assert 'does not exist' in row['reason']


def test_every_config_has_a_family_and_filters_do_not_change_it():
    tasks = survey.tasks_of(survey.LIBRARIES, survey.FAMILIES)
    assert len(tasks) == len({task[:2] for task in tasks})
    assert not any('_base_' in config for _, config, _ in tasks)
    shares = [sum(task[2] == family for task in tasks) / len(tasks) for family in survey.FAMILIES]
    assert all(abs(share - 1 / len(survey.FAMILIES)) < 0.01 for share in shares)
    some = survey.tasks_of(['mmseg'], survey.FAMILIES, only='upernet')
    assert some
    assert set(some) < set(tasks)
    assert survey.tasks_of(['mmseg'], survey.FAMILIES, only='swin/*') == [
        t for t in tasks if t[1].startswith('swin/') and t[0] == 'mmseg'
    ]
    everyone = survey.tasks_of(['mmseg'], survey.FAMILIES, every_family=True, only='upernet')
    assert len(everyone) == len(survey.FAMILIES) * len(some)


# --------------------------------------------------------------------------------------------------------------------
# Rows made by hand


def row(outcome, backbone='ResNet', levels=4, config='a.py', **more):
    known = {'library': 'mmdet', 'family': 'swin_t', 'model': 'RetinaNet', 'config': config}
    return {**known, 'backbone': backbone, 'levels': levels, 'outcome': outcome, **more}


def test_goal_counts_all_pyramids_and_nothing_else():
    rows = [row('ran', level='loss')] * 6 + [row('failed'), row('refused'), row('no reference')]
    rows += [row('ran', 'mmpretrain.ConvNeXt', level='loss')]
    elsewhere = [row('refused', 'Darknet'), row('refused', levels=1), row('no model'), row('unreadable')]
    assert '**70.0 %** (7 of 10): not met' in survey.goal(rows + elsewhere)
    assert '**100.0 %** (6 of 6): met' in survey.goal(rows[:6] + elsewhere)
    assert '**0.0 %** (0 of 0): not met' in survey.goal(elsewhere)


def test_page_counts_outcomes_and_groups_reasons():
    rows = [row('ran', level='loss', key='1'), row('ran', level='features', key='1'), row('failed', reason='a | b')]
    rows += [row('refused', 'Darknet', reason='why', config='y.py'), row('refused', 'Darknet', reason='why')]
    rows = [{**r, 'config': f'{i}.py'} for i, r in enumerate(rows)]
    text = survey.page(rows, expected=10)
    assert '**Not the whole zoo: 5 of 10 runs.**' in text
    assert '| mmdet | 2 | 2 | 1 | 0 | 0 | 0 | 5 |' in text
    assert '| ResNet | 2 | 0 | 1 | 0 | 3 |' in text
    assert '| Darknet | 0 | 2 | 0 | 0 | 2 |' in text
    assert '| **all** | 2 | 2 | 1 | 0 | 5 |' in text
    assert '| loss | 1 |' in text
    assert '| features | 1 |' in text
    assert '| 2 | why | `mmdet::3.py`, ... |' in text
    assert '| 1 | a \\| b | `mmdet::2.py` |' in text
    assert text.count('1 distinct models') == 1
    assert 'Not the whole zoo' not in survey.page(rows, expected=5)


def test_results_keep_the_last_row_of_a_config_and_name_a_bad_line(tmp_path):
    path = tmp_path / 'rows.jsonl'
    assert survey.read_rows(path) == []
    rows = [row('failed'), row('ran'), row('refused', config='b.py')]
    path.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    assert survey.read_rows(path) == rows[1:]
    path.write_text('{"library": 1}\n')
    with pytest.raises(survey.UserError, match='line 1'):
        survey.read_rows(path)


# --------------------------------------------------------------------------------------------------------------------
# Workers


def stubborn(connection):
    """Stands in for `survey.serve`: dies, sleeps or answers, as the config says."""
    while True:
        task, *args = connection.recv()
        if task == 'run':
            connection.send({'outcome': 'ran', 'level': 'loss', 'renew': False})
            continue
        library, config, family = args
        if config == 'dies':
            os._exit(3)
        if config == 'hangs':
            time.sleep(60)
        connection.send({'library': library, 'config': config, 'family': family, 'key': 'the same'})


def test_survey_survives_crashes_and_hangs_and_runs_a_model_once(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, 'serve', stubborn)
    monkeypatch.setattr(survey, 'START', 'fork')
    with open(tmp_path / 'rows.jsonl', 'w') as results:
        run = survey.Survey([], [], results, timeout=2)
        run.run([('mmdet', config, 'swin_t') for config in ('one', 'dies', 'two', 'hangs', 'three')], jobs=1)
    rows = {r['config']: r for r in survey.read_rows(tmp_path / 'rows.jsonl')}
    assert [rows[name]['outcome'] for name in ('one', 'two', 'three')] == ['ran'] * 3
    assert ['again' in rows[name] for name in ('one', 'two', 'three')] == [False, True, True]
    assert rows['dies']['reason'] == 'the process died with exit code 3'
    assert rows['hangs']['reason'] == 'not done after 2 s'
    assert {rows[name]['outcome'] for name in ('dies', 'hangs')} == {'failed'}


def test_errors_say_nothing_of_where_things_are_installed():
    error = FileNotFoundError('file "/home/me/lib/site-packages/mmdet/.mim/x.py"\ndoes not  exist')
    assert steps.one_line(error) == 'FileNotFoundError: file "mmdet/.mim/x.py" does not exist'
