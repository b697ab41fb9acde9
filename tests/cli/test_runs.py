"""The command line as users run it: every configuration, every verb, and what wrong input gives."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as codec

from bestie_pl.cli.main import main as bestie_main
from bestie_pl.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs"
SMALL_SHAPES = ["train_images=16", "val_images=5", "test_images=5", "image_size=64", "clutter=1", "generator_seed=0"]
SMALL = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.strategy=auto",
    "--trainer.precision=32-true",
    "--trainer.sync_batchnorm=false",
    "--data.init_args.crop_size=64",
    "--data.init_args.batch_size=2",
    "--data.init_args.num_workers=0",
    "--model.init_args.backbone_weights=null",
]


def trainings(data_set: str) -> list[str]:
    """The configurations of a data set, without the pipelines of them."""
    paths = (path for path in CONFIGS.glob(f"{data_set}/*.yaml") if path.name != "pipeline.yaml")
    return sorted(str(path.relative_to(REPOSITORY)) for path in paths)


def second_stage(config: str) -> list[str]:
    """Of a second stage: the data set's own labels, for those that another command writes, and small images."""
    if "labels_from" not in (REPOSITORY / config).read_text():
        return []
    return ["--data.init_args.labels_from=null", "--model.init_args.settings={min_size: 64, max_size: 64}"]


def bestie(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the console script."""
    script = Path(sys.executable).with_name("bestie-pl")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([script, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert result.returncode == status, result.stdout + result.stderr
    return result


def run(*arguments: str) -> None:
    """The same in this process, which saves the imports."""
    from bestie_pl.cli.lightning import run

    run(list(arguments))


def shapes_arguments(folder: Path, root: Path) -> list[str]:
    sizes = [f"--data.init_args.{size}" for size in SMALL_SHAPES]
    return [*SMALL, *sizes, f"--data.init_args.root={root}", f"--trainer.default_root_dir={folder}"]


def test_fit_test_predict_and_a_second_fit(shapes_folder: Path, tmp_path: Path) -> None:
    """The README's way through, with the console script."""
    arguments = ["--config", "configs/shapes/points.yaml", *shapes_arguments(tmp_path, shapes_folder)]
    bestie("fit", *arguments, "--trainer.max_steps=2")
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert (tmp_path / "pictures" / "training.png").exists()
    log = tmp_path / "logs" / "version_0"
    assert (log / "config.yaml").exists() and (log / "metrics.csv").exists()

    bestie("test", *arguments, "--ckpt_path=last", "--data.init_args.eval_batch_size=1")
    width, height = Image.open(tmp_path / "pictures" / "test.png").size
    assert height > 5 * (width // 4 - 4), "all five test images, each as wide as one of four columns"
    scores = json.loads((tmp_path / "scores_test.json").read_text())
    assert scores["supervision"] == "points" and scores["oracle"] is None and scores["ground_truth_used"] == []
    assert {"test/map50", "test/map70", "test/miou"} <= set(scores["scores"])
    assert scores["checkpoint"].endswith(".ckpt") and scores["environment"]["torch"]

    photograph = tmp_path / "own" / "größe 1.jpg"
    photograph.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(photograph)
    own = f"--data.init_args.predict_images={photograph.parent}"
    bestie("predict", *arguments, own, "--ckpt_path=last", "--model.init_args.inference.threshold=1e-6")
    records = json.loads((tmp_path / "predictions" / "größe 1.json").read_text())
    assert records, "two steps of training leave the network unsure, and everything above 0 is written"
    for record in records:
        assert record["class"] in ("fish", "lock", "beetle", "kite", "moon") and 0 <= record["score"] <= 1
        assert codec.decode(record["segmentation"]).shape == (50, 70)

    # the first run's files stay, and the last state is the newest run's
    last, first = tmp_path / "checkpoints" / "last.ckpt", log / "checkpoints" / "step=2.ckpt"
    before = first.read_bytes()
    assert last.resolve() == first.resolve()
    bestie("fit", *arguments, "--trainer.max_steps=3", "--seed_everything=1")
    assert last.resolve() == (tmp_path / "logs" / "version_3" / "checkpoints" / "step=3.ckpt").resolve()
    assert first.read_bytes() == before and [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    assert scores["sha256"] == hashlib.sha256(before).hexdigest() and scores["step"] == 2


def test_runs_without_a_folder_of_their_own_follow_each_other(shapes_folder: Path, tmp_path: Path) -> None:
    """A training without logger, and one whose logger would have a folder for all runs."""
    arguments = ["--config", "configs/shapes/points.yaml", *shapes_arguments(tmp_path, shapes_folder)]
    short = ["--trainer.limit_val_batches=0", "--trainer.limit_train_batches=1", "--trainer.max_epochs=1"]
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}"]
    for number, mine in enumerate((["--trainer.logger=false"], logger)):
        run("fit", *arguments, *short, *mine, f"--trainer.max_steps={number + 1}")
        folder = tmp_path / "logs" / f"version_{number}"
        assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_steps"] == number + 1
        assert {"checkpoints", "pictures", "config.yaml"} <= {path.name for path in folder.iterdir()}
        assert (tmp_path / "pictures" / "training.png").resolve() == (folder / "pictures" / "training.png").resolve()
    logged = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert logged["data"]["init_args"]["batch_size"] == 2 and logged["trainer"]["max_steps"] == 2
    assert logged["seed_everything"] == 3407 and logged["environment"]["torch"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "logs", "pictures"]


def test_nothing_is_evaluated_with_random_weights(shapes_folder: Path, tmp_path: Path) -> None:
    """Nor does a training go on from nothing."""
    arguments = ["--config", "configs/shapes/points.yaml", *shapes_arguments(tmp_path, shapes_folder)]
    for verb in ("test", "predict", "validate"):
        with pytest.raises(ValueError, match="BestieModule has random weights: give --ckpt_path"):
            run(verb, *arguments)
    for verb, remedy in (("test", "train first"), ("fit", "leave it out to train from the start")):
        with pytest.raises(FileNotFoundError, match=f"no complete checkpoint of a run in .*{remedy}"):
            run(verb, *arguments, "--ckpt_path=last")
    with pytest.raises(UserError, match="GrownMaps has nothing to train: use `bestie-pl predict`"):
        run("fit", "--model=GrownMaps", "--data=ShapesDataModule", f"--data.root={shapes_folder}")
    assert not list(tmp_path.rglob("*.*")), "nothing was begun"


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_a_precision_in_which_offsets_cannot_be_is_refused(precision: str, shapes_folder: Path, tmp_path: Path) -> None:
    arguments = ["--config", "configs/shapes/points.yaml", *shapes_arguments(tmp_path, shapes_folder)]
    with pytest.raises(ValueError, match=f"trainer.precision {precision} .* use "):
        run("fit", *arguments, f"--trainer.precision={precision}")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("accelerator=abacus", "trainer: .*invalid accelerator name"),
        ("strategy=dpp", "trainer: .*invalid strategy name"),
        ("devices=many", "trainer: `devices`"),
        ("max_time=soon", "trainer: .*not a valid duration"),
        pytest.param(
            "accelerator=cuda",
            "trainer.accelerator cuda: torch finds no such device on this machine; use trainer.accelerator auto or cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_what_the_trainer_objects_to_is_the_users_to_put_right(
    setting: str, message: str, shapes_folder: Path, tmp_path: Path
) -> None:
    arguments = ["--config", "configs/shapes/points.yaml", *shapes_arguments(tmp_path, shapes_folder)]
    with pytest.raises(UserError, match=message):
        run("fit", *arguments, f"--trainer.{setting}")


@pytest.mark.slow
def test_with_weights_and_biases_too(shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of a run is in its folder, and the logger knows the whole configuration."""
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = str(REPOSITORY / "configs" / "shapes" / "points.yaml")
    arguments = ["--config", config, *shapes_arguments(tmp_path / "runs", shapes_folder)]
    logger = ["--trainer.logger=WandbLogger", "--trainer.logger.project=test"]
    run("fit", *arguments, *logger, "--trainer.max_steps=1", "--trainer.limit_val_batches=0")
    folder = tmp_path / "runs" / "logs" / "version_0"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert {"wandb", "checkpoints", "config.yaml", "pictures"} <= {path.name for path in folder.iterdir()}
    import wandb

    known = dict(wandb.run.config) if wandb.run is not None else {}
    wandb.finish()
    assert known["data"]["init_args"]["batch_size"] == 2 and known["seed_everything"] == 3407


@pytest.mark.parametrize("config", trainings("shapes"))
def test_every_shapes_configuration_runs(config: str, shapes_folder: Path, tmp_path: Path) -> None:
    # maps and cues that another command has to make before, from those that come with the scenes
    made = ["--data.init_args.semantic_dir=WSSS_maps", "--data.init_args.cues_dir=Center_points"]
    if "init_from" in (REPOSITORY / config).read_text():
        made.append("--model.init_args.init_from=null")
    made += second_stage(config)
    run("fit", "--config", config, *shapes_arguments(tmp_path, shapes_folder), *made, "--trainer.fast_dev_run=true")


def test_a_trial_run_leaves_nothing(shapes_folder: Path, tmp_path: Path) -> None:
    """Its picture, scores or predictions could pass for those of a real run."""
    (tmp_path / "scores_test.json").write_text("{}")
    given = ["--config", "configs/shapes/full.yaml", *shapes_arguments(tmp_path, shapes_folder)]
    run("fit", *given, "--trainer.fast_dev_run=true", "--trainer.callbacks=PictureWriter")
    assert [path.name for path in tmp_path.iterdir()] == ["scores_test.json"]


@pytest.mark.parametrize("data_set", ["shapes", "folder", "animals"])
def test_cues_are_judged_by_the_threshold_that_training_uses(data_set: str) -> None:
    settings = [
        yaml.safe_load((CONFIGS / data_set / f"{name}.yaml").read_text())["data"]["init_args"]
        for name in ("classifier", "tags")
    ]
    assert settings[0]["cue_threshold"] == settings[1]["cue_threshold"]


@pytest.mark.parametrize("config", trainings("voc"))
def test_every_voc_configuration_runs_on_generated_data(config: str, shapes_folder: Path, tmp_path: Path) -> None:
    """The paper's settings with a small network, on generated scenes under the names of VOC's splits and folders."""
    root = tmp_path / "VOC2012"
    shutil.copytree(shapes_folder, root)
    (root / "train_cls.txt").rename(root / "train_aug_cls.txt")
    shutil.copytree(root / "Center_points", root / "Peak_points")
    arguments = [*SMALL, "--model.init_args.backbone=hrnet_w18_small", f"--trainer.default_root_dir={tmp_path}"]
    arguments += ["--data.init_args.image_scale=1", *second_stage(config)]
    run("fit", "--config", config, *arguments, f"--data.init_args.root={root}", "--trainer.fast_dev_run=true")


@pytest.mark.parametrize("config", trainings("coco"))
def test_every_coco_configuration_runs_on_real_photographs(config: str, real_data: Path, tmp_path: Path) -> None:
    root = real_data / "coco_tiny"
    points = tmp_path / "points"
    write_points(root / "instances_train.json", points)
    run(
        *("fit", "--config", config, *SMALL, "--model.init_args.backbone=hrnet_w18_small"),
        *(f"--data.init_args.root={root}", f"--data.init_args.cues_dir={points}"),
        *("--data.init_args.train_annotations=instances_train.json", "--data.init_args.train_images=images"),
        *("--data.init_args.val_annotations=instances_val.json", "--data.init_args.val_images=images"),
        *(
            []
            if "semantic_source" in (REPOSITORY / config).read_text()
            else ["--data.init_args.semantic_source=ground_truth"]
        ),
        *second_stage(config),
        *(f"--trainer.default_root_dir={tmp_path}", "--trainer.fast_dev_run=true"),
    )


def write_points(annotations: Path, folder: Path) -> None:
    """The middle of each object's box, in the release's format."""
    folder.mkdir()
    content = json.loads(annotations.read_text())
    classes = {c: i for i, c in enumerate(sorted(category["id"] for category in content["categories"]))}
    for image in content["images"]:
        lines = []
        for a in content["annotations"]:
            if a["image_id"] == image["id"] and not a["iscrowd"]:
                x, y, width, height = a["bbox"]
                lines.append(f"{x + width / 2:.1f} {y + height / 2:.1f} {classes[a['category_id']]} 1.0")
        (folder / f"{Path(image['file_name']).stem}.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("config", trainings("nuclei"))
def test_every_nuclei_configuration_runs(config: str, real_data: Path, tmp_path: Path) -> None:
    run(
        *("fit", "--config", config, *SMALL, f"--data.init_args.root={real_data / 'nuclei'}", *second_stage(config)),
        *(f"--trainer.default_root_dir={tmp_path}", "--trainer.fast_dev_run=true"),
    )


@pytest.fixture(scope="module")
def animals(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty photographs of each split, with points; and cues and maps under the names that other commands give."""
    source, root = real_data / "animals", tmp_path_factory.mktemp("data") / "animals"
    (root / "images").mkdir(parents=True)
    head, *lines = (source / "tags.csv").read_text().splitlines()
    names: list[str] = []
    for split in ("train", "test"):
        content = json.loads((source / f"instances_{split}.json").read_text())
        content["images"] = content["images"][:20]
        kept = {image["id"]: image["file_name"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        (root / f"instances_{split}.json").write_text(json.dumps(content))
        names += kept.values()
    (root / "tags.csv").write_text("\n".join([head, *(line for line in lines if line.split(",")[0] in names)]) + "\n")
    for folder in ("Peak_points", "CAM_maps", "Retrained2_maps"):
        (root / folder).mkdir()
    for name in names:
        shutil.copy(source / "images" / name, root / "images" / name)
        with Image.open(root / "images" / name) as image:
            Image.new("L", image.size).save(root / "CAM_maps" / f"{Path(name).stem}.png")
        shutil.copy(root / "CAM_maps" / f"{Path(name).stem}.png", root / "Retrained2_maps")
        (root / "Peak_points" / f"{Path(name).stem}.txt").write_text("")
    assert (
        bestie_main(["points", "--from=coco", str(root / "instances_train.json"), f"--output={root}/points.json"]) == 0
    )
    return root


@pytest.mark.parametrize("config", trainings("animals"))
def test_every_animals_configuration_runs(config: str, animals: Path, tmp_path: Path) -> None:
    made = ["--model.init_args.init_from=null"] if "init_from" in (REPOSITORY / config).read_text() else []
    run(
        *("fit", "--config", config, *SMALL, f"--data.init_args.root={animals}", *made, *second_stage(config)),
        *(f"--trainer.default_root_dir={tmp_path}", "--trainer.max_steps=1"),
    )


def test_a_printed_configuration_is_a_configuration(tmp_path: Path) -> None:
    printed = bestie("fit", "--config", "configs/shapes/points.yaml", "--print_config").stdout
    path = tmp_path / "printed.yaml"
    path.write_text(printed)
    assert bestie("fit", "--config", str(path), "--print_config").stdout == printed
    assert yaml.safe_load(printed)["model"]["init_args"]["decoder"] == "pyramid"


def test_a_misspelt_key_is_named() -> None:
    error = bestie("fit", "--config", "configs/shapes/points.yaml", "--model.init_args.bakbone=x", status=2).stderr
    assert "model.init_args.bakbone: BestieModule has no such setting; did you mean 'backbone'?" in error


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    arguments = ["--config", "configs/voc/points.yaml", *SMALL, f"--data.init_args.root={tmp_path / 'absent'}"]
    error = bestie("fit", *arguments, status=2).stderr
    assert str(tmp_path / "absent") in error and "Traceback" not in error


def test_a_network_with_another_number_of_classes_is_refused(shapes_folder: Path, tmp_path: Path) -> None:
    shapes = ["--config", "configs/shapes/points.yaml", *shapes_arguments(tmp_path, shapes_folder)]
    bestie("fit", *shapes, "--trainer.max_steps=1", "--trainer.limit_val_batches=0")
    voc = [*shapes, "--data=bestie_pl.VOCDataModule", f"--data.init_args.root={shapes_folder}"]
    names = '--data.init_args.class_names=["a","b","c","d","e","f"]'
    error = bestie("test", *voc, names, "--data.init_args.test_split=test", "--ckpt_path=last", status=2).stderr
    assert "num_classes=5" in error and "says 6" in error and "Traceback" not in error


def test_bad_files_are_named_with_line_and_remedy(shapes_folder: Path, tmp_path: Path) -> None:
    """In worker processes too, whose errors arrive wrapped in a traceback."""
    root = tmp_path / "shapes"
    shutil.copytree(shapes_folder, root)
    name = (root / "ImageSets" / "Segmentation" / "train.txt").read_text().split()[0]
    arguments = ["--config", "configs/shapes/points.yaml", *shapes_arguments(tmp_path, root), "--trainer.max_steps=20"]
    workers = [*arguments, "--data.init_args.num_workers=1"]

    points = root / "Center_points" / f"{name}.txt"
    right = points.read_text()
    points.write_text("500.0 3.0 0 1.000\n")
    error = bestie("fit", *workers, status=2).stderr
    assert f"{points} line 1" in error and "outside" in error and "Traceback" not in error
    points.write_text(right)

    image = root / "JPEGImages" / f"{name}.jpg"
    image.write_bytes(image.read_bytes()[:300])
    error = bestie("fit", *arguments, status=2).stderr
    assert str(image) in error and "Traceback" not in error


def test_an_interrupted_training_leaves_a_checkpoint_that_resumes(shapes_folder: Path, tmp_path: Path) -> None:
    arguments = ["--config", "configs/shapes/points.yaml", *shapes_arguments(tmp_path, shapes_folder)]
    script = Path(sys.executable).with_name("bestie-pl")
    endless = ["--trainer.max_steps=100000", "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]
    process = subprocess.Popen(
        [script, "fit", *arguments, *endless],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs ignore the signal, and so would their children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    log = tmp_path / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1] == "bestie-pl: error: interrupted"
    import torch

    step = torch.load(log, weights_only=True)["global_step"]
    assert step > 0 and "saved checkpoint to" in errors
    bestie("fit", *arguments, f"--trainer.max_steps={step + 1}", "--ckpt_path=last")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["signal", "image"])
def test_a_signalled_or_failing_process_ends_all(case: str, shapes_folder: Path, tmp_path: Path) -> None:
    """The second process gets SIGTERM, or its image cannot be read: both end, and the status says so."""
    root = tmp_path / "shapes"
    shutil.copytree(shapes_folder, root)
    arguments = ["--config", "configs/shapes/points.yaml", *shapes_arguments(tmp_path / "run", root)]
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=100000"]
    if case == "image":
        # one image in eight is of this process in the first epochs
        next((root / "JPEGImages").glob("train_*")).write_bytes(b"no image")
    process = subprocess.Popen(
        [Path(sys.executable).with_name("bestie-pl"), "fit", *arguments, *two, "--trainer.limit_val_batches=0"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    last, deadline = tmp_path / "run" / "checkpoints" / "last.ckpt", time.monotonic() + 400
    try:
        if case == "signal":
            while not last.exists() and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.2)
            (second,) = _children(process.pid)
            os.kill(second, signal.SIGTERM)
        _, errors = process.communicate(timeout=400)
    finally:
        process.kill()
    if case == "signal":
        import torch

        assert process.returncode == 143, errors
        assert "the training stops after this step" in errors and "saved checkpoint to" in errors
        assert torch.load(last, weights_only=True)["global_step"] > 0
    else:
        assert process.returncode not in (0, None)
        assert "cannot be read as an image" in errors


def _children(pid: int) -> list[int]:
    """Processes that one has started, without the workers of loaders: their command line is its own."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"bestie" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_training_on_two_processes(shapes_folder: Path, tmp_path: Path) -> None:
    arguments = ["--config", "configs/shapes/points.yaml", *shapes_arguments(tmp_path, shapes_folder)]
    bestie("fit", *arguments, "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=2")
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
