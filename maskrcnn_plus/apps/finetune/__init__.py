"""From a folder of annotations to a trained model: configured by what the data are, trained, and judged."""
