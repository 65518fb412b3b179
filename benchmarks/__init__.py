"""Measurements of prunerob's speed."""
