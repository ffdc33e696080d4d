"""Prediction past one machine: Ray Data, inputs and results on object stores, Parquet tables."""
