"""The operators on boxes: against torchvision, and what they are in ONNX."""

import pytest
import torch
import torchvision
from torch import nn

from mmext_backbones.export.box_operators import ABSENT, nms_keep, roi_levels, top_k

SCALES = [0.25, 0.125, 0.0625]


def boxes(*shape, edge=60.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * edge
    return torch.cat((corner, corner + torch.rand(*shape, 2, generator=generator) * 30), dim=-1)


def scores(*shape, seed=1):
    """In steps, so that many are equal; every seventh row holds nothing."""
    found = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).mul(20).round() / 20
    found[..., ::7] = ABSENT
    return found


def rois(images=2):
    """Boxes of all sizes in two images, on levels that leave one empty where there are few."""
    found = torch.cat((boxes(30), boxes(9, edge=20.0) * 3))
    found[3] = torch.tensor([5.0, 5.0, 5.25, 5.5])
    found[4] = torch.tensor([-20.0, -10.0, 300.0, 90.0])  # over the edges of the map
    image = torch.arange(len(found)) % images
    return torch.cat((image[:, None].float(), found), dim=1), (torch.arange(len(found)) * 7) % len(SCALES)


def maps():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 4, 24 // 2**n, 33 // 2**n + 1, generator=generator) for n in range(len(SCALES))]


def test_suppression_by_group():
    b, s = boxes(4, 50), scores(4, 50)
    s[2] = ABSENT
    kept = nms_keep(b, s, 8, 0.5)
    for group in range(4):
        rows = (s[group] >= 0).nonzero()[:, 0]
        expected = rows[torchvision.ops.nms(b[group, rows], s[group, rows], 0.5)][:8]
        assert (kept[group] >= 0).nonzero()[:, 0].tolist() == sorted(expected.tolist())
        assert torch.equal(kept[group, expected], s[group, expected])
    assert (kept[2] == ABSENT).all()
    assert nms_keep(b[:0], s[:0], 8, 0.5).shape == (0, 50)


def test_the_first_of_equal_scores_is_best():
    values, rows = top_k(torch.tensor([[0.5, 1.0, 0.5, 1.0, 0.5]]), 4)
    assert rows.tolist() == [[1, 3, 0, 2]]
    assert values.tolist() == [[1.0, 1.0, 0.5, 0.5]]


def test_every_box_from_its_level():
    r, levels = rois()
    pooled = roi_levels(maps(), r, levels, SCALES, (7, 5), 0)
    for n, level in enumerate(levels):
        expected = torchvision.ops.roi_align(maps()[level], r[n : n + 1], (7, 5), SCALES[level], 0, aligned=True)
        assert torch.equal(pooled[n], expected[0])


@pytest.mark.parametrize('name', ['top_k', 'nms_keep', 'roi_levels'])
def test_shapes_without_data(name):
    arguments = {
        'top_k': (scores(2, 9), 4),
        'nms_keep': (boxes(2, 9), scores(2, 9), 3, 0.5),
        'roi_levels': (maps(), *rois(), SCALES, 7, 5, 0),
    }
    operator = getattr(torch.ops.mmext_backbones, name).default
    torch.library.opcheck(operator, arguments[name], test_utils=('test_schema', 'test_faketensor'))


class Everything(nn.Module):
    def forward(self, b, s, r, levels, first, second, third):
        few = r.clone(), torch.zeros_like(levels)
        return (
            *top_k(s, 6),
            nms_keep(b, s, 5, 0.5),
            roi_levels([first, second, third], r, levels, SCALES, (7, 5), 0),
            roi_levels([first, second, third], *few, SCALES, (7, 7), 2),
            roi_levels([second], *few, SCALES[1:2], (2, 2), 0),
        )


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    pytest.importorskip('onnxscript', reason='requirements/extras.txt is not installed')
    from mmext_backbones.export.translations import translation_table

    given = (boxes(4, 50), scores(4, 50), *rois(), *maps())
    auto = torch.export.Dim.AUTO
    axes = [{0: auto, 1: auto}, {0: auto, 1: auto}, {0: auto}, {0: auto}, *[{2: auto, 3: auto}] * 3]
    program = torch.export.export(Everything(), given, dynamic_shapes=tuple(axes), strict=False)
    file = torch.onnx.export(
        program, dynamo=True, opset_version=18, custom_translation_table=translation_table(), verbose=False
    )
    path = tmp_path_factory.mktemp('boxes') / 'net.onnx'
    file.save(str(path))
    return path


def in_onnxruntime(path):
    onnxruntime = pytest.importorskip('onnxruntime', reason='requirements/extras.txt is not installed')
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    names = [each.name for each in session.get_inputs()]
    return lambda *given: session.run(None, {name: x.numpy() for name, x in zip(names, given, strict=True)})


def in_openvino(path):
    openvino = pytest.importorskip('openvino', reason='requirements/extras.txt is not installed')
    compiled = openvino.Core().compile_model(str(path), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    return lambda *given: list(compiled([x.numpy() for x in given]).values())


@pytest.mark.parametrize('load', [in_onnxruntime, in_openvino])
def test_in_onnx(file, load):
    """Open in the number of groups, of rows and of boxes, and in the size of the maps."""
    run = load(file)
    given = (boxes(4, 50), scores(4, 50), *rois(), *maps())
    nothing = torch.full((3, 20), ABSENT)
    others = (boxes(3, 20), scores(3, 20), rois()[0][:5], torch.ones(5).long(), *(x[:, :, 1:] for x in maps()))
    none = (boxes(3, 20), nothing, rois()[0][:0], torch.zeros(0).long(), *maps())
    for arguments in (given, others, none):
        found, wanted = ([torch.as_tensor(out) for out in run(*arguments)], [*Everything()(*arguments)])
        if load is in_openvino:  # which of equal scores is first is left open there
            found[1], wanted[1] = arguments[1].gather(1, found[1]), wanted[0]
        for actual, expected in zip(found, wanted, strict=True):
            # the same sums; the interpolation in another order
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
