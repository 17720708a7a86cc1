"""The tables of what can stand under `data:` in an experiment: sources, splits and transforms by name.

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
}
