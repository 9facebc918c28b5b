"""Published ImageNet classifiers -> state dicts of our classification configs, head and all."""

from collections.abc import Mapping

from torch import Tensor

from .errors import WeightsError
from .fitting import Report, fit, is_classifier
from .layouts import OWN, find_layout, strip_prefix
from .rules import Rule, convert

# What stands beside the stages: the last norm, which a dense backbone does without, and the head.
_AFTER_NORM = (  # norm of the last map (ours: the backbone's output norm), mean, linear
    Rule(r'norm\.(weight|bias)', r'backbone.norm3.\1'),
    Rule(r'head\.(?:fc\.)?(weight|bias)', r'head.fc.\1'),
)
HEADS: Mapping[str, tuple[Rule, ...]] = {
    'SwinTransformer': _AFTER_NORM,
    'ELSASwin': _AFTER_NORM,
    'MaxViT': (
        Rule(r'head\.norm\.(.*)', r'head.norm.\1'),
        Rule(r'head\.pre_logits\.fc\.(.*)', r'head.hidden.\1'),
        Rule(r'head\.fc\.(.*)', r'head.fc.\1'),
    ),
    'Sequencer2D': (
        Rule(r'norm\.(weight|bias)', r'head.norm.\1'),
        Rule(r'head\.(?:fc\.)?(weight|bias)', r'head.fc.\1'),
    ),
    'VOLO': (
        Rule('cls_token', 'head.cls_token'),
        Rule(r'post_network\.(.*)', r'head.blocks.\1'),
        Rule(r'norm\.(weight|bias)', r'head.norm.\1'),
        Rule(r'head\.(weight|bias)', r'head.fc.\1'),
        Rule(r'aux_head\.(weight|bias)', r'head.aux_fc.\1'),
    ),
}


def fit_classifier(
    state_dict: Mapping[str, Tensor], wanted: Mapping[str, Tensor], family: str | None, source: str
) -> tuple[dict[str, Tensor], Report] | None:
    """Convert a published classifier to the keys of one of ours.

    Args:
        state_dict: Tensors of any layout of the family.
        wanted: The state dict of the classifier: `backbone.*` and `head.*`.
        family: A key of `weights.layouts.FAMILIES`, or None.
        source: Where the tensors came from, for messages.

    Returns:
        The tensors by the classifier's names, and the report; None where there is nothing to convert: the file is in
        our layout, already has a `backbone.`, or is of no known layout.

    Raises:
        WeightsError: if head or backbone do not fit, or a tensor is missing.
    """
    found = find_layout(state_dict, family) if family in HEADS else None
    if found is None or found[0].name == OWN or found[1].endswith('backbone.'):
        return None
    backbone = {key[len('backbone.') :]: value for key, value in wanted.items() if key.startswith('backbone.')}
    tensors, report = fit(state_dict, backbone, family, source)
    mine = strip_prefix(state_dict, found[1])
    rest = {key: value for key, value in mine.items() if is_classifier(key)}
    tensors = {f'backbone.{key}': value for key, value in tensors.items()}
    report.ignored = [key for key in report.ignored if key.removeprefix(found[1]) not in rest]
    try:
        head = convert(rest, HEADS[family])
    except ValueError as error:
        raise WeightsError(f'{source}: {error}') from error
    for key, tensor in head.items():
        if key in wanted and wanted[key].shape == tensor.shape:
            tensors[key] = tensor
            report.loaded.append(key)
        else:
            had, wants = tuple(tensor.shape), tuple(wanted[key].shape) if key in wanted else ()
            report.wrong_shape[key] = (had, wants)
    report.fresh = [key for key in report.fresh if f'backbone.{key}' not in tensors and 'num_batches' in key]
    lacking = [key for key in wanted if key not in tensors and not key.endswith('num_batches_tracked')]
    report.missing = [key for key in lacking if key not in report.wrong_shape]
    if not report.complete:
        raise WeightsError(f'{source} does not fit this classifier\n{report}')
    return tensors, report
