"""Every reader against thousands of damaged and hostile files: ``make fuzz``, or ``python -m tools.fuzz``.

Each input is a right file of a format with some bytes, numbers or names replaced. Allowed is a right answer, or an
error of our own that names the file. Anything else is forbidden: another exception, a signal, more than ``SECONDS`` of
computing time, more than ``MEBIBYTES`` of memory, or a file that appears outside the folder that was named. The figures
go to ``results/fuzz.json``. An input follows from seed, target and number alone: ``--only TARGET:NUMBER`` runs one
again and shows its traceback.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import yaml
from jsonargparse import get_loader
from PIL import Image

from bestie_pl.cli.configuration import load_configuration
from bestie_pl.data.annotation_tools.readers import read_marked
from bestie_pl.data.coco import read_categories, read_index
from bestie_pl.data.files import below, read_names
from bestie_pl.data.formats.cues import read_cues
from bestie_pl.data.formats.images import open_image, remarks
from bestie_pl.data.formats.maps import MapFolder, read_semantic, write_semantic
from bestie_pl.data.formats.points import PointSet, read_points, to_json, write_release
from bestie_pl.data.formats.predictions import read_predictions
from bestie_pl.data.formats.tags import read_tag_list, read_tags
from bestie_pl.data.formats.truth import COCOTruth
from bestie_pl.data.shards import open_shards
from bestie_pl.errors import UserError
from bestie_pl.models.tensor_file import read_file, split_content

SECONDS = 10
"""Computing time that one input may take."""
MEBIBYTES = 1500
"""Memory that one input may take: an image of Pillow's limit, which is bounded by nothing else, comes close to it."""
CHUNK = 250
"""Inputs that one process reads, one after another; a signal ends it, and the next one goes on."""
HEIGHT, WIDTH = 24, 32
CLASSES = ("cat", "dog")

HOSTILE_NUMBERS = (
    *("0", "-1", "255", "256", "65536", "2147483648", "9223372036854775808", "1e8", "-1e8", "1e308", "1e400"),
    *("NaN", "Infinity", "-Infinity", "true", "null", '"0"', '"x"', "[]", "{}", "1" + "0" * 400, "9" * 5000, "0.5"),
)
HOSTILE_NAMES = (
    *("../../outside/x.png", "/tmp/outside/x.png", "..\\..\\outside\\x.png", "C:\\x.png", "", ".", "a/../../b.png"),
    *("a\u0308.png", "\u00e4.png", "x" * 250 + ".png", "link/x.png", "a\x00b.png", "\ud83d\ude00.png", "%2e%2e/x.png"),
)
HOSTILE_TEXTS = (
    *(
        "[" * 3000,
        "{" * 300,
        '"' + "x" * 140_000 + '"',
        "<!DOCTYPE a [<!ENTITY b 'c'>]>",
        "&b;",
        "!!python/name:os",
        "\x00",
    ),
    *("*a", "&a [*a]", ";;;", ",,,", "\r", "\u2028", "__ignore__", "group_id"),
)


class Hang(BaseException):
    """The time is over."""


@dataclass(frozen=True)
class Target:
    """A reader: the right ``files`` that inputs are made from, by name, and what reads one from its path.

    ``read`` gets the path, and a folder to write to where the program would write.
    """

    files: dict[str, bytes]
    read: Callable[[Path, Path], object]


@dataclass
class Figures:
    """What came of the inputs of one target."""

    inputs: int = 0
    right: int = 0
    refused: int = 0
    forbidden: int = 0
    slowest_s: float = 0.0
    largest_mib: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)


def targets() -> dict[str, Target]:
    """All readers by name."""
    labelled = {
        f"from {source}": _marked(source) for source in ("coco", "labelme", "cvat", "labelstudio", "via", "csv", "json")
    }
    return {
        "points csv": Target(
            {"p.csv": b"image,x,y,class,confidence\na.png,3,4,cat,1\nsub/b.png,5.5,6,dog,\nc.png,,,,\n"}, _points
        ),
        "points json": Target({"p.json": _json(_POINTS)}, _points),
        "tags csv": Target(
            {
                "t.csv": b"image,tags,split\na.png,cat;dog,train\nsub/b.png,,val\n",
                "u.csv": b'image,tags\na.png,"cat, dog"\n',
                "v.csv": b"image,split,cat,dog\na.png,train,1,0\nb.png,val,0,1\n",
            },
            _tags,
        ),
        "tags json": Target({"t.json": _json({"a.png": ["cat"], "b.png": {"tags": ["dog"], "split": "val"}})}, _tags),
        "cues": Target({"a.txt": b"3 4 0 0.9\n31 23 1 1\n"}, lambda path, _: read_cues(path, (HEIGHT, WIDTH), 2)),
        "release lists": Target({"l.txt": b"2007_000033 0 1\n2007_000042 1\n"}, _lists),
        **labelled,
        "coco truth": Target({"c.json": _json(_coco())}, _truth),
        "predictions": Target({"a.json": _json([_prediction()])}, _predictions),
        "semantic png": Target({"a.png": _map("PNG")}, lambda path, _: read_semantic(path, (HEIGHT, WIDTH), 2)),
        "maps npy": Target(
            {"a.npy": _array(np.uint8, (HEIGHT, WIDTH)), "b.npy": _array(np.float32, (3, HEIGHT, WIDTH))}, _maps
        ),
        "images": Target(_pictures(), _image),
        "shards": Target({"s.tar": _tar()}, _shards),
        "checkpoints": Target({"c.pt": _checkpoint()}, _tensors),
        "configurations": Target({"c.yaml": _CONFIGURATION}, _configuration),
    }


def run(inputs: int, *, seed: int = 0, names: Sequence[str] | None = None) -> dict[str, Figures]:
    """Read about ``inputs`` inputs, as many of each target, and count what came of them.

    Args:
        inputs: Number in all.
        seed: Of the mutations.
        names: Targets; all if omitted.
    """
    chosen = list(targets()) if names is None else list(names)
    count = -(-inputs // len(chosen))
    figures = {name: Figures() for name in chosen}
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            first = 0
            while first < count:
                first = _read_chunk(name, first, min(first + CHUNK, count), seed, Path(folder), figures[name])
    return figures


def mutated(target: Target, name: str, number: int, seed: int) -> tuple[str, bytes]:
    """Name and content of an input."""
    chance = random.Random(f"{seed}/{name}/{number}")
    file = chance.choice(sorted(target.files))
    content = target.files[file]
    for _ in range(chance.choice((1, 1, 2, 4))):
        content = chance.choice((_replace_number, _replace_text, _replace_text, _damage))(content, chance)
    return file, content


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("results/fuzz.json"))
    parser.add_argument("--only", metavar="TARGET:NUMBER", help="read one input again, and show what happens")
    options = parser.parse_args()
    if options.only is not None:
        _again(options.only, options.seed)
    from bestie_pl.callbacks.scores import environment

    start = time.monotonic()
    figures = run(options.inputs, seed=options.seed)
    content = {
        "command": f"python -m tools.fuzz --inputs {options.inputs} --seed {options.seed}",
        "bounds": {"seconds": SECONDS, "mebibytes": MEBIBYTES},
        "inputs": sum(f.inputs for f in figures.values()),
        "right": sum(f.right for f in figures.values()),
        "refused": sum(f.refused for f in figures.values()),
        "forbidden": sum(f.forbidden for f in figures.values()),
        "targets": {name: vars(f) for name, f in figures.items()},
        "minutes": round((time.monotonic() - start) / 60, 1),
        "environment": environment(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{options.output}: {content['inputs']} inputs, {content['forbidden']} with a forbidden outcome")
    raise SystemExit(1 if content["forbidden"] else 0)


def _again(which: str, seed: int) -> NoReturn:
    name, _, number = which.rpartition(":")
    target = targets()[name]
    with tempfile.TemporaryDirectory() as folder:
        file, content = mutated(target, name, int(number), seed)
        path = Path(folder, file)
        path.write_bytes(content)
        print(content[:2000])
        target.read(path, Path(folder, "out"))
    raise SystemExit("read without an error")


def _read_chunk(name: str, first: int, end: int, seed: int, folder: Path, figures: Figures) -> int:
    """Read some inputs in a process of their own; returns the number of the first one that was not read."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        try:
            with os.fdopen(writing, "w", buffering=1) as out:
                _read_in_child(name, range(first, end), seed, folder, out)
        finally:
            os._exit(0)
    os.close(writing)
    done = first
    with os.fdopen(reading) as lines:
        for line in lines:
            _count(figures, json.loads(line))
            done += 1
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status) or done < end:
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "ended"
        _count(figures, {"number": done, "outcome": how, "seconds": 0.0, "mib": 0.0})
        done += 1
    return done


def _count(figures: Figures, report: dict[str, Any]) -> None:
    figures.inputs += 1
    figures.slowest_s = max(figures.slowest_s, round(report["seconds"], 2))
    figures.largest_mib = max(figures.largest_mib, round(report["mib"], 1))
    if report["outcome"] in ("right", "refused"):
        setattr(figures, report["outcome"], getattr(figures, report["outcome"]) + 1)
    else:
        figures.forbidden += 1
        if len(figures.failures) < 10:
            figures.failures.append(report)


def _read_in_child(name: str, numbers: range, seed: int, folder: Path, out: Any) -> None:
    target = targets()[name]
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, _hang)
    # a loop in native code does not hear the signal
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS * 60, SECONDS * 60))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print warnings
    for number in numbers:
        file, content = mutated(target, name, number, seed)
        home = folder / "home"
        shutil.rmtree(home, ignore_errors=True)
        (home / "in").mkdir(parents=True)
        (home / "outside").mkdir()
        (home / "in" / "link").symlink_to(home / "outside")
        (home / "out").mkdir()
        (home / "out" / "link").symlink_to(home / "outside")
        path = home / "in" / file
        path.write_bytes(content)
        before, start = _peak(), time.process_time()
        outcome = _outcome(target, path, home / "out")
        seconds, mib = time.process_time() - start, _peak() - before
        strays = sorted(str(p) for p in (*home.iterdir(), *(home / "outside").iterdir(), *folder.iterdir()))
        expected = sorted(str(p) for p in (home, home / "in", home / "out", home / "outside"))
        if strays != expected:
            outcome = "a file outside"
        elif mib > MEBIBYTES:
            outcome = f"{mib:.0f} MiB of memory"
        elif seconds > SECONDS and outcome in ("right", "refused"):
            outcome = f"more than {SECONDS} s"
        out.write(json.dumps({"number": number, "outcome": outcome, "seconds": seconds, "mib": mib}) + "\n")


def _outcome(target: Target, path: Path, output: Path) -> str:
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        target.read(path, output)
    except (UserError, FileNotFoundError) as error:
        # of a name that leads out, the folder to write to says where
        named = path.name in str(error) or str(output) in str(error)
        return "refused" if named else f"names no file: {error!r:.300}"
    except Hang:
        return f"more than {SECONDS} s"
    except BaseException as error:
        return f"{type(error).__name__}: {error!s:.300}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "right"


def _hang(number: int, frame: object) -> NoReturn:
    raise Hang


def _peak() -> float:
    """Largest memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _replace_number(content: bytes, chance: random.Random) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if not found:
        return _damage(content, chance)
    place = chance.choice(found)
    return content[: place.start()] + chance.choice(HOSTILE_NUMBERS).encode() + content[place.end() :]


def _replace_text(content: bytes, chance: random.Random) -> bytes:
    found = list(re.finditer(rb"[A-Za-z_][\w./ ]*", content))
    text = chance.choice(HOSTILE_NAMES if chance.random() < 0.6 else HOSTILE_TEXTS).encode(errors="surrogatepass")
    if not found:
        return content + text
    place = chance.choice(found)
    keep = chance.choice((place.end(), place.end(), place.start()))  # replaced, or put before
    return content[: place.start()] + text + content[keep:]


def _damage(content: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut out, doubled or cut off."""
    if not content:
        return b"\x00"
    start = chance.randrange(len(content))
    end = min(len(content), start + chance.choice((1, 1, 2, 4, 8, 64)))
    kind = chance.randrange(5)
    if kind == 0:
        return content[:start] + bytes(chance.randrange(256) for _ in range(end - start)) + content[end:]
    if kind == 1:
        return content[:start] + content[end:]
    if kind == 2:
        return content[:end] + content[start:]
    if kind == 3:
        return content[:start]
    return content[:start] + chance.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00" * 4)) + content[end:]


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


_POINTS = {
    "classes": list(CLASSES),
    "images": [
        {"file": "a.png", "width": WIDTH, "height": HEIGHT, "points": [{"x": 3, "y": 4, "class": "cat"}]},
        {"file": "sub/b.png", "points": [{"x": 3.5, "y": 4, "class": "dog", "confidence": 0.5}]},
    ],
}


def _coco() -> dict[str, Any]:
    image = {"id": 1, "file_name": "sub/a.png", "height": HEIGHT, "width": WIDTH}
    shared = {"image_id": 1, "iscrowd": 0, "area": 30.5, "bbox": [2, 2, 8, 8]}
    return {
        "images": [image],
        "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": 1, "category_id": 1, **shared, "segmentation": [[2, 2, 10, 2, 10, 10, 2, 10]]},
            {"id": 2, "category_id": 7, **shared, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 9, 754]}},
            {
                "id": 3,
                "category_id": 7,
                **shared,
                "segmentation": _prediction()["segmentation"],
                "keypoints": [3, 4, 2],
            },
            {"id": 4, "category_id": 7, **shared, "iscrowd": 1, "segmentation": [[12, 12, 20, 12, 20, 20]]},
        ],
    }


def _prediction() -> dict[str, Any]:
    from pycocotools import mask as codec

    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[4:9, 5:20] = 1
    counts = codec.encode(mask)["counts"].decode()
    return {"image": "a", "class": "cat", "score": 0.75, "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}}


def _map(kind: str) -> bytes:
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[3:9, 4:20], values[10:20, 5:9], values[0] = 1, 2, 255
    out = io.BytesIO()
    Image.fromarray(values).save(out, kind)
    return out.getvalue()


def _array(dtype: Any, shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    np.save(out, np.ones(shape, dtype))
    return out.getvalue()


def _pictures() -> dict[str, bytes]:
    chance = np.random.default_rng(0)
    colour = Image.fromarray(chance.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    deep = Image.fromarray(chance.integers(0, 65535, (HEIGHT, WIDTH), dtype=np.uint16))
    made = {}
    for name, picture, kind in (
        *(("a.jpg", colour, "JPEG"), ("a.png", colour, "PNG"), ("a.tif", colour, "TIFF"), ("a.bmp", colour, "BMP")),
        *(("a.webp", colour, "WEBP"), ("b.tif", deep, "TIFF"), ("b.png", deep, "PNG")),
    ):
        out = io.BytesIO()
        picture.save(out, kind)
        made[name] = out.getvalue()
    out = io.BytesIO()
    colour.save(out, "TIFF", save_all=True, append_images=[colour], compression="tiff_deflate")
    return {**made, "c.tif": out.getvalue()}


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        files = {"sub/a.png": _map("PNG"), "sub/a.maps.png": _map("PNG"), "\u00e4.txt": b"3 4 0 0.9\n"}
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _shards(path: Path, output: Path) -> None:
    """All members, as what their names say that they are."""
    index = open_shards(path)
    for name in [] if index is None else index.names:
        if name.endswith(".png"):
            open_image(path / name)
        elif name.endswith(".txt"):
            read_cues(path / name, (HEIGHT, WIDTH), 2)


def _checkpoint() -> bytes:
    out = io.BytesIO()
    torch.save({"state_dict": {"model.a": torch.zeros(3), "model.b": torch.ones(2, 2)}, "epoch": 3}, out)
    return out.getvalue()


_CONFIGURATION = b"""data:
  class_path: bestie_pl.FolderDataModule
  init_args: {root: data, class_names: [cat, dog], crop_size: 416, scale_range: [0.7, 1.3]}
model: &m {class_path: bestie_pl.BestieModule, init_args: {backbone: resnet50, lr: 1e-4}}
trainer: {max_epochs: 3, callbacks: [{class_path: bestie_pl.CueWriter}], other: *m}
"""

_CVAT = f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<image id="0" name="sub/a.png" width="{WIDTH}" height="{HEIGHT}">
<points label="cat" points="3.5,4.5;5,6"></points><box label="dog" xtl="2" ytl="2" xbr="9" ybr="9" group_id="1"></box>
<polygon label="cat" points="2,2;10,2;10,10;2,10"></polygon><ellipse label="dog" cx="9" cy="9" rx="3" ry="2"></ellipse>
<mask label="cat" rle="2,5,3,2" left="4" top="5" width="4" height="3"></mask>
<tag label="dog"></tag></image></annotations>
""".encode()


def _labelme() -> dict[str, Any]:
    out = io.BytesIO()
    Image.fromarray(np.eye(6, dtype=bool)).save(out, "PNG")
    mask = {
        "label": "dog",
        "shape_type": "mask",
        "points": [[2, 2], [8, 8]],
        "mask": base64.b64encode(out.getvalue()).decode(),
    }
    shapes = [
        {"label": "cat", "shape_type": "point", "points": [[3, 4]], "group_id": None},
        {"label": "cat", "shape_type": "polygon", "points": [[2, 2], [10, 2], [10, 10]], "group_id": 1},
        {"label": "dog", "shape_type": "rectangle", "points": [[2, 2], [10, 12]]},
        mask,
    ]
    return {"shapes": shapes, "imagePath": "a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}


def _label_studio() -> list[dict[str, Any]]:
    def region(kind: str, **value: Any) -> dict[str, Any]:
        shown = {"to_name": "image", "type": kind, "original_width": WIDTH, "original_height": HEIGHT}
        return {**shown, "image_rotation": 0, "value": {kind: ["cat"], **value}}

    # a brush of one run: 32 bits of the number of values, word size, four widths, one block
    total = 4 * HEIGHT * WIDTH
    bits = f"{total:032b}" + f"{7:05b}" + "0011" * 3 + "1111" + "1" + "11" + f"{total - 1:016b}" + "1" * 8
    bits += "0" * (-len(bits) % 8)
    brush = [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]
    results = [
        region("keypointlabels", x=20, y=30, width=1),
        region("rectanglelabels", x=20, y=30, width=10, height=10, rotation=0),
        region("polygonlabels", points=[[10, 10], [40, 10], [40, 60]]),
        region("brushlabels", format="rle", rle=brush),
    ]
    data = {"image": "/data/local-files/?d=sub/a.png", "preview": "s3://b/a #1.png"}
    return [{"id": 1, "data": data, "annotations": [{"id": 2, "was_cancelled": False, "result": results}]}]


def _via() -> dict[str, Any]:
    shapes: list[dict[str, Any]] = [
        {"name": "point", "cx": 3, "cy": 4},
        {"name": "rect", "x": 2, "y": 2, "width": 8, "height": 9},
        {"name": "ellipse", "cx": 9, "cy": 9, "rx": 3, "ry": 2.5, "theta": 0.2},
        {"name": "polygon", "all_points_x": [2, 10, 10, 2], "all_points_y": [2, 2, 10, 10]},
    ]
    classes: list[Any] = ["cat", {"dog": True}, "dog", "cat"]
    regions = [
        {"shape_attributes": shape, "region_attributes": {"class": name, "age": "3"}}
        for shape, name in zip(shapes, classes, strict=True)
    ]
    image = {"filename": "sub/a.png", "size": 99, "regions": regions, "file_attributes": {"class": {"dog": True}}}
    return {"_via_settings": {}, "_via_img_metadata": {"sub/a.png99": image}, "_via_data_format_version": "2.0.10"}


_VIA_CSV = b"""filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes
a.png,99,"{}",1,0,"{""name"":""circle"",""cx"":9,""cy"":9,""r"":3}","{""class"":""cat""}"
sub/b.png,12,"{""class"":""dog""}",0,0,"{}","{}"
"""


def _marked(source: str) -> Target:
    files = {
        "coco": {"c.json": _json(_coco())},
        "labelme": {"l.json": _json(_labelme())},
        "cvat": {"c.xml": _CVAT},
        "labelstudio": {"l.json": _json(_label_studio())},
        "via": {"v.json": _json(_via()), "v.csv": _VIA_CSV},
        "csv": {"p.csv": b"image,x,y,class\na.png,3,4,cat\n"},
        "json": {"p.json": _json(_POINTS)},
    }[source]

    def read(path: Path, output: Path) -> None:
        _write(read_marked([path], source).points(path), output)

    return Target(files, read)


def _points(path: Path, output: Path) -> None:
    _write(read_points(path), output)


def _write(points: PointSet, output: Path) -> None:
    to_json(points)
    write_release(points, output)


def _tags(path: Path, output: Path) -> None:
    table = read_tags(path)
    table.dense(torch.arange(len(table.files)))


def _lists(path: Path, output: Path) -> None:
    read_tag_list(path, 2)
    for name in read_names(path):
        write_semantic(below(output, f"{name}.png"), torch.zeros(2, 2, dtype=torch.uint8))


def _truth(path: Path, output: Path) -> None:
    categories = read_categories(path)
    index = read_index(path, tuple(categories), keep_masks=True)
    assert index.annotations is not None
    index.tags()
    truth = COCOTruth(index.annotations, index.sizes, path)
    for number, name in enumerate(index.names):
        _, semantic = truth(number, (HEIGHT, WIDTH))
        write_semantic(below(output, f"{name}.png"), semantic)


def _predictions(path: Path, output: Path) -> None:
    read_predictions(path.parent, path.stem, (HEIGHT, WIDTH), CLASSES)


def _maps(path: Path, output: Path) -> None:
    MapFolder(path.parent, CLASSES).read(path.stem, (HEIGHT, WIDTH))


def _image(path: Path, output: Path) -> None:
    remarks(path, open_image(path))


def _tensors(path: Path, output: Path) -> None:
    try:
        split_content(read_file(path), path)
    except ValueError as error:  # the library's own, whatever torch raised
        raise UserError(str(error)) from error


def _configuration(path: Path, output: Path) -> None:
    """As jsonargparse reads it, which puts the name of the file before these errors."""
    try:
        load_configuration(get_loader("yaml"), path.read_text(encoding="utf-8"))
    except (UserError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {error!s:.200}") from error


if __name__ == "__main__":
    main()
