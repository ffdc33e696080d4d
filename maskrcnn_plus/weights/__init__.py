"""Weights files as data: read without running code from them, under names that no wrapper hides."""
