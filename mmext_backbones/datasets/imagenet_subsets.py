"""ImageNet-A and ImageNet-R: images of 200 of ImageNet-1K's classes each.

Sources: Hendrycks et al., "Natural Adversarial Examples" (arXiv 1907.07174) and "The Many Faces of Robustness"
(arXiv 2006.16241).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset

from ..registry import DATASETS
from ..utils.errors import UserError

__all__ = ['SUBSETS', 'ImageNetSubset', 'subset_numbers']

IMAGES = ('.jpg', '.jpeg', '.png')
# The classes by their numbers in ImageNet-1K, which follow the order of the folders' names.
# fmt: off
IMAGENET_A = (
    6, 11, 13, 15, 17, 22, 23, 27, 30, 37, 39, 42, 47, 50, 57, 70, 71, 76, 79, 89, 90, 94, 96, 97, 99, 105, 107,
    108, 110, 113, 124, 125, 130, 132, 143, 144, 150, 151, 207, 234, 235, 254, 277, 283, 287, 291, 295, 298,
    301, 306, 307, 308, 309, 310, 311, 313, 314, 315, 317, 319, 323, 324, 326, 327, 330, 334, 335, 336, 347,
    361, 363, 372, 378, 386, 397, 400, 401, 402, 404, 407, 411, 416, 417, 420, 425, 428, 430, 437, 438, 445,
    456, 457, 461, 462, 470, 472, 483, 486, 488, 492, 496, 514, 516, 528, 530, 539, 542, 543, 549, 552, 557,
    561, 562, 569, 572, 573, 575, 579, 589, 606, 607, 609, 614, 626, 627, 640, 641, 642, 643, 658, 668, 677,
    682, 684, 687, 701, 704, 719, 736, 746, 749, 752, 758, 763, 765, 768, 773, 774, 776, 779, 780, 786, 792,
    797, 802, 803, 804, 813, 815, 820, 823, 831, 833, 835, 839, 845, 847, 850, 859, 862, 870, 879, 880, 888,
    890, 897, 900, 907, 913, 924, 932, 933, 934, 937, 943, 945, 947, 951, 954, 956, 957, 959, 971, 972, 980,
    981, 984, 986, 987, 988,
)
IMAGENET_R = (
    1, 2, 4, 6, 8, 9, 11, 13, 22, 23, 26, 29, 31, 39, 47, 63, 71, 76, 79, 84, 90, 94, 96, 97, 99, 100, 105, 107,
    113, 122, 125, 130, 132, 144, 145, 147, 148, 150, 151, 155, 160, 161, 162, 163, 171, 172, 178, 187, 195,
    199, 203, 207, 208, 219, 231, 232, 234, 235, 242, 245, 247, 250, 251, 254, 259, 260, 263, 265, 267, 269,
    276, 277, 281, 288, 289, 291, 292, 293, 296, 299, 301, 308, 309, 310, 311, 314, 315, 319, 323, 327, 330,
    334, 335, 337, 338, 340, 341, 344, 347, 353, 355, 361, 362, 365, 366, 367, 368, 372, 388, 390, 393, 397,
    401, 407, 413, 414, 425, 428, 430, 435, 437, 441, 447, 448, 457, 462, 463, 469, 470, 471, 472, 476, 483,
    487, 515, 546, 555, 558, 570, 579, 583, 587, 593, 594, 596, 609, 613, 617, 621, 629, 637, 657, 658, 701,
    717, 724, 763, 768, 774, 776, 779, 780, 787, 805, 812, 815, 820, 824, 833, 847, 852, 866, 875, 883, 889,
    895, 907, 928, 931, 932, 933, 934, 936, 937, 943, 945, 947, 948, 949, 951, 953, 954, 957, 963, 965, 967,
    980, 981, 983, 988,
)
# fmt: on
SUBSETS = {'imagenet_a': IMAGENET_A, 'imagenet_r': IMAGENET_R}


def subset_numbers(subset: str | Sequence[int]) -> list[int]:
    """The numbers of the classes of a subset, given by its name or as they are.

    Raises:
        UserError: for an unknown name, or numbers that are not in ascending order.
    """
    if isinstance(subset, str) and subset not in SUBSETS:
        raise UserError(f'subset={subset!r}: expected {" or ".join(map(repr, SUBSETS))}, or a list of numbers.')
    numbers = list(SUBSETS[subset] if isinstance(subset, str) else subset)
    if not numbers or numbers != sorted(set(numbers)):
        raise UserError(f'subset={numbers}: expected numbers of classes in ascending order, each once.')
    return numbers


@DATASETS.register_module()
class ImageNetSubset(BaseDataset):
    """Images of some of ImageNet-1K's classes, in a folder a class, with the labels that they have in ImageNet-1K.

    The folders have ImageNet's names (``n01498041``), whose order is that of the numbers.

    Args:
        data_root: The folder of the release, ``imagenet-a`` or ``imagenet-r``.
        subset: 'imagenet_a' or 'imagenet_r', or the numbers of the classes in ImageNet-1K.
        metainfo: Its `classes` are mmpretrain's names of ImageNet-1K's if it has none.
        **kwargs: Of mmengine's `BaseDataset`.

    Raises:
        UserError: when the data are read, if the number of folders is not that of the classes.
    """

    def __init__(
        self, data_root: str, subset: str | Sequence[int], metainfo: dict | None = None, **kwargs: Any
    ) -> None:
        from mmpretrain.datasets.categories import IMAGENET_CATEGORIES

        self.subset = subset_numbers(subset)
        super().__init__(data_root=data_root, metainfo={'classes': IMAGENET_CATEGORIES, **(metainfo or {})}, **kwargs)

    def load_data_list(self) -> list[dict]:
        """The path and the label of each image."""
        folders = sorted(path for path in Path(self.data_root).iterdir() if path.is_dir())
        if len(folders) != len(self.subset):
            raise UserError(
                f'{self.data_root} has {len(folders)} folders of classes, and {len(self.subset)} are expected: is the '
                'release unpacked there as a whole?'
            )
        return [
            {'img_path': str(path), 'gt_label': number}
            for folder, number in zip(folders, self.subset, strict=True)
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in IMAGES
        ]
