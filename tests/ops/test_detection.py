from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import extension
from torchvision.models.detection.roi_heads import fastrcnn_loss, maskrcnn_loss

from bestie_pl.ops import detection
from bestie_pl.ops.detection import box_losses, detection_targets, mask_loss, nms, roi_align, to_instances
from bestie_pl.ops.masks import decode
from bestie_pl.ops.transfer import instances_from_map

needs_compiled = pytest.mark.skipif(
    not extension._has_ops(), reason="torchvision has no compiled operators for this torch"
)


def draw_boxes(seed: int, count: int, side: float = 20.0) -> Tensor:
    """Boxes in a square, also some of whole numbers, so that overlaps and scores tie."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * side
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * side / 2], 1)
    return boxes.round() if seed % 2 else boxes


def greedy(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """The definition: the best box that is left, and away with all that it overlaps."""
    left = sorted(range(len(boxes)), key=lambda i: (-float(scores[i]), i))
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if not overlap(boxes[best], boxes[i]) > threshold]
    return kept


def overlap(first: Tensor, second: Tensor) -> float:
    width = torch.minimum(first[2], second[2]) - torch.maximum(first[0], second[0])
    height = torch.minimum(first[3], second[3]) - torch.maximum(first[1], second[1])
    common = width.clamp(min=0) * height.clamp(min=0)
    area = [(b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)]
    return float(common / (area[0] + area[1] - common))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6), st.integers(0, 25), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), st.sampled_from([3, 1024])
)
def test_nms_is_the_greedy_one(seed: int, count: int, threshold: float, block: int) -> None:
    boxes = draw_boxes(seed, count)
    scores = (torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 8).round() / 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection, "BLOCK", block)
        kept = nms(boxes, scores, threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == greedy(boxes, scores, threshold)


def test_nms_of_a_long_chain_takes_back_what_a_suppressed_box_suppressed() -> None:
    at = torch.arange(0.0, 40.0, 2.0)
    boxes = torch.stack([at, torch.zeros(20), at + 5, torch.ones(20)], 1)  # each overlaps the next by 3 / 7
    assert nms(boxes, torch.linspace(1, 0, 20), 0.4).tolist() == list(range(0, 20, 2))


def slow_roi_align(
    values: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    """The definition, sample by sample."""
    height, width = values.shape[2:]
    result = values.new_zeros(len(rois), values.shape[1], *size)
    for k, (number, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (side * scale - (0.5 if aligned else 0.0) for side in box)
        tall, wide = y2 - y1, x2 - x1
        if not aligned:
            tall, wide = max(tall, 1.0), max(wide, 1.0)
        cell = tall / size[0], wide / size[1]
        grid = (ratio, ratio) if ratio > 0 else (math.ceil(cell[0]), math.ceil(cell[1]))
        for row in range(size[0]):
            for column in range(size[1]):
                total = values.new_zeros(values.shape[1])
                for i in range(grid[0]):
                    for j in range(grid[1]):
                        y = y1 + row * cell[0] + (i + 0.5) * cell[0] / grid[0]
                        x = x1 + column * cell[1] + (j + 0.5) * cell[1] / grid[1]
                        if -1 <= y <= height and -1 <= x <= width:
                            total += bilinear(values[int(number)], y, x)
                result[k, :, row, column] = total / max(1, grid[0] * grid[1])
    return result


def bilinear(plane: Tensor, y: float, x: float) -> Tensor:
    height, width = plane.shape[1:]
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = plane[:, top, left] * (1 - x + left) + plane[:, top, right] * (x - left)
    lower = plane[:, bottom, left] * (1 - x + left) + plane[:, bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


def draw_rois(seed: int, count: int, images: int = 2) -> Tensor:
    """Boxes that also leave the image, or are smaller than a pixel."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 14 - 3
    side = torch.rand(count, 2, generator=generator, dtype=torch.float64) ** 2 * 9 + 0.05
    number = torch.randint(images, (count, 1), generator=generator).double()
    return torch.cat([number, corner, corner + side], 1)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.sampled_from([(1, 1), (2, 3), (7, 7)]),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.sampled_from([-1, 0, 1, 2]),
    st.booleans(),
)
def test_roi_align_is_the_mean_of_bilinear_samples(
    seed: int, count: int, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> None:
    values = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rois = draw_rois(seed, count)
    found = roi_align(values, rois, size, scale, ratio, aligned)
    torch.testing.assert_close(found, slow_roi_align(values, rois, size, scale, ratio, aligned))


def test_roi_align_keeps_dtype_takes_lists_and_no_box() -> None:
    values = torch.randn(2, 3, 6, 8)
    boxes = draw_rois(0, 4)[:, 1:].float()
    rows = torch.cat([torch.tensor([[0.0], [0.0], [0.0], [1.0]]), boxes], 1)
    expected = roi_align(values, rows, 7, 1.0, 2)
    torch.testing.assert_close(roi_align(values, [boxes[:3], boxes[3:]], 7, 1.0, 2), expected)
    half = roi_align(values.bfloat16(), rows, 7, 1.0, 2)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)
    assert roi_align(values, torch.zeros(0, 5), (2, 4)).shape == (0, 3, 2, 4)
    without_extent = torch.tensor([[0.0, 3.0, 3.0, 3.0, 3.0]])
    assert (roi_align(values, without_extent, 2, aligned=True) == 0).all()


def test_roi_align_passes_gradients_to_the_features() -> None:
    values = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    rois = draw_rois(3, 3, images=1)
    assert torch.autograd.gradcheck(lambda v: roi_align(v, rois, 2, 0.5, 2), values)


@needs_compiled
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [-1, 2])
def test_both_equal_the_compiled_operators(aligned: bool, ratio: int) -> None:
    import torchvision.ops

    values, rois = torch.randn(2, 3, 16, 20), draw_rois(5, 30).abs().float()
    compiled = torchvision.ops.roi_align(values, rois, (7, 7), 0.5, ratio, aligned)
    torch.testing.assert_close(roi_align(values, rois, (7, 7), 0.5, ratio, aligned), compiled, atol=1e-5, rtol=1e-5)
    boxes, scores = draw_boxes(8, 3000, 200), torch.rand(3000)
    assert nms(boxes, scores, 0.5).tolist() == torchvision.ops.nms(boxes, scores, 0.5).tolist()


def test_targets_are_the_instances_of_each_image() -> None:
    ids = torch.zeros(2, 4, 6, dtype=torch.int32)
    ids[0, 1:3, 2:5], ids[0, 3, 5] = 3, 1
    labels = instances_from_map(ids, torch.tensor([0, 0, 1, 0]), torch.tensor([-1, 0, 4, 1]))  # row 2 has no pixel
    first, second = detection_targets(labels)
    assert first.boxes.tolist() == [[5, 3, 6, 4], [2, 1, 5, 3]]
    assert first.labels.tolist() == [1, 2] and first.weights.tolist() == [1, 1]
    assert torch.equal(first.masks, torch.stack([ids[0] == 1, ids[0] == 3]))
    assert second.boxes.shape == (0, 4) and second.masks.shape == (0, 4, 6)


def proposals(seed: int, count: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, 4, generator=generator),
        torch.randn(count, 16, generator=generator),
        torch.randint(4, (count,), generator=generator),
        torch.randn(count, 4, generator=generator),
    )


def test_losses_of_equal_weights_are_torchvisions() -> None:
    logits, offsets, labels, targets = proposals(0, 12)
    expected = fastrcnn_loss(logits, offsets, [labels], [targets])
    torch.testing.assert_close(box_losses(logits, offsets, labels, targets, torch.ones(12)), expected)

    boxes = torch.tensor([[0.0, 0, 8, 8], [2, 2, 10, 12]])
    masks, mask_logits = torch.rand(2, 16, 16).round(), torch.randn(2, 4, 6, 6)
    classes = torch.tensor([1, 3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.models.detection.roi_heads.roi_align", roi_align)
        expected_mask = maskrcnn_loss(mask_logits, [boxes], [masks], [classes], [torch.tensor([0, 1])])
    rois = torch.cat([torch.tensor([[0.0], [1.0]]), boxes], 1)
    projected = roi_align(masks[:, None], rois, 6)[:, 0]
    torch.testing.assert_close(mask_loss(mask_logits, classes, projected, torch.ones(2)), expected_mask)


def test_an_object_of_weight_0_teaches_nothing() -> None:
    logits, offsets, labels, targets = proposals(1, 8)
    weights = torch.ones(8)
    weights[labels > 0] = 0
    logits.requires_grad_()
    of_class, of_box = box_losses(logits, offsets, labels, targets, weights)
    assert of_box == 0
    (gradient,) = torch.autograd.grad(of_class, logits)
    assert (gradient[labels > 0] == 0).all() and (gradient[labels == 0] != 0).any()


def test_no_mask_gives_a_gradient_of_zero() -> None:
    logits = torch.randn(0, 4, 6, 6, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.int64)
    loss = mask_loss(logits, empty, torch.zeros(0, 6, 6), torch.zeros(0))
    loss.backward()
    assert loss == 0 and logits.grad is not None


def test_detections_become_instances_of_the_files_size() -> None:
    masks = torch.zeros(3, 1, 4, 4)
    masks[0, 0, :2], masks[1, 0, 2:] = 0.9, 0.4
    masks[2, 0, 2:, 2:] = 0.6
    found = {"masks": masks, "labels": torch.tensor([2, 1, 1]), "scores": torch.tensor([0.9, 0.8, 0.7])}
    instances = to_instances(found, (8, 8))
    assert instances.classes.tolist() == [1, 0] and instances.size == (8, 8)
    assert instances.scores.tolist() == pytest.approx([0.9, 0.7])
    assert decode(instances)[0].sum() == 8 * 4
    none = {"masks": masks[:0], "labels": found["labels"][:0], "scores": found["scores"][:0]}
    assert len(to_instances(none, (5, 7))) == 0
