"""A trained model outside PyTorch: its graphs and their description."""
