"""``bestie-pl convert``: files in the release's layout, built from its description alone, give the release's maps."""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bestie_pl.cli import main as cli
from bestie_pl.cli.commands.convert import ALIASES, convert, report
from bestie_pl.data.voc import VOC_CLASSES
from bestie_pl.modules.bestie import BestieModule
from bestie_pl.modules.peak_attention import PeakAttentionModule
from bestie_pl.modules.weights import load_network
from bestie_pl.ops.cues import activation_planes

Golden = Callable[[str], dict[str, np.ndarray]]
Shapes = dict[str, tuple[int, ...]]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# names and shapes of the release's tensors, restated from release-weights 2, 3 and 5 without our networks


def conv(name: str, *shape: int, bias: bool = False) -> Shapes:
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def norm(name: str, width: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (width,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def conv_norm(conv_name: str, norm_name: str, *shape: int) -> Shapes:
    return conv(conv_name, *shape) | norm(norm_name, shape[0])


def bottlenecks(prefix: str, count: int, inputs: int, width: int) -> Shapes:
    shapes: Shapes = {}
    for n in range(count):
        block = f"{prefix}.{n}"
        shapes |= conv_norm(f"{block}.conv1", f"{block}.bn1", width, inputs if n == 0 else 4 * width, 1, 1)
        shapes |= conv_norm(f"{block}.conv2", f"{block}.bn2", width, width, 3, 3)
        shapes |= conv_norm(f"{block}.conv3", f"{block}.bn3", 4 * width, width, 1, 1)
        if n == 0:
            shapes |= conv_norm(f"{block}.downsample.0", f"{block}.downsample.1", 4 * width, inputs, 1, 1)
    return shapes


def fusion(prefix: str, widths: list[int], outputs: int) -> Shapes:
    shapes: Shapes = {}
    for i in range(outputs):
        for j, width in enumerate(widths):
            name = f"{prefix}.{i}.{j}"
            if j > i:
                shapes |= conv_norm(f"{name}.0", f"{name}.1", widths[i], width, 1, 1)
            for step in range(i - j):
                to = widths[i] if step == i - j - 1 else width
                shapes |= conv_norm(f"{name}.{step}.0", f"{name}.{step}.1", to, width, 3, 3)
    return shapes


def hrnet(w: int, classes: int) -> Shapes:
    shapes = conv_norm("conv1", "bn1", 64, 3, 3, 3) | conv_norm("conv2", "bn2", 64, 64, 3, 3)
    shapes |= bottlenecks("layer1", 4, 64, 64)
    shapes |= conv_norm("transition1.0.0", "transition1.0.1", w, 256, 3, 3)
    shapes |= conv_norm("transition1.1.0.0", "transition1.1.0.1", 2 * w, 256, 3, 3)
    shapes |= conv_norm("transition2.2.0.0", "transition2.2.0.1", 4 * w, 2 * w, 3, 3)
    shapes |= conv_norm("transition3.3.0.0", "transition3.3.0.1", 8 * w, 4 * w, 3, 3)
    for stage, modules in ((2, 1), (3, 4), (4, 3)):
        widths = [w << branch for branch in range(stage)]
        for m in range(modules):
            for branch, width in enumerate(widths):
                for block in range(4):
                    name = f"stage{stage}.{m}.branches.{branch}.{block}"
                    for k in (1, 2):
                        shapes |= conv_norm(f"{name}.conv{k}", f"{name}.bn{k}", width, width, 3, 3)
            last = stage == 4 and m == modules - 1
            shapes |= fusion(f"stage{stage}.{m}.fuse_layers", widths, 1 if last else stage)
    for head, outputs in (("seg", classes + 1), ("center", classes), ("offset", 2)):
        shapes |= conv(f"{head}.0", 256, w, 3, 3, bias=True) | conv(f"{head}.2", outputs, 256, 1, 1, bias=True)
    return shapes


def separable(depthwise: str, pointwise: str, inputs: int, outputs: int) -> Shapes:
    """Names up to the number of the second normalisation, which follows the pointwise convolution's."""
    shapes = conv_norm(f"{depthwise}.0", f"{depthwise}.1", inputs, 1, 5, 5)
    after = f"{pointwise.rpartition('.')[0]}.2"
    return shapes | conv_norm(pointwise, after, outputs, inputs, 1, 1)


def resnet(blocks: tuple[int, ...], classes: int) -> Shapes:
    shapes = conv_norm("backbone.conv1", "backbone.bn1", 64, 3, 7, 7)
    inputs = 64
    for number, count in enumerate(blocks):
        shapes |= bottlenecks(f"backbone.layer{number + 1}", count, inputs, 64 << number)
        inputs = 256 << number
    for kind, width, low in (("semantic", 256, (128, 64, 32)), ("instance", 128, (64, 32, 16))):
        decoder = f"decoder.{kind}_decoder"
        for n, size in enumerate((1, 3, 3, 3)):
            shapes |= conv_norm(f"{decoder}.aspp.convs.{n}.0", f"{decoder}.aspp.convs.{n}.1", 256, 2048, size, size)
        shapes |= conv(f"{decoder}.aspp.convs.4.aspp_pooling.1", 256, 2048, 1, 1)
        shapes |= conv_norm(f"{decoder}.aspp.project.0", f"{decoder}.aspp.project.1", 256, 1280, 1, 1)
        before = 256
        for n, (channels, projected) in enumerate(zip((1024, 512, 256), low, strict=True)):
            shapes |= conv_norm(f"{decoder}.project.{n}.0", f"{decoder}.project.{n}.1", projected, channels, 1, 1)
            shapes |= separable(f"{decoder}.fuse.{n}.0.0", f"{decoder}.fuse.{n}.0.1", before + projected, width)
            before = width
    heads = (("semantic", "seg", 256, 256, classes + 1), ("instance", "center", 128, 128, classes))
    for kind, head, inputs, hidden, outputs in (*heads, ("instance", "offset", 128, 32, 2)):
        name = f"decoder.{kind}_head.classifier.{head}"
        shapes |= separable(f"{name}.0.0.0", f"{name}.0.0.1", inputs, hidden)
        shapes |= conv(f"{name}.1", outputs, hidden, 1, 1, bias=True)
    return shapes


VGG16 = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256)}
VGG16 |= {17: (512, 256)} | {n: (512, 512) for n in (19, 21, 24, 26, 28)}


def vgg16(classes: int) -> Shapes:
    shapes: Shapes = {}
    for place, (outputs, inputs) in VGG16.items():
        shapes |= conv(f"features.{place}", outputs, inputs, 3, 3, bias=True)
    for n in (1, 2, 3):
        shapes |= conv(f"extra_conv{n}", 512, 512, 3, 3, bias=True)
    return shapes | conv("extra_conv4", classes, 512, 1, 1, bias=True)


def generated(name: str, shape: tuple[int, ...]) -> Tensor:
    """Value of a tensor of the recorded networks: a function of its name (release-weights 6)."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    z = draw.standard_normal(shape)
    if len(shape) == 4:
        value = z * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        value = 0.8 + 0.4 * draw.uniform(size=shape)
    elif name.endswith("weight"):
        value = 0.5 + 0.05 * z
    else:
        value = 0.1 * z
    return torch.from_numpy(value.astype(np.float32))


def release_state(shapes: Shapes) -> dict[str, Tensor]:
    """A network of the release with the values of the recording; the classifier's trunk under both names."""
    state = {name: generated(name, shape) for name, shape in shapes.items()}
    if "features.0.weight" in state:
        state |= {f"{a}.{kind}": state[f"{n}.{kind}"] for a, n in ALIASES.items() for kind in ("weight", "bias")}
    return state


def random_state(shapes: Shapes) -> dict[str, Tensor]:
    """Any values, quickly."""
    draw = torch.Generator().manual_seed(0)
    return {
        name: torch.tensor(7) if name.endswith("tracked") else torch.rand(shape, generator=draw) * 0.02
        for name, shape in shapes.items()
    }


def original_names(module: BestieModule | PeakAttentionModule) -> dict[str, Tensor]:
    """The network's tensors under the release's names: its HRNet has no level for backbone and decoder."""
    levels = 2 if module.hparams.get("decoder") == "heads" else 1
    return {name.split(".", levels)[levels]: value for name, value in module.model.state_dict().items()}


def assert_identical(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Names, shapes, types and bytes."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (ours[name].shape, ours[name].dtype) == (value.shape, value.dtype), name
        assert ours[name].numpy().tobytes() == value.numpy().tobytes(), name


def assert_close(ours: Tensor, expected: np.ndarray) -> None:
    """To 1e-4 of the output's standard deviation."""
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-4 * expected.std())


def run(path: Path, *options: str) -> Path:
    output = path.with_name("converted") / "network.ckpt"
    assert cli.main(["convert", str(path), "--output", str(output), *options]) == 0
    return output


NETWORKS = {
    "hrnet32": ("hrnet_w32", "heads", hrnet(32, 4)),
    "hrnet48": ("hrnet_w48", "heads", hrnet(48, 4)),
    "resnet50": ("resnet50", "panoptic_deeplab", resnet((3, 4, 6, 3), 4)),
    "resnet101": ("resnet101", "panoptic_deeplab", resnet((3, 4, 23, 3), 4)),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_the_restated_layout_has_the_releases_sizes(golden: Golden, case: str) -> None:
    recorded, shapes = golden("k_network_parity"), NETWORKS[case][2]
    state = {n for n in shapes if n.endswith(("running_mean", "running_var", "tracked"))}
    assert len(shapes) == recorded[f"{case}_n_tensors"]
    assert sum(int(np.prod(shapes[n])) for n in shapes.keys() - state) == recorded[f"{case}_n_params"]


@pytest.mark.parametrize(
    "case",
    [
        "hrnet32",
        "resnet50",
        pytest.param("hrnet48", marks=pytest.mark.slow),
        pytest.param("resnet101", marks=pytest.mark.slow),
    ],
)
def test_converted_networks_give_the_releases_maps(golden: Golden, case: str, tmp_path: Path) -> None:
    recorded = golden("k_network_parity")
    backbone, decoder, shapes = NETWORKS[case]
    theirs = release_state(shapes)
    torch.save({"model": theirs}, tmp_path / "best.pt")
    result = convert(tmp_path / "best.pt")
    assert (result.network, result.used, result.unused) == (backbone, tuple(theirs), {})
    module = result.module.eval()
    assert isinstance(module, BestieModule) and module.hparams["decoder"] == decoder
    assert_identical(original_names(module), theirs)
    # the recorded input is normalised already; what normalises an image is the release's
    assert module.model.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)
    assert module.model.std.flatten().tolist() == pytest.approx(IMAGENET_STD)
    height, width = recorded[f"{case}_target_shape"].tolist()
    with torch.no_grad():
        maps = module.model.enlarge(module.model.network(torch.from_numpy(recorded[f"{case}_x"])), (height, width))
    for ours, key in zip(maps, ("seg", "center", "offset"), strict=True):
        assert_close(ours[:, :3], recorded[f"{case}_out_{key}"])


def test_the_converted_classifier_gives_the_releases_logits_and_activations(
    golden: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = golden("k_network_parity")
    theirs = release_state(vgg16(20))
    assert len(theirs) == 60
    torch.save({"model": theirs, "epoch": 14, "iter": 31746}, tmp_path / "PAM.pth")
    output = run(tmp_path / "PAM.pth")
    text = " ".join(capsys.readouterr().out.split())
    assert "34 tensors used: features 26" in text and "26 unused, second name of the same values" in text
    assert "2 unused, stands beside the network and is no part of it: epoch, iter" in text
    assert all(f"{alias}.bias" in text for alias in ALIASES)

    module = PeakAttentionModule.load_from_checkpoint(output).eval()
    assert module.class_names == VOC_CLASSES and module.recipe == "release" and module.backbone_weights is None
    assert module.alpha == 0.7
    back = original_names(module)
    aliases = {f"{a}.{kind}": back[f"{n}.{kind}"] for a, n in ALIASES.items() for kind in ("weight", "bias")}
    assert_identical(back | aliases, theirs)
    # The normalised input itself: to undo its normalisation and do it again moves it by 5e-7, which puts one value of
    # the second peak attention on the other side of its threshold (alpha 0.3) and the logits off by 1 % of their std.
    assert module.model.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)
    assert module.model.std.flatten().tolist() == pytest.approx(IMAGENET_STD)
    x, size = torch.from_numpy(recorded["vgg16pam_x"]), recorded["vgg16pam_cam_size"].tolist()
    for alpha in (0.3, 0.7):
        with torch.no_grad():
            maps = module.model.network(x, alpha)
        assert_close(module.model.logits(maps), recorded[f"vgg16pam_alpha{alpha}_out_logits"])
        cams = activation_planes(maps[0, [2, 14]], (size[0], size[1]))
        assert_close(cams, recorded[f"vgg16pam_alpha{alpha}_out_cam_classes_2_14"][0])


def test_a_converted_resnet_loads_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = random_state(NETWORKS["resnet50"][2])
    torch.save({"model": theirs}, tmp_path / "best.pt")
    module = BestieModule.load_from_checkpoint(run(tmp_path / "best.pt"))
    assert (module.hparams["backbone"], module.hparams["decoder"]) == ("resnet50", "panoptic_deeplab")
    assert (module.supervision, module.recipe, module.backbone_weights) == ("tags", "release", None)
    assert_identical(original_names(module), theirs)
    text = capsys.readouterr().out
    assert text.startswith(f"{tmp_path / 'best.pt'}\nresnet50, 4 classes (class0, class1, class2, class3)")
    assert "530 tensors used: backbone.conv1 1, " in text and "none unused" in text


@pytest.fixture(scope="module")
def small() -> dict[str, Tensor]:
    """The smallest of the release's networks for the shapes' five classes."""
    return random_state(hrnet(32, 5))


@pytest.mark.parametrize("layout", ["plain", "module.", "state_dict"])
def test_levels_prefixes_and_what_stands_beside(
    small: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    moments = {n: {"step": 3, "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)} for n in range(10)}
    content: dict[str, Any] = dict(small)
    if layout == "module.":
        content = {"model": {f"module.{k}": v for k, v in small.items()}, "optimizer": {"state": moments}, "step": 9}
    elif layout == "state_dict":
        content = {"state_dict": small, "model": "bestie", "scheduler": None}
    torch.save(content, tmp_path / "best.pt")
    result = convert(tmp_path / "best.pt")
    assert result.network == "hrnet_w32" and set(result.used) == set(small)
    beside = content.keys() - {"model"} if layout == "module." else content.keys() - {"state_dict"}
    assert set(result.unused) == (set() if layout == "plain" else beside)
    if layout == "module.":
        assert result.unused["optimizer"] == "20 tensors, state of the optimiser: a new training begins its own"
        assert "no part" in result.unused["step"]
    state = result.module.model.state_dict()
    assert state["network.backbone.conv1.weight"].equal(small["conv1.weight"])
    assert state["network.decoder.seg.2.bias"].equal(small["seg.2.bias"])
    assert state["network.backbone.bn1.num_batches_tracked"] == 7


def test_what_the_network_does_not_have_is_listed_with_the_reason(small: dict[str, Tensor], tmp_path: Path) -> None:
    extra = ["stage4.2.fuse_layers.3.0.0.0.weight", "head.0.0.0.conv1.weight", "fc.bias", "incre_modules.0.0.bn1.bias"]
    torch.save(small | {name: torch.zeros(3) for name in extra}, tmp_path / "best.pt")
    text = " ".join(report(convert(tmp_path / "best.pt")).split())
    assert "1764 tensors used" in text and "none unused" not in text
    assert "1 unused, writes the coarse branches of the last stage, which nothing reads: stage4.2.fuse_layers.3" in text
    assert "3 unused, classifier of ImageNet, which the network does not have: head.0.0.0.conv1.weight, fc.bias" in text


def complain(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line that a failure prints; nothing is written."""
    output = path.with_name("out.ckpt")
    assert cli.main(["convert", str(path), "--output", str(output), *options]) == 2
    assert not output.exists()
    error = capsys.readouterr().err
    assert error.startswith("bestie-pl: error: ") and len(error.splitlines()) == 1
    return error


def test_missing_misshapen_and_unknown_tensors_are_named(
    small: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "best.pt"
    wrong = dict(small) | {"seg.2.bias": torch.zeros(5), "ema.bias": torch.zeros(1)}
    del wrong["stage3.1.fuse_layers.2.0.0.1.running_var"], wrong["bn2.num_batches_tracked"]
    torch.save({"model": wrong}, path)
    error = complain(path, capsys)
    assert "2 tensors missing: bn2.num_batches_tracked, stage3.1.fuse_layers.2.0.0.1.running_var" in error
    assert "1 tensors of another shape: seg.2.bias (5,) instead of (6,)" in error
    assert "1 tensors unknown: ema.bias" in error and str(path) in error

    # the file of ImageNet, of which only the heads are missing, and a file that is another network's
    trunk = {k: v for k, v in small.items() if k.split(".")[0] not in ("seg", "center", "offset")}
    torch.save(trunk, path)
    assert "12 tensors missing: center.0.bias" in complain(path, capsys)
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    assert "are those of no network of the release; give --network (hrnet_w48, " in complain(path, capsys)
    assert "34 tensors missing: extra_conv1.bias" in complain(path, capsys, "--network", "vgg16")


def test_a_classifier_whose_two_names_differ_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = random_state(vgg16(3))
    path = tmp_path / "PAM.pth"
    torch.save({"model": state | {"layer5_conv3.bias": state["features.28.bias"] + 1}}, path)
    assert "layer5_conv3.bias and features.28.bias are two names of one tensor, but differ" in complain(path, capsys)
    torch.save({"model": state | {"layer5_conv9.bias": torch.zeros(1)}}, path)
    assert "1 tensors unknown: layer5_conv9.bias" in complain(path, capsys)
    torch.save({"model": state}, path)
    assert "learns from tags" in complain(path, capsys, "--supervision", "points")


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_nothing_of_a_file_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, sprung = tmp_path / "best.pt", tmp_path / "sprung"
    torch.save({"model": {}, "args": Trap(sprung)}, path)
    assert "may run code" in complain(path, capsys)
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists(), "the trap works"


def test_other_files_are_refused(small: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "best.pt"
    assert "no such file" in complain(path, capsys)
    path.write_text("<html>not found</html>")
    assert "is no file of tensors" in complain(path, capsys)
    torch.save({"pytorch-lightning_version": "2.6", "state_dict": {}}, path)
    assert "is a Lightning checkpoint already" in complain(path, capsys)
    torch.save(small, path)
    before = path.read_bytes()
    assert cli.main(["convert", str(path), "--output", str(path)]) == 2
    assert path.read_bytes() == before
    assert "--output is the file to convert" in capsys.readouterr().err
    assert cli.main(["convert", str(path), "--output", str(tmp_path)]) == 2
    assert "--output is a folder" in capsys.readouterr().err
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    assert "5 classes, and 2 class names" in complain(path, capsys, "--classes", str(names))
    names.write_text("a\nb\na\nd\ne\n")
    assert "stands there twice; give each class once" in complain(path, capsys, "--classes", str(names))


def test_a_converted_checkpoint_tests_predicts_and_starts_a_training(
    small: dict[str, Tensor], shapes_folder: Path, tmp_path: Path
) -> None:
    torch.save({"model": small}, tmp_path / "best.pt")
    output = run(tmp_path / "best.pt", "--classes", str(shapes_folder / "classes.txt"), "--supervision", "points")
    module = BestieModule.load_from_checkpoint(output)
    assert module.class_names == tuple((shapes_folder / "classes.txt").read_text().split())
    assert module.supervision == "points" and module.inference.mirror
    assert_identical(original_names(module), small)

    configuration = Path(__file__).resolve().parents[3] / "configs/voc/points_release.yaml"
    data = ["train_split=train", "test_split=test", "predict_split=test", "num_workers=0", f"root={shapes_folder}"]
    trainer = ["accelerator=cpu", "devices=1", "strategy=auto", "sync_batchnorm=false"]
    arguments = ["--config", str(configuration), f"--trainer.default_root_dir={tmp_path / 'run'}"]
    arguments += [f"--data.init_args.{setting}" for setting in data] + [f"--trainer.{setting}" for setting in trainer]
    arguments += ["--model.init_args.backbone=hrnet_w32", f"--ckpt_path={output}"]
    for verb in ("test", "predict"):
        assert cli.main([verb, *arguments]) == 0
    assert str(output) in (tmp_path / "run" / "scores_test.json").read_text()
    names = (shapes_folder / "ImageSets/Segmentation/test.txt").read_text().split()
    assert len(names) == 5
    assert sorted(path.stem for path in (tmp_path / "run/predictions").glob("*.json")) == sorted(names)

    # the way of init_from
    with torch.no_grad():
        module.model.network.decoder.offset[2].weight.zero_()
    load_network(module.model, output)
    assert_identical(original_names(module), small)
    torch.save({"model": {"conv1.weight": small["conv1.weight"]}}, tmp_path / "best.pt")
    with pytest.raises(ValueError, match="holds no state_dict; .*'bestie-pl convert'"):
        load_network(module.model, tmp_path / "best.pt")


def test_help_is_light() -> None:
    code = (
        "import sys; from bestie_pl.cli.main import main\n"
        "try: main(['convert', '--help'])\n"
        "except SystemExit as stop: print(stop.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False" and "resnet101" in done.stdout
