"""Labelled images from scikit-learn, a folder, a parquet file or the hub."""

import dataclasses
import glob
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from demo_diffusion.cli.command import require_packages

import datasets
import numpy as np
import torch
from datasets.utils.file_utils import is_local_path
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from demo_diffusion.cli.options import option
from demo_diffusion.records.printable import printable
from demo_diffusion.records.reading import check_regular

from .listing import ClassOrder, check_distinct, class_folders, image_files, natural_order
from .preparation import center_crop, to_rgb

MAX_LISTED = 5  # of labels and names of classes


@dataclass
class DataConfig:
    """Labelled images."""

    dataset: str = option("digits", "'digits' (scikit-learn's), a folder of class folders, a .parquet file or hub id")
    split: str = option("train", "split of the dataset")
    image_column: str | None = option(None, "column of the images; None: the only one of that type")
    label_column: str | None = option(None, "column of the class labels; None: the only one of that type")
    resolution: int = option(256, "side in pixels; images are resized and centre-cropped to it", above=0, most=2**14)
    num_workers: int = option(0, "processes that read samples", least=0, most=1000)


@dataclass
class LabelledImages:
    """Images in [−1, 1] with class ids.

    Attributes:
        dataset: gives (image (C, height, width) float32, class id).
        channels: C.
        id2label: {class id: name}.
    """

    dataset: Dataset
    channels: int
    id2label: dict[int, str]

    @property
    def num_classes(self) -> int:
        return len(self.id2label)


def load_images(config: DataConfig, own_size: bool = False, class_order: ClassOrder = natural_order) -> LabelledImages:
    """Opens the dataset of a config.

    Args:
        own_size: leaves each image as large as it is; False: all become squares of `config.resolution`.
        class_order: how classes are numbered that have names and no numbers: class folders, and labels that are texts.

    Raises:
        ValueError: if it is empty, a column is missing or ambiguous, a label is out of range, or the digits, which have
            one size, shall have another.
    """
    resolution = None if own_size else config.resolution
    if config.dataset == "digits":
        return _load_digits(resolution)
    return _load_with_datasets(config, resolution, class_order)


def _load_digits(resolution: int | None) -> LabelledImages:
    require_packages(["sklearn"], "train", "The dataset digits")
    from sklearn.datasets import load_digits

    digits = load_digits()
    if resolution not in (None, side := digits.images.shape[-1]):
        raise ValueError(f"resolution is {resolution}; scikit-learn's digits are {side} pixels wide.")
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1  # grey levels 0 … 16
    labels = torch.from_numpy(digits.target).long()
    return LabelledImages(TensorDataset(images, labels), channels=1, id2label={i: str(i) for i in range(10)})


def _load_with_datasets(config: DataConfig, resolution: int | None, class_order: ClassOrder) -> LabelledImages:
    table = _open_table(config, class_order)
    image_column = config.image_column or _only_column(table, datasets.Image, "image")
    label_column = config.label_column or _only_column(table, datasets.ClassLabel, "label")
    table = _select_columns(table, image_column, label_column)
    if getattr(table.features[label_column], "dtype", None) in ("string", "large_string"):
        table = _number_texts(table, label_column, class_order)
    names = _class_names(table, label_column)
    dataset = ImageTable(table, image_column, label_column, resolution)
    return LabelledImages(dataset, channels=3, id2label=dict(enumerate(names)))


def _open_table(config: DataConfig, class_order: ClassOrder) -> datasets.Dataset:
    path = Path(config.dataset)
    looks_local = path.suffix == ".parquet" or path.is_absolute() or config.dataset.startswith(".")
    if looks_local and not path.exists():
        raise ValueError(f"There is no dataset at {config.dataset}; give a folder, a .parquet file or a hub id.")
    try:
        if path.is_file():
            return datasets.load_dataset("parquet", data_files=glob.escape(str(path)), split=config.split)
        if path.is_dir() and not any(next(path.glob(shards), None) for shards in ("*.parquet", "data/*.parquet")):
            return _open_image_folder(path, config.split, class_order)
        if path.is_dir() and glob.has_magic(str(path)):  # the folder's own name, and no pattern
            return datasets.load_dataset("parquet", data_dir=glob.escape(str(path)), split=config.split)
        return datasets.load_dataset(config.dataset, split=config.split)
    except Exception as error:  # a damaged file makes datasets raise almost anything
        here = "" if path.exists() else " (there is no such file or folder here, so the hub was asked)"
        raise ValueError(f"The split {config.split!r} of {config.dataset} cannot be read{here}: {error}") from error


def _open_image_folder(path: Path, split: str, class_order: ClassOrder) -> datasets.Dataset:
    """Images of path/<class>/… or path/<split>/<class>/…, whatever their names; other files are passed over.

    So are hidden files and folders, as `listing` says.
    """
    inside = path / split
    if inside.is_dir() and any(child.is_dir() for child in inside.iterdir()):
        path = inside
    elif split != DataConfig.split:
        raise FileNotFoundError(f"there is no folder {inside} with class folders in it")
    names = class_folders(path, class_order)
    files = [(str(file), label) for label, name in enumerate(names) for file in image_files(path / name)]
    if empty := sorted(set(range(len(names))) - {label for _, label in files}):
        raise FileNotFoundError(f"there is no image in the class folder {path / names[empty[0]]}")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    columns = {"image": [file for file, _ in files], "label": [label for _, label in files]}
    return datasets.Dataset.from_dict(columns, features=features)


def _only_column(table: datasets.Dataset, kind: type, name: str) -> str:
    columns = [column for column, feature in table.features.items() if isinstance(feature, kind)]
    if len(columns) != 1:
        raise ValueError(
            f"The dataset has {len(columns)} columns of type {kind.__name__} ({columns} of {table.column_names}); "
            f"name the one to use with --{name}_column."
        )
    return columns[0]


def _select_columns(table: datasets.Dataset, image_column: str, label_column: str) -> datasets.Dataset:
    if image_column == label_column:
        raise ValueError(f"Column {image_column!r} was named for the images and the labels; they must be two.")
    for column in (image_column, label_column):
        if column not in table.column_names:
            raise ValueError(f"The dataset has no column {column!r}; it has {table.column_names}.")
    table = table.select_columns([image_column, label_column])
    if isinstance(table.features[image_column], dict) and "bytes" in table.features[image_column]:
        table = table.cast_column(image_column, datasets.Image())  # a parquet file written without datasets' metadata
    if not isinstance(table.features[image_column], datasets.Image):
        raise ValueError(f"Column {image_column!r} holds {table.features[image_column]}, not images.")
    return table


def _number_texts(table: datasets.Dataset, label_column: str, class_order: ClassOrder) -> datasets.Dataset:
    names = table.unique(label_column)
    if any(name is None or not name.strip() for name in names):
        raise ValueError(f"Column {label_column!r} has rows without a label; labels must be texts, one a row.")
    check_distinct(names)
    return table.cast_column(label_column, datasets.ClassLabel(names=class_order(names)))


def _class_names(table: datasets.Dataset, label_column: str) -> list[str]:
    """Names of the classes 0 … n − 1; whole numbers without names are class ids and keep their value.

    Of classes with names some may have no image, which is said.
    """
    feature = table.features[label_column]
    is_whole = str(getattr(feature, "dtype", "")).startswith(("int", "uint"))  # of named classes too
    labels = table.unique(label_column) if is_whole else [None]
    if None in labels:
        raise ValueError(f"Column {label_column!r} holds {feature}; labels must be whole numbers or texts, one a row.")
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    last = max(labels) if names is None else len(names) - 1
    if outside := sorted(label for label in labels if not 0 <= label <= last):
        raise ValueError(
            f"Column {label_column!r} has the labels {outside[:MAX_LISTED]}; they must be in 0 … {last}. Splits "
            "without labels cannot train a class-conditional model."
        )
    if names is None:
        return _number_names(set(labels), label_column)
    check_distinct(names)
    used = set(labels)
    if without := [name for i, name in enumerate(names) if i not in used]:
        listed = ", ".join(map(printable, without[:MAX_LISTED])) + (", …" if len(without) > MAX_LISTED else "")
        warnings.warn(f"{len(without)} of {len(names)} classes have no image: {listed}.", stacklevel=2)
    return names


def _number_names(labels: set[int], label_column: str) -> list[str]:
    """Numbers from 0 on as names: without a name that says so, a number that is left out is no class."""
    if missing := [i for i in range(len(labels)) if i not in labels]:
        raise ValueError(
            f"Column {label_column!r} has {len(labels)} different labels up to {max(labels)}, but none is "
            f"{missing[0]}; whole numbers must be the classes 0 … n − 1, each with an image. Renumber them, or give "
            "the column names (datasets.ClassLabel)."
        )
    return [str(i) for i in range(len(labels))]


class ImageError(ValueError):
    """An image of a dataset that cannot be read."""

    def __init__(self, message: str):
        super().__init__(message.rpartition("ImageError: ")[2])  # a loader's worker puts its traceback around it


class ImageTable(Dataset):
    """Rows of a `datasets` table as (image in [−1, 1] (3, resolution, resolution), class id).

    Args:
        resolution: None: each image has its own size.
    """

    def __init__(self, table: datasets.Dataset, image_column: str, label_column: str, resolution: int | None):
        # Read here, and not by datasets, which hands on pixels without the depth that they had in the file.
        self.table = table.cast_column(image_column, datasets.Image(decode=False))
        self.image = dataclasses.replace(table.features[image_column], decode=True)
        self.image_column = image_column
        self.label_column = label_column
        self.resolution = resolution

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.picture(index)
        image = image if self.resolution is None else center_crop(image, self.resolution)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.float() / 127.5 - 1, label

    def picture(self, index: int) -> tuple[Image.Image, int]:
        """A row as an RGB image of its own size, and its class id; raises an ImageError if it cannot be read."""
        try:
            row = self.table[index]
            return self._read(row[self.image_column]), row[self.label_column]
        except Exception as error:  # a damaged image makes Pillow raise almost anything
            raise ImageError(f"{self._name(index)} cannot be read as an image: {error}") from error

    def _read(self, encoded: dict | None) -> Image.Image:
        if encoded is None:
            raise ValueError("there is none in this row")
        content, path = encoded["bytes"], encoded["path"]
        if self.image.mode is not None or (content is None and not is_local_path(path)):
            return to_rgb(self.image.decode_example(encoded))
        if content is None:
            check_regular(path)
        with Image.open(path if content is None else BytesIO(content)) as image:
            return to_rgb(image)

    def _name(self, index: int) -> str:
        path = (self.table[index][self.image_column] or {}).get("path")
        return f"Row {index} ({path or 'no file name'})"
