"""Guidance as an algebra over branches; nothing here knows of samplers or of single models."""
