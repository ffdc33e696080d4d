"""The model inside annotation tools and viewers: CVAT, Label Studio, napari. See docs/bridges.md."""
