"""Generates the data files in `serving/config/data`, the JSON Schemas and the reference tables."""
