"""The tables of what can stand under `data:` in an experiment: sources, splits, transforms and augmentations by name.

The tables are lazy: a name costs nothing until it is chosen, so image, parquet and TFDS readers never slow down a text run.
"""

from __future__ import annotations

SOURCES = {
    "text_folder": "jaxtune.data.sources.text_folder:TextFolder",
    "image_folder": "jaxtune.data.sources.image_folder:ImageFolder",
    "json_lines": "jaxtune.data.sources.json_lines:JsonLines",
    "csv": "jaxtune.data.sources.csv_file:CsvFile",
    "parquet": "jaxtune.data.sources.parquet:Parquet",
    "in_memory": "jaxtune.data.sources.in_memory:InMemory",
    "tfds": "jaxtune.data.sources.tfds:Tfds",
}

SPLITS = {
    "random": "jaxtune.data.split:Random",
    "stratified": "jaxtune.data.split:Stratified",
    "grouped": "jaxtune.data.split:Grouped",
    "k_fold": "jaxtune.data.split:KFold",
    "column": "jaxtune.data.split:Column",
    "given": "jaxtune.data.split:Given",
}

TRANSFORMS = {
    "clean_text": "jaxtune.data.transforms.clean_text:CleanText",
    "filter": "jaxtune.data.transforms.columns:Filter",
    "rename": "jaxtune.data.transforms.columns:Rename",
    "cut_text": "jaxtune.data.transforms.compose:CutText",
    "compose": "jaxtune.data.transforms.compose:Compose",
}

AUGMENTS = {
    "random_deletion": "jaxtune.data.transforms.augment:RandomDeletion",
    "random_swap": "jaxtune.data.transforms.augment:RandomSwap",
    "flip": "jaxtune.data.transforms.augment_image:Flip",
    "crop": "jaxtune.data.transforms.augment_image:Crop",
    "resized_crop": "jaxtune.data.transforms.augment_image:ResizedCrop",
    "cutout": "jaxtune.data.transforms.augment_image:Cutout",
    "mixup": "jaxtune.data.transforms.augment_image:Mixup",
    "rand_augment": "jaxtune.data.transforms.rand_augment:RandAugment",
}
