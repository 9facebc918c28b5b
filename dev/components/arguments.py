"""What metrics and hooks are given in their runs, and where they run."""

from .tasks import SEED, TASKS

__all__ = ['DEFAULTS', 'HOOKS', 'METRICS']

FILE = {'ann_file': '{root}/annotations.json'}
OUT = {'outfile_prefix': 'out/results'}
DUMP = {'out_file_path': 'out/all.pkl'}
HARD = {'occluded_ann': '{root}/some.pkl', 'separated_ann': '{root}/some.pkl'}
TWO_TASKS = {name: [{'type': 'mmpretrain.Accuracy'}] for name in ('one', 'two')}
# metric -> a task or a data set, and arguments; the others are of text and need none
METRICS: dict[str, tuple[str, dict]] = {
    'mmengine.DumpResults': ('detect', DUMP),
    'mmdet.CityScapesMetric': ('mmdet.CityscapesDataset', {**OUT, 'seg_prefix': '{root}'}),
    'mmdet.COCOCaptionMetric': ('caption', {'ann_file': '{root}/captions.json'}),
    'mmdet.CocoMetric': ('detect', {**FILE, **OUT, 'metric': ['bbox', 'segm', 'proposal'], 'classwise': True}),
    'mmdet.CocoOccludedSeparatedMetric': ('detect', {**FILE, **HARD}),
    'mmdet.CocoPanopticMetric': ('mmdet.CocoPanopticDataset', {**FILE, 'seg_prefix': '{root}/panoptic'}),
    'mmdet.CocoVideoMetric': ('track', FILE),
    'mmdet.CrowdHumanMetric': ('mmdet.CrowdHumanDataset', {'ann_file': '{root}/train.odgt'}),
    'mmdet.DODCocoMetric': ('mmdet.BaseDetDataset', {'ann_file': '{root}/coco.json'}),
    'mmdet.DumpDetResults': ('detect', DUMP),
    'mmdet.DumpODVGResults': ('mmdet.ODVGDataset', {'outfile_path': 'out/all.json', 'img_prefix': '{root}'}),
    'mmdet.DumpProposals': ('detect', {'output_dir': 'out', 'num_max_proposals': 2}),
    'mmdet.Flickr30kMetric': ('mmdet.Flickr30kDataset', {}),
    'mmdet.gRefCOCOMetric': ('mmdet.MDETRStyleRefCocoDataset', {'ann_file': '{root}/some.json'}),
    'mmdet.LVISMetric': ('detect', FILE),
    'mmdet.LVISFixedAPMetric': ('detect', FILE),
    'mmdet.MOTChallengeMetric': ('mmdet.MOTChallengeDataset', {}),
    'mmdet.OpenImagesMetric': ('mmdet.OpenImagesDataset', {}),
    'mmdet.OVCocoMetric': ('detect', FILE),
    'mmdet.RefExpMetric': ('mmdet.MDETRStyleRefCocoDataset', FILE),
    'mmdet.RefSegMetric': ('refer', {}),
    'mmdet.ReIDMetrics': ('embed', {'metric': ['mAP', 'CMC'], 'metric_options': {'rank_list': [1, 2], 'max_rank': 3}}),
    'mmdet.SemSegMetric': ('segment mmdet', {'iou_metrics': ['mIoU', 'mDice']}),
    'mmdet.VOCMetric': ('mmdet.VOCDataset', {'metric': 'mAP'}),
    'mmdet.YouTubeVISMetric': ('mmdet.YouTubeVISDataset', {}),
    'mmseg.CityscapesMetric': ('mmseg.CityscapesDataset', {'output_dir': 'out'}),
    'mmseg.DepthMetric': ('depth', {'output_dir': 'out'}),
    'mmseg.IoUMetric': ('segment', {'iou_metrics': ['mIoU', 'mDice', 'mFscore'], 'output_dir': 'out'}),
    'mmpretrain.Accuracy': ('classify', {'topk': (1, 2), 'thrs': (0.0, 0.5)}),
    'mmpretrain.ConfusionMatrix': ('classify', {}),
    'mmpretrain.SingleLabelMetric': ('classify', {'items': ('precision', 'support')}),
    'mmpretrain.ShapeBiasMetric': ('mmpretrain.ImageNet', {'csv_dir': 'out', 'model_name': 'toy'}),
    'mmpretrain.MultiLabelMetric': ('classify several', {'thr': 0.4}),
    'mmpretrain.AveragePrecision': ('classify several', {}),
    'mmpretrain.VOCMultiLabelMetric': ('mmpretrain.VOC', {'difficult_as_positive': True}),
    'mmpretrain.VOCAveragePrecision': ('mmpretrain.VOC', {}),
    'mmpretrain.MultiTasksMetric': ('classify tasks', {'task_metrics': TWO_TASKS}),
    'mmpretrain.RetrievalRecall': ('classify', {'topk': (1, 2)}),
    'mmpretrain.RetrievalAveragePrecision': ('classify', {'topk': 2}),
    'mmpretrain.ReportVQA': ('answer', {'file_path': 'out/answers.json'}),
    'mmpretrain.COCOCaption': ('answer', FILE),
    'mmpretrain.NocapsSave': ('answer', {'save_dir': 'out'}),
}
# the hooks that every run has: their places, and arguments
DEFAULTS: dict[str, tuple[str, dict]] = {
    'CheckpointHook': ('checkpoint', {'interval': 1, 'max_keep_ckpts': 1, 'save_best': 'digest', 'rule': 'greater'}),
    'DistSamplerSeedHook': ('sampler_seed', {}),
    'IterTimerHook': ('timer', {}),
    'LoggerHook': ('logger', {'interval': 2}),
    'ParamSchedulerHook': ('param_scheduler', {}),
    'RuntimeInfoHook': ('runtime_info', {}),
}
SEARCH = {'step': 0, 'max_step': 2, 'search_interval': 1, 'exp_rate': 0.5, 'init_alphas': 0.01, 'mmin': 1, 'mmax': 4,
          'num_branches': 2, 'skip_layer': []}  # fmt: skip
SWITCH = {
    'action_epoch': 2,
    'train_pipeline': [SEED, *TASKS['classify'].test],
    'loss': {'type': 'mmpretrain.PixelReconstructionLoss', 'criterion': 'L1'},
}
QUEUE = {'batch_size': 2, 'epoch_queue_starts': 1, 'feat_dim': 4, 'queue_length': 4, 'frozen_layers_cfg': {'head': 2}}
DRAW = {'draw': True, 'interval': 1, 'test_out_dir': 'drawn'}
# arguments of the other hooks; those left out need none
HOOKS: dict[str, dict] = {
    'mmengine.EMAHook': {'momentum': 0.1},
    'mmengine.EarlyStoppingHook': {'monitor': 'digest', 'rule': 'greater', 'patience': 1, 'min_delta': 100.0},
    'mmengine.EmptyCacheHook': {'after_epoch': True},
    'mmengine.PrepareTTAHook': {'tta_cfg': {'type': 'mmengine.SurveyTTA'}},
    'mmengine.ProfilerHook': {'profile_times': 1},
    'mmengine.RFSearchHook': {'mode': 'search', 'config': {'search': SEARCH, 'structure': {}}},
    'mmdet.CheckInvalidLossHook': {'interval': 1},
    'mmdet.DetVisualizationHook': DRAW,
    'mmdet.GroundingVisualizationHook': DRAW,
    'mmdet.MeanTeacherHook': {'momentum': 0.1},
    'mmdet.PipelineSwitchHook': {'switch_epoch': 1, 'switch_pipeline': [SEED, *TASKS['detect'].test]},
    'mmdet.TrackVisualizationHook': {'draw': True, 'frame_interval': 1, 'test_out_dir': 'drawn'},
    'mmdet.YOLOXModeSwitchHook': {'num_last_epochs': 1, 'skip_type_keys': ('Mosaic',)},
    'mmseg.SegVisualizationHook': {'draw': True, 'interval': 1},
    'mmpretrain.DenseCLHook': {'start_iters': 2},
    'mmpretrain.EMAHook': {'momentum': 0.1, 'evaluate_on_origin': True},
    'mmpretrain.PreciseBNHook': {'num_samples': 4},
    'mmpretrain.SimSiamHook': {'fix_pred_lr': True, 'lr': 0.01},
    'mmpretrain.SwAVHook': QUEUE,
    'mmpretrain.SwitchRecipeHook': {'schedule': [SWITCH]},
    'mmpretrain.VisualizationHook': {'enable': True, 'interval': 1, 'out_dir': 'drawn'},
    'mmpretrain.WarmupParamHook': {'param_name': 'loss_weight', 'module_name': 'head', 'warmup_epochs': 1},
}
