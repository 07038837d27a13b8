"""Prices of configurations written by hand, from a transformer's dimensions: thousands in one call."""
