"""Labelled synthetic images for scarce classes, and the honest measurement of whether they help.

The way of an image, folder by folder:
`dataset` (raw files to prepared arrays) -> `gan` (training, sampling, selection) -> `dataset.shards`
-> `classifier` (arms, training, prediction) -> `metrics` (gain with its interval) -> `report`.
`stages` strings them together, one verb each; `cli` gives the verbs to people and to DVC.
"""

__version__ = "0.1.0"
