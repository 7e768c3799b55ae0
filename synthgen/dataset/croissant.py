"""Croissant 1.0 metadata (JSON-LD) of an augmented data set.

Owns the description by which dataset search engines and mlcroissant open the shards: every file with
its sha256, one file set and one record set per origin, one field per column. Refuses to invent a licence,
an author or a date.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from synthgen.dataset.shards import REAL, SHARD_SCHEMA, SYNTHETIC

CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
LICENCE = "The licence of the raw data applies"

# The context that the Croissant 1.0 specification prescribes.
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_DATA_TYPES = {pa.string(): "sc:Text", pa.int64(): "sc:Integer", pa.int32(): "sc:Integer", pa.float32(): "sc:Float"}
_MEANINGS = {
    "image": "The prepared image (PNG).",
    "label": "Integer of the class.",
    "class_name": "Name of the class in the raw data.",
    "slug": "Name of the class in paths.",
    "origin": "'real' or 'synthetic'.",
    "split": "Always 'train': no test image is in this data set.",
    "fold": "'final': made from every image that may be trained on.",
    "source_sha256": "Sha256 of real pixels (shape as text, then bytes): the row's own, or those it is a change of.",
    "group": "Real rows: images of one object share it; keep a group on one side of any split.",
    "generator_digest": "Synthetic rows: digest of the generator's weights.",
    "seed": "Synthetic rows: names the batch of latents.",
    "position": "Synthetic rows: row in that batch.",
    "d_score": "Synthetic rows: the discriminator's logit.",
    "teacher_agreement": "Synthetic rows: a teacher's probability of the label.",
    "nearest_real": "Synthetic rows: feature distance to the nearest training image, in median distances among reals.",
}


def croissant_metadata(
    name: str, description: str, files: Mapping[str, Mapping[str, Any]], slugs: Sequence[str]
) -> dict[str, Any]:
    """The content of croissant.json.

    Args:
        name: of the data set.
        description: one paragraph of plain text.
        files: file name -> `{sha256, bytes}` of every shard.
        slugs: of all classes, in label order.
    Returns:
        JSON-LD that mlcroissant validates; file URLs are relative to croissant.json.
    Source: Croissant format specification 1.0, MLCommons.
    """
    distribution: list[dict[str, Any]] = []
    record_sets: list[dict[str, Any]] = []
    for origin in (REAL, SYNTHETIC):
        names = [f"{origin}-{slug}.parquet" for slug in slugs if f"{origin}-{slug}.parquet" in files]
        distribution.extend(_file_object(name, files[name]) for name in names)
        if not names:
            continue
        # No `containedIn`: mlcroissant then takes the pattern from the folder of croissant.json.
        distribution.append(
            {
                "@type": "cr:FileSet",
                "@id": f"{origin}-shards",
                "name": f"{origin}-shards",
                "description": f"All shards of {origin} images.",
                "encodingFormat": "application/x-parquet",
                "includes": f"{origin}-*.parquet",
            }
        )
        record_sets.append(_record_set(origin))
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": description,
        "conformsTo": CONFORMS_TO,
        "license": LICENCE,
        "url": "./",
        "distribution": distribution,
        "recordSet": record_sets,
    }


def _file_object(file_name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": file_name,
        "name": file_name,
        "contentUrl": file_name,
        "contentSize": f"{facts['bytes']} B",
        "encodingFormat": "application/x-parquet",
        "sha256": facts["sha256"],
    }


def _record_set(origin: str) -> dict[str, Any]:
    fields = []
    for column in SHARD_SCHEMA:
        source: dict[str, Any] = {"fileSet": {"@id": f"{origin}-shards"}, "extract": {"column": column.name}}
        if column.name == "image":
            source["transform"] = {"jsonPath": "bytes"}
        fields.append(
            {
                "@type": "cr:Field",
                "@id": f"{origin}/{column.name}",
                "name": f"{origin}/{column.name}",
                "description": _MEANINGS[column.name],
                "dataType": "sc:ImageObject" if column.name == "image" else _DATA_TYPES[column.type],
                "source": source,
            }
        )
    return {"@type": "cr:RecordSet", "@id": origin, "name": origin, "field": fields}
