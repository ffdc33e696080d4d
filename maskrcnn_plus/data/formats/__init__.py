"""A module an annotation format: what its files are, read to Detectron2's dataset dicts."""
