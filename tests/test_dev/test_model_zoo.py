"""The metafiles, the page made of them, and the configs they speak of."""

import re
import runpy
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / 'dev' / 'model_zoo.py'))
ENTRIES = TOOL['entries']()


def test_every_config_has_one_entry():
    names = [entry['Name'] for entry in ENTRIES]
    assert sorted(names) == sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
    for entry in ENTRIES:
        assert entry['Config'] == f'configs/{entry["Name"]}.py'


def test_collections_and_index_fit_together():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert sorted(index) == sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'configs' / 'metafiles').glob('*.yml'))
    for path in index:
        content = yaml.safe_load((ROOT / path).read_text())
        (collection,) = content['Collections']
        assert {model['In Collection'] for model in content['Models']} == {collection['Name']}
        assert (ROOT / collection['Code']['URL']).is_file()


def test_the_page_is_made_of_the_metafiles():
    assert (ROOT / 'docs' / 'model_zoo.md').read_text() == TOOL['page']()


def test_published_and_measured_figures_are_never_mixed():
    """A published figure has its source; a measured one says with which weights."""
    known = {'box AP', 'mask AP', 'mIoU', 'mIoU multi-scale + flip', 'top-1'}
    for entry in ENTRIES:
        published = entry.get('Published', {})
        assert not published or published['Source'].startswith('https://'), entry['Name']
        assert set(published) <= known | {'Source', 'Parameters (M)', 'FLOPs (G)'}, entry['Name']
        for result in entry['Results']:
            assert set(result) == {'Task', 'Dataset', 'Metrics', 'Weights'}, entry['Name']


@pytest.mark.parametrize('entry', [e for e in ENTRIES if 'Published' in e], ids=lambda entry: entry['Name'])
def test_costs_are_the_published_ones_or_explained(entry):
    published, counted = entry['Published'], entry['Metadata']
    if 'Parameters (M)' in published:
        assert counted['Parameters'] / 1e6 == pytest.approx(published['Parameters (M)'], abs=0.8)
    if 'FLOPs (G)' in published:
        difference = counted['FLOPs'] / 1e9 / published['FLOPs (G)'] - 1
        assert abs(difference) <= 0.03 or len(entry['FLOPs Note']) > 20


@pytest.mark.parametrize(
    'name',
    [
        'swin_t_maskrcnn_1x',
        'maxvit_t_in1k',
        pytest.param('elsa_swin_s_upernet_160k', marks=pytest.mark.slow),
        pytest.param('sequencer_l_in1k', marks=pytest.mark.slow),
    ],
)
def test_written_costs_are_those_of_the_model(name):
    (entry,) = [entry for entry in ENTRIES if entry['Name'] == name]
    pytest.importorskip(Config.fromfile(ROOT / entry['Config']).default_scope)
    assert TOOL['count'](entry) == entry['Metadata']


def test_links_of_the_page():
    text = (ROOT / 'docs' / 'model_zoo.md').read_text()
    links = [link for link in re.findall(r'\]\((.+?)\)', text) if '://' not in link]
    assert len(links) == len(ENTRIES)
    for link in links:
        assert (ROOT / 'docs' / link).is_file(), link
