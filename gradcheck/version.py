"""The version, as reports say it. pyproject.toml says it too; a test compares them."""

__version__ = "0.1.0"
