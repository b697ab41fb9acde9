from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import extension
from torchvision.models import resnet50
from torchvision.ops import boxes

from bestie_pl.models.mask_rcnn import BUILDERS, MaskRCNNModel
from bestie_pl.ops import detection
from bestie_pl.ops.detection import DetectionTarget

FEW = {"min_size": 64, "rpn_pre_nms_top_n_train": 50, "rpn_post_nms_top_n_train": 20, "box_batch_size_per_image": 16}
FEW |= {"rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 10, "box_score_thresh": 0.0}


def small(**settings: Any) -> MaskRCNNModel:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"width": 16, "anchor_sizes": (16, 32, 48, 64, 96), "settings": FEW}
    return MaskRCNNModel(2, "tf_efficientnet_lite0", **(defaults | settings))


def target(*, count: int = 2, weight: float = 1.0) -> DetectionTarget:
    masks = torch.zeros(count, 64, 64, dtype=torch.bool)
    masks[:1, 4:30, 6:40], masks[1:, 34:60, 30:62] = True, True
    corners = torch.tensor([[6.0, 4, 40, 30], [30, 34, 62, 60]])[:count]
    return DetectionTarget(corners, torch.tensor([1, 2])[:count], masks, torch.full((count,), weight))


def test_detections_of_images_without_their_padding() -> None:
    model = small().eval()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        found = model(images, [(64, 96), (50, 70)])
        alone = model(images[1:, :, :50, :70])[0]
    assert [tuple(one["masks"].shape[1:]) for one in found] == [(1, 64, 96), (1, 50, 70)]
    for one in found:
        assert len(one["boxes"]) == len(one["scores"]) == len(one["labels"]) > 0
        assert set(one["labels"].tolist()) <= {1, 2}
    # images of a batch are padded to a common size, which changes what lies at the edge a little
    torch.testing.assert_close(found[1]["scores"][:3], alone["scores"][:3], atol=0.05, rtol=0.1)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_boxes_are_in_single_precision_under_autocast(precision: torch.dtype) -> None:
    model = small().eval()
    images = torch.rand(2, 3, 64, 96)
    seen: list[Tensor] = []
    heads = model.network.roi_heads
    heads.box_predictor.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad(), torch.autocast("cpu", dtype=precision):
        found = model(images)
        terms = model.train().losses(images, [target(), target(count=0)])
    assert [value.dtype for value in seen] == [precision, precision]  # the layers themselves are reduced
    for one in found:
        assert one["boxes"].dtype == one["scores"].dtype == one["masks"].dtype == torch.float32
    assert all(term.isfinite() and term.dtype == torch.float32 for term in terms.values())


def test_losses_fall_and_an_image_without_objects_is_fine() -> None:
    model = small().train()
    images = torch.rand(2, 3, 64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(8):
        terms = model.losses(images, [target(), target(count=0)])
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert set(terms) == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    assert history[-1] < 0.7 * history[0]
    empty = model.losses(images[:1], [target(count=0)])
    assert empty["loss_mask"] == 0 and all(bool(term.isfinite()) for term in empty.values())


def test_the_weight_of_an_object_scales_its_losses() -> None:
    images = torch.rand(1, 3, 64, 64)

    def losses(weight: float) -> dict[str, Tensor]:
        model = small().train()
        torch.manual_seed(1)  # of the proposals that are drawn
        return model.losses(images, [target(weight=weight)])

    whole, half, none = losses(1.0), losses(0.5), losses(0.0)
    for name in ("loss_mask", "loss_box_reg"):
        torch.testing.assert_close(half[name], whole[name] / 2)
        assert whole[name] > 0 and none[name] == 0
    assert none["loss_classifier"] < half["loss_classifier"] < whole["loss_classifier"]
    torch.testing.assert_close(half["loss_objectness"], whole["loss_objectness"])


def test_frozen_normalisation_keeps_statistics_and_factors() -> None:
    model = small(frozen_norm=True).train()
    before = {name: value.clone() for name, value in model.network.backbone.body.state_dict().items()}
    optimizer = torch.optim.SGD([*model.backbone_parameters(), *model.head_parameters()], lr=0.1)
    torch.stack(list(model.losses(torch.rand(1, 3, 64, 64), [target()]).values())).sum().backward()
    optimizer.step()
    changed = {
        name for name, value in model.network.backbone.body.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed and all("bn" not in name for name in changed)
    parameters = {id(p) for p in model.parameters() if p.requires_grad}
    assert parameters == {id(p) for p in [*model.backbone_parameters(), *model.head_parameters()]}


@pytest.mark.parametrize("name", BUILDERS)
def test_torchvisions_builders_take_their_files_whole_or_not_at_all(name: str, tmp_path: Path) -> None:
    model = MaskRCNNModel(2, name, settings={"min_size": 64}, frozen_norm=True)
    body = model.network.backbone.body
    assert not body.layer1[0].conv1.weight.requires_grad and body.layer2[0].conv1.weight.requires_grad
    donor = resnet50().state_dict()
    torch.save(donor, tmp_path / "resnet50.pth")
    model.load_backbone_weights(str(tmp_path / "resnet50.pth"))
    assert torch.equal(body.state_dict()["layer4.2.conv3.weight"], donor["layer4.2.conv3.weight"])

    del donor["layer3.0.conv1.weight"]
    torch.save(donor, tmp_path / "part.pth")
    before = {key: value.clone() for key, value in body.state_dict().items()}
    with pytest.raises(ValueError, match="part.pth does not fit .*: 1 tensors missing: layer3.0.conv1.weight. N"):
        model.load_backbone_weights(str(tmp_path / "part.pth"))
    assert all(torch.equal(value, before[key]) for key, value in body.state_dict().items())


def test_a_whole_file_is_loaded_or_named(tmp_path: Path) -> None:
    donor = small()
    state = donor.network.state_dict()
    # as in torchvision's files, without what frozen normalisations do not count
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "plain.pth")
    torch.save({"state_dict": {f"model.network.{k}": v for k, v in state.items()}}, tmp_path / "module.ckpt")
    for file in ("plain.pth", "module.ckpt"):
        torch.manual_seed(5)
        model = MaskRCNNModel(2, "tf_efficientnet_lite0", width=16, anchor_sizes=(16, 32, 48, 64, 96))
        model.load_weights(tmp_path / file)
        assert all(torch.equal(v, state[k]) for k, v in model.network.state_dict().items() if "tracked" not in k)
    with pytest.raises(ValueError, match=r"plain.pth does not fit 'tf_efficientnet_lite0': .* of another shape"):
        small(width=8).load_weights(tmp_path / "plain.pth")
    with pytest.raises(FileNotFoundError, match="absent.pth"):
        model.load_weights(tmp_path / "absent.pth")


def test_no_network_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models.ResNet50_Weights.get_state_dict", lambda self, **options: fail(**options))
    with pytest.raises(ConnectionError, match="no route to host.*or give backbone_weights a local file"):
        MaskRCNNModel(1).load_backbone_weights("imagenet")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(settings={"min_sise": 3}), "settings has 'min_sise'; torchvision's MaskRCNN takes min_size,"),
        (lambda: MaskRCNNModel(1, width=64), "maskrcnn_resnet50_fpn has its own width and anchors"),
        (lambda: MaskRCNNModel(1, "resnet999"), "timm has no backbone 'resnet999'"),
        (lambda: small(anchor_sizes=(8, 16)), "anchor_sizes must be 5 numbers, one a level; got"),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], MaskRCNNModel], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_plain_operators_stand_in_only_where_there_are_no_compiled_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from bestie_pl.models import mask_rcnn

    assert (boxes.nms is detection.nms) == (not extension._has_ops())
    monkeypatch.setattr(boxes, "nms", "compiled")
    monkeypatch.setattr(mask_rcnn.extension, "_has_ops", lambda: True)
    mask_rcnn.complete_torchvision()
    assert boxes.nms == "compiled"
