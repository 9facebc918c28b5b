"""Pictures of predictions: labels apart from each other, a legend of what is there, one size for a video."""

import numpy as np
import pytest
from PIL import Image

from mmext_backbones.drawing import legend
from mmext_backbones.drawing.files import write_label_map, write_picture
from mmext_backbones.drawing.labels import place_labels, shorten_text, text_colour, the_font
from mmext_backbones.inference import Prediction
from mmext_backbones.inference.prediction import colours_of
from mmext_backbones.utils.errors import UserError

CLASSES = ('cat', 'dog', 'a name that is far too long for any panel at the side of a picture')
PALETTE = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


def detection(size=(600, 800), boxes=((100, 100, 300, 250),), scores=(0.9,), labels=(0,), masks=None):
    return Prediction(
        'detection',
        size,
        CLASSES,
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        scores=np.array(scores, dtype=np.float32),
        labels=np.array(labels, dtype=np.int64),
        masks=masks,
        image=np.full((*size, 3), 128, dtype=np.uint8),
        palette=PALETTE,
    )


def segmentation(labels, classes=CLASSES, palette=PALETTE):
    image = np.full((*labels.shape, 3), 128, dtype=np.uint8)
    return Prediction('segmentation', labels.shape, classes, segmentation=labels, image=image, palette=palette)


def overlap(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


# --------------------------------------------------------------------------------------------------------------------
# Labels


def test_labels_of_boxes_in_a_heap_do_not_cover_each_other():
    rng = np.random.default_rng(0)
    corners = rng.uniform(100, 400, (12, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(20, 150, (12, 2))], axis=1)
    boxes = np.concatenate([boxes, boxes[:3]])  # the same boxes once more
    sizes = [(80, 18)] * len(boxes)
    places = [(x, y, x + 80, y + 18) for x, y in place_labels(boxes, sizes, (600, 600))]
    assert sum(overlap(a, b) for i, a in enumerate(places) for b in places[:i]) == 0
    for (x1, y1, x2, y2), (left, top, right, low) in zip(boxes, places, strict=True):
        assert left <= x2 and right >= x1 and top <= y2 + 18 * 8 and low >= y1 - 18 * 8  # noqa: PT018 - near its box


def test_labels_stay_on_the_picture():
    boxes = [[-20, -20, 5, 5], [595, 395, 640, 420], [300, 0, 310, 400], [0, 200, 600, 210]]
    for x, y in place_labels(np.array(boxes), [(90, 20)] * 4, (400, 600)):
        assert 0 <= x <= 510
        assert 0 <= y <= 380


def test_a_lone_label_stands_on_its_box():
    assert place_labels(np.array([[50.2, 60.4, 90, 90]]), [(30, 12)], (200, 200)) == [(50, 48)]


def test_texts():
    font = the_font(20)
    assert shorten_text('short', 500, font) == 'short'
    cut = shorten_text('a rather long text', 80, font)
    assert cut.endswith('…')
    assert font.getlength(cut) <= 80
    assert text_colour((255, 255, 0)) == (0, 0, 0)
    assert text_colour((0, 0, 120)) == (255, 255, 255)


# --------------------------------------------------------------------------------------------------------------------
# Detections


def test_box_mask_and_label_are_there():
    masks = np.zeros((1, 600, 800), dtype=bool)
    masks[0, 120:220, 150:280] = True
    drawn = detection(masks=masks).drawn()
    assert drawn.shape == (600, 800, 3)
    assert drawn.dtype == np.uint8
    assert drawn[180, 100].tolist() == [200, 0, 0]  # the edge of the box
    assert drawn[120, 200].tolist() == [200, 0, 0]  # the outline of the mask
    assert drawn[170, 200].tolist() == [160, 70, 70]  # inside: 0.55 of the grey and 0.45 of the red
    assert drawn[240, 200].tolist() == [128, 128, 128]
    assert (drawn[80:100, 100:130] == [200, 0, 0]).all(-1).any()  # the label above


def test_the_threshold():
    both = detection(boxes=[[100, 100, 200, 200], [300, 300, 500, 500]], scores=[0.9, 0.2], labels=[0, 1])
    assert (both.drawn(0.1) == PALETTE[1]).all(-1).any()
    assert not (both.drawn(0.3) == PALETTE[1]).all(-1).any()
    np.testing.assert_array_equal(both.drawn(0.95), both.image)


def test_masks_in_a_heap_do_not_hide_the_picture():
    masks = np.ones((5, 600, 800), dtype=bool)
    boxes = [[0, 0, 800, 600]] * 5
    drawn = detection(boxes=boxes, scores=[0.9, 0.8, 0.7, 0.6, 0.5], labels=[0, 1, 1, 1, 1], masks=masks).drawn()
    assert drawn[300, 400].tolist() == [160, 70, 70]


@pytest.mark.parametrize(('size', 'drawn'), [((64, 64), (512, 512)), ((10, 300), (20, 600)), ((480, 32), (480, 32))])
def test_small_pictures_are_enlarged(size, drawn):
    prediction = detection(size, boxes=[[2, 2, 9, 9]])
    assert prediction.drawn().shape[:2] == drawn
    assert not np.array_equal(prediction.drawn(), prediction.drawn(1.0))


def test_boxes_over_the_edge_and_without_area():
    boxes = [[-50, -50, 20, 20], [700, 500, 900, 700], [400, 300, 400, 300], [-90, -90, -50, -50], [900, 10, 950, 90]]
    drawn = detection(boxes=boxes, scores=[0.9] * 5, labels=[0, 1, 2, 0, 1]).drawn()
    assert drawn.shape == (600, 800, 3)


def test_letters_grow_with_the_picture():
    def label_height(size):
        drawn = detection(size, boxes=[[size[1] // 2, size[0] // 2, size[1] * 0.9, size[0] * 0.9]]).drawn()
        above = (drawn[: size[0] // 2, size[1] // 2 + 1] == PALETTE[0]).all(-1)
        return int(above.sum())

    assert label_height((600, 800)) < 25
    assert label_height((3000, 4000)) > 80


# --------------------------------------------------------------------------------------------------------------------
# Segments and classes


def test_segments_and_their_legend():
    labels = np.zeros((600, 800), dtype=np.int32)
    labels[:, 400:] = 1
    drawn = segmentation(labels).drawn()
    assert drawn.shape[0] == 600
    assert drawn.shape[1] > 900
    assert drawn[300, 100].tolist() == [168, 58, 58]  # 0.45 of the grey and 0.55 of the red
    assert drawn[300, 600].tolist() == [58, 168, 58]
    legend = drawn[:, 800:]
    shown = [bool((legend == colour).all(-1).any()) for colour in PALETTE]
    assert shown == [True, True, False]  # the classes that are there


def test_frames_of_a_video_have_one_size():
    """Whatever is on them."""
    one = np.zeros((50, 900), dtype=np.int32)
    many = (np.arange(50 * 900).reshape(50, 900) % 30).astype(np.int32)
    classes = tuple(f'class number {i}' for i in range(30))
    first, second = (segmentation(labels, classes, ()).drawn() for labels in (one, many))
    assert first.shape == second.shape
    assert not np.array_equal(first, second)


def test_labels_without_a_class_and_classes_of_one_name():
    labels = np.array([[0, 0, 255, 1]] * 4, dtype=np.int32)
    prediction = segmentation(labels, ('a', 'a'), PALETTE[:2])
    assert prediction.shares() == {'a': 0.75, 'class 255': 0.25}
    drawn = prediction.drawn()
    assert drawn[200, 300].tolist() == [128, 128, 128]  # as it was


def test_classes_of_a_picture():
    prediction = Prediction(
        'classification',
        (600, 800),
        CLASSES,
        scores=np.array([0.75, 0.25], np.float32),
        labels=np.array([1, 0]),
        image=np.full((600, 800, 3), 128, np.uint8),
    )
    assert prediction.summary() == 'dog 0.75, cat 0.25'
    drawn = prediction.drawn()
    np.testing.assert_array_equal(drawn[:, :800], prediction.image)
    assert (drawn[:60, 800:] > 200).all(-1).any()  # text


def test_colours_differ_without_a_palette():
    colours = colours_of(segmentation(np.zeros((4, 4), np.int32), tuple('abcdefghijklmnopqrst'), ()))
    assert len({tuple(colour) for colour in colours.tolist()}) == 20


def test_without_the_picture():
    prediction = detection()
    prediction.image = None
    with pytest.raises(ValueError, match='no image to draw on'):
        prediction.drawn()


# --------------------------------------------------------------------------------------------------------------------
# Files


def test_a_drawing_is_written_whole(tmp_path):
    prediction = detection()
    prediction.draw(tmp_path / 'new' / 'out.png', threshold=0.5)
    with Image.open(tmp_path / 'new' / 'out.png') as image:
        np.testing.assert_array_equal(np.asarray(image), prediction.drawn(0.5))
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['out.png']
    with pytest.raises(UserError, match='its suffix names no format'):
        write_picture(tmp_path / 'out.xyz', prediction.drawn())


@pytest.mark.parametrize('top', [4, 255, 256, 999])
def test_label_maps_keep_the_labels(top, tmp_path):
    labels = np.array([[0, 1], [3, top]], dtype=np.int32)
    palette = np.random.default_rng(0).integers(0, 256, (1000, 3), dtype=np.uint8)
    write_label_map(tmp_path / 'map.png', labels, palette)
    with Image.open(tmp_path / 'map.png') as image:
        np.testing.assert_array_equal(np.asarray(image), labels)
        assert image.mode == ('P' if top < 256 else 'I;16')
        if top < 256:
            np.testing.assert_array_equal(np.asarray(image.convert('RGB'))[1, 0], palette[3])


@pytest.mark.parametrize('font_size', [13, 21, 29])
def test_the_longest_name_of_a_legend_is_whole(font_size, monkeypatch):
    """The panel is as wide as the names are, also where that is no whole number of pixels."""
    drawn = []
    monkeypatch.setattr(legend, 'shorten_text', lambda *args: drawn.append(shorten_text(*args)) or drawn[-1])
    classes = ('background', 'road', 'a building')
    labels = np.repeat([[0, 1, 2]], 40, axis=0)
    colours = np.zeros((3, 3), np.uint8)
    legend.draw_segments(np.zeros((40, 3, 3), np.uint8), labels, classes, colours, font_size, classes.__getitem__)
    assert sorted(drawn) == sorted(classes)
