"""Prediction on files and folders: what is predicted, what is done already, and results that appear whole."""
