"""Prediction on image files: the predictor, overlays, label images, COCO results and an HTML report."""
