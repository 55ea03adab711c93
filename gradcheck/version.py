"""The version, as reports say it. pyproject.toml says it too; a test compares them. And where gradcheck is found."""

__version__ = "0.2.0"
REPOSITORY = "OWNER/gradcheck"  # on GitHub: the one place to fill in; tests/test_ci_files.py compares the documents with it
TAG = f"v{__version__}"
