"""Predicts many pictures or videos, and writes a folder of results: behind tools/infer.py."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..utils.cli import check_threshold
from ..utils.console import say, silence_libraries
from ..utils.errors import UserError
from ..utils.printable import one_line, printable
from ..utils.words import plural
from .images import ImageError
from .predictor import Predictor, UnpredictedError
from .results import Results
from .sources import Source, find_images, find_videos, read_names
from .video import VideoFile, VideoOutput

__all__ = ['infer']

TOLD = 20  # pictures with a line on the screen


def infer(
    config: str,
    weights: str,
    inputs: Sequence[str],
    *,
    out: str | None = None,
    video: bool = False,
    device: str | None = None,
    tta: bool = False,
    threshold: float = 0.3,
    pictures: bool = True,
    overwrite: bool = False,
    shapes: bool = False,
    options: Mapping[str, Any] | None = None,
    batch_size: int = 1,
    only: Sequence[str] | None = None,
    save_crop: bool = False,
    runtime: str = 'torch',
) -> int:
    """Predicts pictures or videos and leaves a folder of results, see `results`.

    Args:
        config: As for `Predictor`.
        weights: As for `Predictor`.
        inputs: Files, folders and patterns, with `video` video files; ``-`` for names on the standard input.
        out: The folder; ``predictions/<config>`` when None.
        video: Whether the files are videos.
        device: As for `Predictor`.
        tta: As for `Predictor`.
        threshold: Detections below this score are not drawn; the JSON files have all.
        pictures: Draw.
        overwrite: Replace the results of another run in the folder. Those of an equal one are replaced anyway.
        shapes: As for `Predictor`.
        options: As for `Predictor`.
        batch_size: Pictures that are predicted at once, see `Predictor.predict`.
        only: As for `Predictor`.
        save_crop: Also write the box of each object, cut out.
        runtime: As for `Predictor`.

    Returns:
        The exit code: 1 if a file could not be read, else 0.

    Raises:
        UserError: if something that was asked for cannot be done.
    """
    check_threshold(threshold)
    if batch_size < 1:
        raise UserError(f'--batch-size {batch_size}: expected 1 or more.')
    silence_libraries()
    inputs = read_names(inputs, sys.stdin)
    folder = Path(out if out is not None else Path('predictions') / Path(config.rpartition('::')[2]).stem)
    sources = find_videos(inputs) if video else find_images(inputs, without=folder)
    run = {
        'config': config,
        'weights': weights,
        'options': dict(options or {}),
        'shapes': shapes,
        'tta': tta,
        'video': video,
        'only': None if only is None else list(only),
        'threshold': threshold,
        'runtime': runtime,
        'sources': [str(source.path) for source in sources],
    }
    names = [f'videos/{source.name}.mp4' if video else f'pictures/{_picture(source)}' for source in sources]
    results = Results(folder, run, names, overwrite=overwrite)
    predictor = Predictor(config, weights, device, tta, shapes=shapes, options=options, only=only, runtime=runtime)
    if save_crop and predictor.task != 'detection':
        raise UserError(f'--save-crop cuts out the boxes of a detector, and this model is for {predictor.task}.')
    views = ', several views of each' if predictor.tta else ''
    what = plural(len(sources), 'video' if video else 'picture')
    place = f'on {predictor.device}' if runtime == 'torch' else f'by {runtime}'
    say(f'{predictor.name}: {predictor.task} of {what} {place}{views}')
    if results.replaces:
        say(f'Results in {folder} are replaced.')

    failed: dict[str, ImageError] = {}
    seconds: list[float] = []
    finished = False
    try:
        with _bar() as bar:
            work = _predict_videos if video else _predict_pictures
            settings = {'threshold': threshold, 'pictures': pictures, 'batch_size': batch_size, 'crops': save_crop}
            work(predictor, sources, results, bar, failed, seconds, **settings)
        if failed and not results.images:
            _raise_bug(failed)
        finished = True
    finally:  # after Ctrl-C, too: what was predicted is not lost
        mean = sum(seconds) / len(seconds) if seconds else None
        told = {name: str(error) for name, error in failed.items()}
        results.write(predictor.classes, predictor.task, finished=finished, failed=told, mean_seconds=mean)
        predicted = plural(len(results.images), 'frame' if video else 'picture')
        say(f'{predicted} in {folder}' + (f', {mean:.2f} s each' if mean is not None else ''))
        if failed:
            say(f'{len(failed)} of {len(sources)} files could not be read; {folder / "run.json"} lists them.')
    return 1 if failed else 0


def _bar() -> Progress:
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def _picture(source: Source) -> str:
    """The name of the drawn picture: a photograph stays a JPEG."""
    return source.name + ('.jpg' if source.path.suffix.lower() in ('.jpg', '.jpeg') else '.png')


def _predict_pictures(
    predictor: Predictor,
    sources: Sequence[Source],
    results: Results,
    bar: Progress,
    failed: dict[str, ImageError],
    seconds: list[float],
    *,
    threshold: float,
    pictures: bool,
    batch_size: int,
    crops: bool,
) -> None:
    task = bar.add_task('pictures', total=len(sources))
    predictions = predictor.stream_readable((source.path for source in sources), batch_size)
    for source, prediction in zip(sources, predictions, strict=True):
        if isinstance(prediction, ImageError):
            _tell_failure(bar, source, prediction, failed)
        else:
            seconds.append(prediction.seconds)
            results.add(prediction, str(source.path))
            if pictures:
                try:
                    results.draw(prediction, _picture(source), threshold)
                except UserError as error:  # too large for its format
                    _tell_failure(bar, source, ImageError(str(error)), failed)
            if crops:
                results.write_crops(prediction, source.name, Path(_picture(source)).suffix, threshold)
            if predictor.task == 'segmentation':
                results.write_segments(prediction, f'{source.name}.png')
            if len(seconds) <= TOLD:
                bar.console.print(f'{one_line(source.path)}: {prediction.summary(threshold)}', **_PLAIN)
            elif len(seconds) == TOLD + 1:
                bar.console.print('... and so on', **_PLAIN)
        bar.advance(task)


def _predict_videos(
    predictor: Predictor,
    sources: Sequence[Source],
    results: Results,
    bar: Progress,
    failed: dict[str, ImageError],
    seconds: list[float],
    *,
    threshold: float,
    pictures: bool,
    batch_size: int,
    crops: bool,
) -> None:
    for source in sources:
        try:
            video = VideoFile(source.path)
        except ImageError as error:
            _tell_failure(bar, source, error, failed)
            continue
        task = bar.add_task(escape(one_line(source.path.name)), total=video.num_frames or None)
        output = VideoOutput(results.folder / 'videos' / f'{source.name}.mp4', video.fps) if pictures else None
        count = 0
        try:
            for prediction in predictor.stream_readable(video, batch_size):
                if isinstance(prediction, ImageError):
                    raise UnpredictedError(f'frame {count + 1} of {str(source.path)!r}: {prediction}') from prediction
                count += 1
                seconds.append(prediction.seconds)
                results.add(prediction, f'{source.path}#{count}')
                if crops:
                    results.write_crops(prediction, f'{source.name}_{count}', '.png', threshold)
                if output is not None:
                    output.add(prediction.drawn(threshold))
                bar.advance(task)
            if not count:
                error = ImageError(f'video {str(source.path)!r} has no frame that can be read.')
                _tell_failure(bar, source, error, failed)
            elif output is not None:
                output.finish()
                results.files.append(f'videos/{source.name}.mp4')
        except UnpredictedError as error:
            _tell_failure(bar, source, error, failed)
        finally:
            video.close()
            if output is not None:
                output.discard()
        told = f' (its header says {video.num_frames})' if video.num_frames not in (0, count) else ''
        bar.console.print(f'{one_line(source.path)}: {plural(count, "frame")}{told}', **_PLAIN)


def _raise_bug(failed: Mapping[str, ImageError]) -> None:
    """Where nothing could be predicted at all, the files are not at fault: the error as it was."""
    for error in failed.values():
        if isinstance(error, UnpredictedError):
            raise error.__cause__


def _tell_failure(bar: Progress, source: Source, error: ImageError, failed: dict[str, ImageError]) -> None:
    failed[str(source.path)] = error
    bar.console.print(f'Failed: {printable(error)}', **_PLAIN)


_PLAIN: dict[str, Any] = {'markup': False, 'highlight': False, 'soft_wrap': True}
