"""The operators of mmcv that have no stand-in, who uses them, and the error of one that is called."""

from ..utils.errors import UserError

__all__ = ['COMPILE', 'MISSING', 'USERS', 'MissingOperatorError', 'missing_operator']

# `make env MMCV=compiled` does the same with the pinned stack
COMPILE = (
    'pip uninstall -y mmcv-lite && pip install "setuptools<82" wheel ninja && '
    'pip install --no-build-isolation --no-deps "mmcv==2.1.0"'
)

# What mmcv 2.1.0's own files ask `mmcv._ext` for (`load_ext` in mmcv/ops/*.py), and where those files are used. No
# config of mmdet 3.3.0, mmsegmentation 1.2.2 or mmpretrain 1.2.0 uses any of them.
MISSING = {
    'point clouds: mmdet3d': (
        *('assign_score_withk_forward', 'assign_score_withk_backward'),
        *('ball_query_forward', 'stack_ball_query_forward'),
        *('chamfer_distance_forward', 'chamfer_distance_backward', 'dynamic_point_to_voxel_forward'),
        *('dynamic_point_to_voxel_backward', 'dynamic_voxelize_forward', 'hard_voxelize_forward'),
        *('furthest_point_sampling_forward', 'furthest_point_sampling_with_dist_forward'),
        *('gather_points_forward', 'gather_points_backward', 'group_points_forward', 'group_points_backward'),
        *('stack_group_points_forward', 'stack_group_points_backward', 'iou3d_boxes_overlap_bev_forward'),
        *('iou3d_nms3d_forward', 'iou3d_nms3d_normal_forward', 'knn_forward', 'points_in_boxes_all_forward'),
        *('points_in_boxes_cpu_forward', 'points_in_boxes_part_forward', 'roiaware_pool3d_forward'),
        *('roiaware_pool3d_backward', 'roipoint_pool3d_forward', 'three_interpolate_forward'),
        *('three_interpolate_backward', 'three_nn_forward'),
    ),
    'sparse convolutions of point clouds: mmdet3d': (
        *('get_indice_pairs_2d_forward', 'get_indice_pairs_3d_forward', 'get_indice_pairs_4d_forward'),
        *('get_indice_pairs_2d_backward', 'get_indice_pairs_3d_backward', 'indice_conv_forward'),
        *('indice_conv_backward', 'fused_indice_conv_forward', 'indice_maxpool_forward', 'indice_maxpool_backward'),
    ),
    'rotated and four-cornered boxes: mmrotate': (
        *('active_rotated_filter_forward', 'active_rotated_filter_backward', 'box_iou_quadri', 'nms_quadri'),
        *('convex_iou', 'convex_giou', 'diff_iou_rotated_sort_vertices_forward', 'min_area_polygons'),
        *('points_in_polygons_forward', 'riroi_align_rotated_forward', 'riroi_align_rotated_backward'),
        *('rotated_feature_align_forward', 'rotated_feature_align_backward'),
    ),
    'text: mmocr': ('bezier_align_forward', 'bezier_align_backward', 'contour_expand', 'pixel_group'),
    'generative networks: mmagic': (
        'bias_act', 'filtered_lrelu', 'filtered_lrelu_act_', 'fused_bias_leakyrelu', 'upfirdn2d',
    ),
    'video and optical flow: mmaction2, mmflow': (
        'correlation_forward', 'correlation_backward', 'tin_shift_forward', 'tin_shift_backward',
    ),
    'nothing that OpenMMLab ships': (
        *('border_align_forward', 'border_align_backward'),
        *('prroi_pool_forward', 'prroi_pool_backward', 'prroi_pool_coor_backward'),
    ),
}  # fmt: skip
USERS = {operator: users for users, operators in MISSING.items() for operator in operators}


class MissingOperatorError(UserError, NotImplementedError):
    """A call of an operator of mmcv that has no stand-in here."""


def missing_operator(name: str) -> MissingOperatorError:
    """The error for a call of the operator `name`: what it is, which configs use it, what helps."""
    users = USERS.get(name, 'unknown to mmcv 2.1.0')
    return MissingOperatorError(
        f"mmcv's operator {name!r} was called, and it needs mmcv compiled: of mmcv's operators this package has those "
        'that the configs of mmdet 3.3.0, mmsegmentation 1.2.2 and mmpretrain 1.2.0 use, and they do not use this one. '
        f'It is for: {users}.\n'
        f'To compile mmcv, with a C++ compiler, and torch 2.13 or older: {COMPILE}\n'
        'python -m mmext_backbones.mmcv_ops lists what there is.'
    )
