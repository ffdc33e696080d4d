"""Exporting a trained model, with a gate that compares it with the original on annotated images."""
