"""The studies behind the tables: each writes files below ``results/``."""
